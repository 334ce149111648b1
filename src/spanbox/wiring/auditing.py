"""The audit of the manifests of a run, for its report. It is made again only where a manifest or its images changed.

evaluation/audit.json           numbers of each manifest: its content, and the problems in all of them
evaluation/audit.inputs.json    the state of the manifests and of their images at the audit
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spanbox.data.audit import Counts, audit
from spanbox.data.manifest import Manifest
from spanbox.documents import DocumentError, read_json
from spanbox.engine.versions import VERSION
from spanbox.errors import DataError
from spanbox.files import write_json
from spanbox.progress import progress_of
from spanbox.wiring.embedding import digest_of_images, images_of, size_and_time

AUDIT, INPUTS = "audit.json", "audit.inputs.json"


def write_audit(folder: Path, manifests: Mapping[str, Path], earlier: Path) -> None:
    """Write the counts of the audit for each manifest of a run, and its findings in all of them.

    Headers of the images are read, not the images: `spanbox data check` looks further.

    Args:
        folder: of the new files.
        manifests: by part: train, val, test. Those that do not exist are left out.
        earlier: folder of the evaluation before, whose audit is taken over if it is of the same data.
    """
    there = {part: manifest for part, manifest in manifests.items() if manifest.is_file()}
    inputs = {"spanbox": VERSION, **{part: _state(manifest) for part, manifest in there.items()}}
    content = _of_inputs(earlier, inputs)
    if content is None:
        with progress_of("checking data") as on_progress:
            report = audit(list(there.values()), decode=False, on_progress=on_progress)
        content = {part: _numbers(report.manifests[str(manifest)]) for part, manifest in there.items()}
        found = {finding.kind: finding.count for finding in (*report.problems, *report.notes)}
        content["all"] = _numbers(report.total) | found
    write_json(folder / AUDIT, content)
    write_json(folder / INPUTS, inputs)


def _of_inputs(folder: Path, inputs: Mapping[str, Any]) -> Any:
    """The audit in `folder` if it was made from these inputs, else None."""
    try:
        same = None not in inputs.values() and read_json(folder / INPUTS) == inputs
        return read_json(folder / AUDIT) if same else None
    except (OSError, DocumentError):
        return None


def _state(manifest: Path) -> list[Any] | None:
    """Where a manifest is, its size and time, and a digest of those of its images; None if it has broken lines."""
    try:
        images = digest_of_images(images_of(Manifest(manifest, "drop")))
    except DataError:
        return None
    return [str(manifest.resolve()), size_and_time(manifest), images]


def _numbers(counts: Counts) -> dict[str, int]:
    return {name: value for name, value in vars(counts).items() if isinstance(value, int)}
