"""The `spanbox` command: its subcommands, and the output of errors."""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

# Nothing is downloaded at run time. The hub client reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import typer

from spanbox import __version__
from spanbox.cli import (
    ablate,
    config,
    data,
    data_annotate,
    data_clean,
    data_demo,
    data_mine,
    data_paraphrase,
    data_parts,
    data_show,
    demo,
    embed,
    evaluate,
    explore,
    export,
    gmner,
    ground,
    losses,
    plan,
    report,
    score,
    search,
    train,
)
from spanbox.errors import SpanboxError
from spanbox.processes import end_with_starter
from spanbox.terminal import escaped

HELP = """Train an image encoder and a text encoder that match sentences with images and phrases with boxes.

Start here:

    spanbox demo                         train on built-in scenes, in a few minutes

On your own data:

    spanbox data check my.jsonl          check the data before training (format: docs/data.md)

    spanbox plan gmner model.text.path=DIR model.vision.path=DIR     batch sizes that fit into memory

    spanbox train gmner data.train=my.jsonl model.text.path=DIR model.vision.path=DIR

    spanbox evaluate runs/gmner --data held-out.jsonl

    spanbox export runs/gmner encoders   folders that transformers opens

Every setting is a key of the config: `spanbox config schema` lists the keys, `key=value` on the command line sets them.
"""
REMEDIES = {
    errno.ENOSPC: "free space, or choose another place",
    errno.EDQUOT: "free space, or choose another place",
    errno.EACCES: "check the rights, or choose another place",
    errno.EPERM: "check the rights, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EISDIR: "give the path of a file",
    errno.ENOTDIR: "one of its parents is a file; choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143  # exit codes

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("evaluate")(evaluate.evaluate)
app.command("score")(score.score)
app.command("export")(export.export)
app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("ground")(ground.ground)
app.command("explore")(explore.explore)
app.command("report")(report.report)
app.command("losses")(losses.losses)
app.command("ablate")(ablate.ablate)
data.app.command("annotate")(data_annotate.annotate)
data.app.command("clean")(data_clean.clean_command)
data.app.command("demo")(data_demo.draw)
data.app.command("mine")(data_mine.mine)
data.app.command("paraphrase")(data_paraphrase.paraphrase)
data.app.command("split")(data_parts.split_command)
data.app.command("merge")(data_parts.merge_command)
data.app.command("sample")(data_parts.sample_command)
data.app.command("card")(data_parts.card_command)
data.app.command("show")(data_show.show)
app.add_typer(data.app, name="data")
app.add_typer(gmner.app, name="gmner")
app.add_typer(config.app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"spanbox {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself; its help is `HELP`."""


def main() -> None:
    """Run the command. An error that the user can fix is printed without a traceback, exit code 2."""
    end_with_starter()
    _make_output_lenient()
    try:
        with _tidying_up_on_sigterm():
            code = _run()
        _flush(sys.stdout)
    except SpanboxError as error:
        code = _fail(str(error))
    except BrokenPipeError:  # the reader has enough, as in `spanbox ... | head`
        code = 1
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED)
    except _Terminated:
        code = _fail("terminated", TERMINATED)
    except OSError as error:
        code = _fail(_describe(error))
    except UnicodeEncodeError as error:  # of a file name: in a locale such as C without UTF-8 mode, or no UTF-8
        code = _fail(f"{error.object!r} cannot be a file name here; set PYTHONUTF8=1, or rename it to UTF-8")
    except RecursionError:
        code = _fail("some input is nested too deeply to be read")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_of_allocator(error):
            raise
        code = _fail("out of memory; use smaller input or settings, `spanbox plan` shows what fits")
    _discard_unwritten()
    sys.exit(code)


def _is_of_allocator(error: RuntimeError) -> bool:
    """Whether PyTorch ran out of memory. Only on GPUs does this error have its own class."""
    return any(words in str(error) for words in ("can't allocate memory", "out of memory"))


class _Terminated(SystemExit):
    """Raised on SIGTERM."""


@contextmanager
def _tidying_up_on_sigterm() -> Iterator[None]:
    """Context in which SIGTERM unwinds the stack as Ctrl-C does, so that partial files and processes are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run() -> int:
    try:
        app(args=[_expand_home(argument) for argument in sys.argv[1:]], prog_name="spanbox")
    except _Terminated:
        raise
    except SystemExit as end:
        # Typer turns Ctrl-C into an exit without a message.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _expand_home(argument: str) -> str:
    """Expand `~` at the start of an argument or of an option's value, which shells leave in `--out=~/x`."""
    option, equals, value = argument.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111  # leaves `~` of an unknown user as it is
    return os.path.expanduser(argument)  # noqa: PTH111


def _make_output_lenient() -> None:
    """Print characters that the terminal's encoding lacks as escapes instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _describe(error: OSError) -> str:
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return ": ".join(filter(None, [path, reason])) + (f"; {remedy}" if remedy else "")


def _fail(message: str, code: int = USER_ERROR) -> int:
    try:
        print("spanbox:", "\n".join(map(escaped, message.split("\n"))), file=sys.stderr)
        _flush(sys.stderr)
    except OSError:  # the reader of the pipe is gone
        pass
    return code


def _flush(stream: object) -> None:
    if isinstance(stream, io.TextIOBase):
        stream.flush()


def _discard_unwritten() -> None:
    """Redirect output that cannot be written to the null device, or the interpreter would print an error at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            _flush(stream)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
