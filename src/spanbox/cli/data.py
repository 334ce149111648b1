"""`spanbox data`: convert published data sets to manifests, and check manifests before training."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spanbox.data.audit import AuditReport, Finding, audit, token_check
from spanbox.data.audit.page import audit_page
from spanbox.data.importers import ImportSummary
from spanbox.data.importers.driver import Source, run_import
from spanbox.data.importers.formats import FORMATS, Format
from spanbox.data.importers.twitter_gmner import import_twitter_gmner
from spanbox.data.importers.twitter_gmner_text import EntityTypes
from spanbox.data.manifest import check_manifest_file
from spanbox.data.repair import fix_manifest
from spanbox.errors import ConfigError, DataError
from spanbox.files import check_no_input, check_no_other_output, check_writable_file, removing_new_folders, write_text
from spanbox.progress import progress_of
from spanbox.terminal import command, make_console, plain

app = typer.Typer(no_args_is_help=True, help="Import, check, repair, annotate, split and show data.")
import_app = typer.Typer(no_args_is_help=True, help="Convert a published data set to manifests, one per split.")
app.add_typer(import_app, name="import")

_VALUES_SHOWN = 8  # of types and of languages

# Each paragraph is one line, which the help wraps to the terminal.
_IMPORT_TWITTER_GMNER = """Import Twitter-GMNER (Twitter10000) or Twitter-FMNERG.

Reads the texts in columns or the JSON form, boxes from XML and proposals from npz. Writes train.jsonl, val.jsonl and \
test.jsonl to OUT, and import.json, which lists everything that was left out.

Missing images do not stop it: import first, download later.

Example:

    spanbox data import twitter-gmner Twitter10000_v2.0 data/gmner
"""

_CHECK = """Check manifests and their images, and list all their faults.

Give all splits at once: they are also compared with each other. Exits with 1 if there is a problem and with 0 \
otherwise; notes are not problems. Five places of each kind are shown; --json writes all of them to a file.

Example:

    spanbox data check train.jsonl val.jsonl test.jsonl --json check.json
"""


_FIX = """Repair what can be repaired with certainty, into a new manifest.

Boxes and offsets of another convention are converted if at least 20 of them contradict the documented convention and \
none contradicts the other. Names of images in another spelling are corrected, ids made unique, images of equal pixels \
given one group, and pairs that are given twice removed. Everything else is left as it is.

Example:

    spanbox data fix train.jsonl fixed/train.jsonl
"""


@import_app.command("twitter-gmner", help=_IMPORT_TWITTER_GMNER)
def import_twitter_gmner_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="Folder of the set, as in Twitter10000_v2.0, or one file of texts."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the manifests; created if missing.")],
    boxes: Annotated[Path | None, typer.Option(help="Folder of ID.xml. Default: searched in and beside SRC.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of ID.jpg. Default: searched in and beside SRC.")] = None,
    proposals: Annotated[
        Path | None, typer.Option(help="Folder of ID.jpg.npz (VinVL). Default: searched in and beside SRC.")
    ] = None,
    types: Annotated[
        EntityTypes, typer.Option(help="FMNERG: the column of tags that gives the types of entities.")
    ] = "fine",
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="Copy the images to OUT/images instead of referring to their folder.")
    ] = False,
) -> None:
    with progress_of("importing") as on_progress:
        summary = import_twitter_gmner(
            source,
            out,
            boxes=boxes,
            images=images,
            proposals=proposals,
            entity_types=types,
            copy_images=copy_images,
            on_progress=on_progress,
        )
    _show_import(summary, out)


def _add_format(name: str, form: Format) -> None:
    """A command for a format: all take the same options."""

    def run(
        source: Annotated[Path, typer.Argument(metavar="SRC", help=f"Expected: {escape(form.expects)}.")],
        out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the manifests; created if missing.")],
        images: Annotated[Path | None, typer.Option(help="Folder of the images, if it lies elsewhere.")] = None,
        spec: Annotated[
            Path | None, typer.Option(help="YAML that names the fields, where a format has no fixed ones.")
        ] = None,
    ) -> None:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; expected {form.expects}")
        with progress_of("importing") as on_progress:
            summary = run_import(name, form.importer, Source(source, out, images, spec), on_progress)
        _show_import(summary, out)

    doc = (
        f"Import {form.title}.\n\nExpects {escape(form.expects)}.\n\nWrites a manifest per split, and import.json, "
        "which lists what was left out. Missing images do not stop it."
    )
    import_app.command(name, help=doc)(run)


for _name, _format in FORMATS.items():
    _add_format(_name, _format)


def _list_formats(wanted: bool) -> None:
    if wanted:
        for name, form in FORMATS.items():
            print(f"{name}: {form.title}\n    {form.expects}")
        print("twitter-gmner: Twitter-GMNER and Twitter-FMNERG\n    txt/, xml/, images and VinVL files, see its --help")
        raise typer.Exit


@import_app.callback()
def _import_options(
    _: Annotated[
        bool,
        typer.Option(
            "--list", help="List the formats and the files that they expect.", callback=_list_formats, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of `data import` without a format."""


@app.command("check", help=_CHECK)
def check(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST...", help="The manifests of one data set, one per split.")
    ],
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Read only the headers of the images: seconds instead of minutes, but damage is not found."
        ),
    ] = False,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="PATH", help="Write the full report, every finding included, to this file."),
    ] = None,
    html_path: Annotated[
        Path | None, typer.Option("--html", metavar="PATH", help="Write a page with pictures of each kind of finding.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR", help="Folder of a text tower: report texts longer than it reads."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=4, help="With --tokenizer: the limit, as data.max_tokens in training, by default 64."
        ),
    ] = None,
) -> None:
    for manifest in manifests:
        check_manifest_file(manifest)
    for path, suffix in ((json_path, ".json"), (html_path, ".html")):
        if path is not None:
            check_no_input(path, manifests)
            check_no_other_output(path, [html_path] if path is json_path else [])
            check_writable_file(path, suffix)
    tokens = None
    if tokenizer is None and max_tokens is not None:
        raise ConfigError("--max-tokens: has no effect without --tokenizer DIR, the folder of a text tower")
    if tokenizer is not None:
        from spanbox.data.tokenizer import load_tokenizer

        tokens = token_check(load_tokenizer(str(tokenizer)), max_tokens or 64)
    with progress_of("checking") as on_progress:
        report = audit(manifests, decode=not fast, tokens=tokens, on_progress=on_progress)
    _show_audit(report)
    if html_path is not None:
        write_text(html_path, audit_page(report))
        _print(make_console(), f"Page with pictures: {html_path}")
    if json_path is not None:
        report.write(json_path)
        _print(make_console(), f"Full report: {json_path}")
    elif any(finding.count > len(finding.examples) for finding in (*report.problems, *report.notes)):
        print("--json PATH writes a full report with all of them.")
    if not report.ok:
        raise typer.Exit(1)


@app.command("fix", help=_FIX)
def fix(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The manifest; it is not changed.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The repaired manifest.")],
) -> None:
    check_manifest_file(manifest)
    with removing_new_folders(out.parent):
        check_writable_file(out, ".jsonl")
        with progress_of("repairing") as on_progress:
            done, left = fix_manifest(manifest, out, on_progress)
    for name, count in (*done.items(), *left.items()):
        print(f"{count:,} {name}")
    print(f"Repaired: {out}" if done.total() else f"Nothing to repair with certainty; copied to {out}")
    print(f"Next: {command('data', 'check', out)}")


def _show_import(summary: ImportSummary, out: Path) -> None:
    console = make_console()
    splits = summary.splits.values()
    table = _table([split.manifest for split in splits])
    for name in dict.fromkeys(name for split in splits for name in split.counts):
        table.add_row(name, *(f"{split.counts[name]:,}" for split in splits))
    console.print(table)
    for name, folder in summary.folders.items():
        _print(console, f"{name} from {folder or 'nowhere: no such folder was found'}")
    kinds = dict.fromkeys(kind for split in splits for kind in split.oddity_counts)
    if kinds:
        console.print()
        _print(console, "Left out, or to be looked at:")
    for kind in kinds:
        counts = ", ".join(f"{s.oddity_counts[kind]:,} in {s.manifest}" for s in splits if s.oddity_counts[kind])
        _print(console, f"  {kind}: {counts}")
    check = command("data", "check", *(out / split.manifest for split in splits if split.counts["pairs"]))
    console.print()
    _print(console, f"All are listed in {out / 'import.json'}. Next: {check}")


def _show_audit(report: AuditReport) -> None:
    console = make_console()
    console.print(_counts_table(report))
    for title, findings in (("Problems", report.problems), ("Notes", report.notes)):
        if findings:
            console.print()
            _print(console, title)
        for finding in findings:
            _show_finding(console, finding)
    if not report.decoded:
        console.print()
        _print(console, "--fast: images were neither decoded nor compared by content.")
    count = sum(finding.count for finding in report.problems)
    console.print()
    _print(console, "No problems found." if report.ok else f"{count:,} problem{'s' * (count > 1)}.")


def _counts_table(report: AuditReport) -> Table:
    names, columns = report.names, list(report.manifests.values())
    if len(columns) > 1:
        names, columns = [*names, "all"], [*columns, report.total]
    table = _table(names)
    for name in ("pairs", "images", "groups", "texts", "entities", "entities_with_box", "entities_without_box"):
        table.add_row(name.replace("_", " "), *(f"{getattr(counts, name):,}" for counts in columns))
    for title, breakdown in (("type", "types"), ("language", "languages")):
        for value, _ in getattr(report.total, breakdown).most_common(_VALUES_SHOWN):
            row = (f"{getattr(counts, breakdown)[value]:,}" for counts in columns)
            table.add_row(plain(f"{title} {value or 'not given'}"), *row)
    for name in ("boxes", "proposals", *(["paraphrases"] if report.total.paraphrases else [])):
        table.add_row(name, *(f"{getattr(counts, name):,}" for counts in columns))
    for name in ("width", "height", "characters"):
        measures = [shape.summary().get(name) for shape in report.shapes.values()]
        table.add_row(f"{name}, median (range)", *map(_range, measures))
    for script in dict.fromkeys(script for shape in report.shapes.values() for script in shape.scripts):
        table.add_row(f"script {script}", *(f"{shape.scripts[script]:,}" for shape in report.shapes.values()))
    return table


def _range(measure: object) -> str:
    if not isinstance(measure, dict):
        return ""
    return f"{measure['median']:,.0f} ({measure['least']:,.0f}-{measure['largest']:,.0f})"


def _show_finding(console: Console, finding: Finding) -> None:
    _print(console, f"  {finding.kind}: {finding.count:,} ({finding.advice})")
    for example in finding.examples:
        _print(console, f"    {example.manifest}:{example.line}: {example.detail}")
    if finding.count > len(finding.examples):
        _print(console, f"    and {finding.count - len(finding.examples):,} more")


def _table(columns: list[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(Text(column), justify="right")
    return table


def _print(console: Console, text: str) -> None:
    """Print one line as it is: a long path is not wrapped."""
    console.print(plain(text), soft_wrap=True)
