"""Cleaning of a manifest: every pair and link is scored by a model that was not trained on it.

The pairs are cut into folds by group and image file, so that no image is on both sides. A model is trained on the other
folds for each (or a given run scores all), and its scores become probabilities (`evaluation/verdicts.py`). The new
manifest, all verdicts and a page for review are written; the original is not changed. An interrupted cleaning goes on.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from spanbox.config import RunConfig, dump_config, load_config
from spanbox.data.cleaning import FOLDS, Judged, Policies, cleaned_records, cleaning_page, verdict_lines
from spanbox.data.joined_groups import JoinedGroups
from spanbox.data.manifest import Manifest, image_file, relocated, write_manifest
from spanbox.data.neighbours import manifest_digest
from spanbox.documents import DocumentError, quoted, read_json
from spanbox.engine.checkpoint import find_checkpoint, last_checkpoint
from spanbox.engine.run_folder import refuse_running
from spanbox.errors import ConfigError, DataError, OutputError
from spanbox.evaluation.verdicts import FoldScores, judge, score_fold
from spanbox.files import (
    check_no_input,
    check_writable_folder,
    explained,
    remove_entry,
    replacing,
    write_json,
    write_text,
)
from spanbox.processes import Jobs
from spanbox.progress import Progress
from spanbox.structures import Incident, stable_id
from spanbox.wiring.embedding import embed, evaluation_dataset
from spanbox.wiring.loading import Loaded, load, untrained

VERDICTS, SUMMARY, REVIEW = "verdicts.jsonl", "summary.json", "review.html"
ALL_PROPOSALS = 10_000  # of an image: every one may be the box of an entity


@dataclass
class Cleaned:
    """What a cleaning found and did."""

    manifest: Path
    wrong_pairs: float | None  # estimated share; None: no pair is judged
    wrong_links: float | None  # of the boxes; None: no box is judged
    counts: Counter[str] = field(default_factory=Counter)  # of the actions by kind
    pair_verdicts: Counter[str] = field(default_factory=Counter)
    link_verdicts: Counter[str] = field(default_factory=Counter)
    incidents: Counter[str] = field(default_factory=Counter)
    links_not_judged: str | None = None  # why, where no box is


def clean(
    path: Path,
    out: Path,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    folds: int | None = None,
    jobs: int | None = None,
    policies: Policies | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Cleaned:
    """Write `out/NAME.jsonl`, `verdicts.jsonl`, `summary.json` and `review.html`, and the runs in `out/folds`.

    Args:
        path: the manifest.
        recipe: recipe or config of the models of the folds; `overrides` are its settings. Boxes without an area are
            refused or left out by its `data.inverted_boxes`, or that of the run.
        run: a run or checkpoint whose model has not seen the data, instead of folds.
        folds: number of folds; None: `FOLDS`.
        jobs: folds that are trained at the same time, each with its share of the cores; None: 1.
        device: where the pairs are scored.

    Raises:
        ConfigError: neither or both of `recipe` and `run`, a wrong setting, neighbours of the whole manifest,
            settings, folds or jobs for a run, a model whose features of sentences and images mean nothing, or one that
            was trained on the manifest.
        DataError: the manifest is wrong, or too small for so many folds.
        OutputError: `out` cannot be written, or a file in it would replace the original or another one.
        TrainingError: the training of a fold failed.
    """
    _check_options(recipe, overrides, run, folds, jobs)
    new = out / f"{path.stem}.jsonl"
    for name in (new.name, VERDICTS, SUMMARY, REVIEW):
        check_no_input(out / name, [path])
    if new.name == VERDICTS:
        raise OutputError(f"{new}: is the name of the file of the verdicts; give the manifest another name")
    if run is not None:
        loaded = load(run, device)
        config = loaded.config
        _check_coarse(str(run), config)
        _check_unseen(str(run), config, path)
        manifest = Manifest(path, config.data.inverted_boxes)
        check_writable_folder(out)
        scored = [_score(loaded, path, range(len(manifest)), seed)]
    else:
        assert recipe is not None
        config = _config_of_folds(recipe, overrides, path)
        manifest = Manifest(path, config.data.inverted_boxes)
        check_writable_folder(out)
        members = fold_members(manifest, folds or FOLDS, seed)
        trained = _train_folds(manifest, members, out / "folds", recipe, overrides, jobs or 1)
        scored = [
            _score(load(model, device), held_out, own, seed)
            for (model, held_out), own in zip(trained, members, strict=True)
        ]
    verdicts = judge([scores for scores, _ in scored])
    judged = Judged.of(verdicts.pairs, verdicts.links)
    result = Cleaned(new, verdicts.wrong_pairs, verdicts.wrong_links)
    if verdicts.wrong_links is None and any(entity.boxes for record in manifest for entity in record.entities):
        result.links_not_judged = untrained(config, "fine") or (
            "those of wrong pairs are not, nor those without wrong ones to compare them with"
        )
    result.incidents.update(incident.kind for _, incidents in scored for incident in incidents)
    result.pair_verdicts.update("wrong" if pair.is_wrong else "right" for pair in verdicts.pairs)
    result.link_verdicts.update(link.verdict for link in verdicts.links)
    _write(out, new, manifest, judged, policies or Policies(), result)
    return result


def _check_options(
    recipe: str | None, overrides: Sequence[str], run: Path | None, folds: int | None, jobs: int | None
) -> None:
    if (recipe is None) == (run is None):
        raise ConfigError(
            "give either --recipe, to train a model for each fold, or --run, a model that has not seen the data"
        )
    if run is not None and overrides:
        raise ConfigError(
            f"{overrides[0]}: settings are those of --recipe; with --run nothing is trained, leave them out"
        )
    for option, value in (("--folds", folds), ("--jobs", jobs)):
        if run is not None and value is not None:
            raise ConfigError(f"{option}: with --run nothing is trained; leave it out")


def _config_of_folds(recipe: str, overrides: Sequence[str], path: Path) -> RunConfig:
    """The config of the models of the folds, checked for settings that would expose them to the held-out pairs."""
    config = load_config(recipe, overrides)
    _check_coarse(recipe, config)
    if config.train.start is not None:
        started = load_config(str(find_checkpoint(Path(config.train.start)) / "config.yaml"))
        _check_unseen(f"train.start={config.train.start}", started, path)
    if config.data.neighbours is not None:
        raise ConfigError(
            "data.neighbours: holds neighbours within the whole manifest, but each fold trains on a part of it; set "
            "data.neighbours=null, or also data.mining.every=1 to mine them in the folds"
        )
    return config


def _check_coarse(name: str, config: RunConfig) -> None:
    if reason := untrained(config, "coarse"):
        raise ConfigError(f"{name}: pairs cannot be judged: {reason}; train with loss.coarse.weight above 0")


def _check_unseen(name: str, config: RunConfig, path: Path) -> None:
    """Refuse a model that learned the pairs of the manifest, with their faults."""
    if config.data.train is not None and Path(config.data.train).resolve() == path.resolve():
        raise ConfigError(
            f"{name}: was trained on {path}, so it has learned the faults and would not find them; clean with --recipe "
            "and without train.start: then each fold is judged by a model trained on the others"
        )


def fold_members(manifest: Manifest, folds: int, seed: int) -> list[list[int]]:
    """Indices of the pairs of each fold; all pairs of a group, or of groups that share an image file, are in one fold.

    Raises:
        DataError: there are too few groups.
    """
    groups: dict[str, list[int]] = {}
    joined, of_image = JoinedGroups[str](), dict[str, str]()
    folder = manifest.path.parent.resolve()
    for place in range(len(manifest)):
        record = manifest[place]
        groups.setdefault(record.group_key, []).append(place)
        joined.join(of_image.setdefault(image_file(record, folder), record.group_key), record.group_key)
    for group in joined.others():
        groups[joined.first(group)] += groups.pop(group)
    if len(groups) < 2 * folds:
        raise DataError(f"{manifest.path}: {len(groups)} groups are too few for {folds} folds; set --folds lower")
    order = sorted(groups, key=lambda group: stable_id(f"fold {seed} {group}"))
    members: list[list[int]] = [[] for _ in range(folds)]
    for group in order:
        min(members, key=len).extend(groups[group])
    return [sorted(places) for places in members]


def _train_folds(
    manifest: Manifest, members: Sequence[Sequence[int]], folder: Path, recipe: str, overrides: Sequence[str], jobs: int
) -> list[tuple[Path, Path]]:
    """Train the models that are missing, `jobs` at a time. Returns their run folders and the held-out manifests."""
    commands = []
    for number, own in enumerate(members):
        train, held_out = folder / f"train-{number}.jsonl", folder / f"held-out-{number}.jsonl"
        _write_part(manifest, own, held_out)
        own_places = set(own)
        _write_part(manifest, [place for place in range(len(manifest)) if place not in own_places], train)
        settings = [*overrides, f"data.train={quoted(str(train))}", "data.val=null"]
        commands.append(["train", recipe, *settings, f"run.dir={quoted(str(folder / f'run-{number}'))}"])
    runs = [folder / f"run-{number}" for number in range(len(members))]

    def train_one(number: int) -> None:
        record = {"command": commands[number], "digest": _digest(commands[number], folder / f"train-{number}.jsonl")}
        _train_fold(number, runs[number], folder / f"commands-{number}.json", record, running)

    with Progress("folds", len(runs)) as progress, Jobs(jobs) as running:
        for done, _ in enumerate(running.map(train_one, range(len(runs))), start=1):
            progress.update(done)
    return [(run, folder / f"held-out-{number}.jsonl") for number, run in enumerate(runs)]


def _write_part(manifest: Manifest, places: Sequence[int], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    old, new = manifest.path.parent.resolve(), path.parent.resolve()
    write_manifest(path, (relocated(manifest[place], old, new) for place in places))


def _digest(command: Sequence[str], train: Path) -> str:
    """Digest of all that the training of a fold depends on: settings, those of the recipe included, and pairs."""
    _, recipe, *settings = command
    resolved = dump_config(load_config(recipe, settings))
    return f"{blake2b(resolved.encode(), digest_size=16).hexdigest()} {manifest_digest(train)}"


def _train_fold(number: int, run: Path, path: Path, record: Mapping[str, Any], jobs: Jobs) -> None:
    """Train the model of a fold, go on with one that was interrupted, or leave one that is done.

    Args:
        path: file for the record.
        record: the command, and the digest of its inputs; a model with another record is trained again.
    """
    try:
        before = read_json(path)
    except (OSError, DocumentError):
        before = None
    state = before if isinstance(before, dict) else {}
    is_same = all(state.get(key) == value for key, value in record.items())
    if is_same and state.get("done"):
        return
    if not is_same:  # the record first: a kill in between leaves nothing that would count as a model of this record
        refuse_running(run)
        with explained(run):
            remove_entry(path)
            remove_entry(run)
    resumes = last_checkpoint(run / "checkpoints") is not None
    command_now = (
        ["train", str(run / "config.yaml"), "--resume"] if resumes else [*record["command"], "run.overwrite=true"]
    )
    write_text(path, json.dumps({**record, "done": False}))
    output = run.parent / f"output-{number}.txt"
    jobs.run(f"fold {number}", [command_now], output)
    write_text(path, json.dumps({**record, "done": True}))


def _score(loaded: Loaded, path: Path, members: Sequence[int], seed: int) -> tuple[FoldScores, list[Incident]]:
    """P-values of the pairs of a manifest by a model, and the incidents in their data.

    Args:
        members: their places in the manifest that is cleaned.
    """
    dataset = evaluation_dataset(loaded, Manifest(path, loaded.config.data.inverted_boxes))
    dataset.limits = replace(dataset.limits, proposals=ALL_PROPOSALS, max_regions=None, max_spans=None)
    bank, incidents = embed(loaded, dataset)
    scores = score_fold(bank, seed, fine=loaded.untrained("fine") is None)
    return scores.at(np.asarray(members)), incidents


def _write(out: Path, new: Path, manifest: Manifest, judged: Judged, policies: Policies, result: Cleaned) -> None:
    old, folder = manifest.path.parent.resolve(), out.resolve()
    records = cleaned_records(manifest, judged, policies, result.counts)
    write_manifest(new, (relocated(record, old, folder) for record in records))
    with replacing(out / VERDICTS) as file:
        for line in verdict_lines(manifest, judged):
            file.write(json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n")
    summary = vars(result) | {"manifest": str(new), "original": str(manifest.path), "policies": policies.model_dump()}
    write_json(out / SUMMARY, summary)
    write_text(out / REVIEW, cleaning_page(manifest, judged))
