"""The command's output: encodings, markup, closed pipes, interruption, errors of the system, help and version."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import HANGS, Command
from spanbox import __version__
from spanbox.cli import losses, main
from spanbox.config import describe_keys
from spanbox.errors import ConfigError

RECORD_IN_CHINESE = '{"id": "[/b]", "image": "示例.png", "text": "加菲猫", "lang": "[/b]"}\n'
COMMANDS_IN_CHINESE = [
    (["config", "show", "demo", "run.dir=示例"], 0),
    (["config", "schema"], 0),
    (["data", "check", "示例.jsonl"], 1),
    (["config", "show", "示例"], 2),
]


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `spanbox losses` raise it."""

    def callback() -> None:
        raise error

    command = next(c for c in main.app.registered_commands if c.callback is losses.losses)
    monkeypatch.setattr(command, "callback", callback)


class TestErrorsOfTheSystem:
    @pytest.mark.parametrize(
        ("number", "remedy"),
        [
            (errno.ENOSPC, "free space"),
            (errno.EDQUOT, "free space"),
            (errno.EACCES, "check the rights"),
            (errno.EROFS, "choose a place"),
            (errno.EISDIR, "path of a file"),
            (errno.ENOTDIR, "is a file"),
            (errno.ENAMETOOLONG, "shorter path"),
        ],
    )
    def test_are_one_line(self, number: int, remedy: str, spanbox: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        fail_with(OSError(number, os.strerror(number), "some/file"), monkeypatch)
        code, _, err = spanbox("losses")
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"spanbox: some/file: {os.strerror(number)}; ")
        assert remedy in err

    @pytest.mark.parametrize(
        "error",
        [
            *(MemoryError(), RecursionError("maximum depth"), OSError("without a number")),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 512000000000000 bytes."),
        ],
    )
    def test_without_a_number(self, error: Exception, spanbox: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        fail_with(error, monkeypatch)
        code, _, err = spanbox("losses")
        assert (code, err.count("\n"), err.startswith("spanbox: ")) == (2, 1, True)

    def test_a_file_name_that_is_no_utf_8(self, spanbox: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        fail_with(UnicodeEncodeError("utf-8", "caf\udce9.json", 3, 4, "surrogates not allowed"), monkeypatch)
        expected = r"spanbox: 'caf\udce9.json' cannot be a file name here; set PYTHONUTF8=1, or rename it to UTF-8"
        assert spanbox("losses").err.strip() == expected

    def test_control_characters_are_escaped_and_lines_kept(
        self, spanbox: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in a message that holds an id or a key of a file."""
        fail_with(ConfigError("2 problems:\n  \x1b[31m[/b]\u202e目标: wrong"), monkeypatch)
        assert spanbox("losses").err == "spanbox: 2 problems:\n  \\x1b[31m[/b]\\u202e目标: wrong\n"

    @pytest.mark.parametrize("mistake", [KeyError("x"), RuntimeError("shapes cannot be multiplied")])
    def test_a_mistake_of_the_program_is_not_hidden(
        self, mistake: Exception, spanbox: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_with(mistake, monkeypatch)
        with pytest.raises(type(mistake)):
            spanbox("losses")

    def test_interrupted(self, spanbox: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        fail_with(KeyboardInterrupt(), monkeypatch)
        assert spanbox("losses") == (130, "", "spanbox: interrupted\n")

    def test_a_reader_that_closes_early(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "spanbox", "config", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=HANGS)
        assert err == b""

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_full_disk_under_the_output(self) -> None:
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "spanbox", "--version"]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANGS)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "No space left" in done.stderr


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
    @pytest.mark.parametrize(("arguments", "code"), COMMANDS_IN_CHINESE, ids=lambda value: str(value)[:30])
    def test_what_an_encoding_lacks_is_escaped(
        self, arguments: list[str], code: int, encoding: str, spanbox: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("示例.jsonl").write_text(RECORD_IN_CHINESE, encoding="utf-8")
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        assert spanbox(*arguments).code == code
        printed = b"".join(stream.buffer.getvalue() for stream in streams.values())  # type: ignore[attr-defined]
        printed.decode(encoding)
        assert printed

    @pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
    def test_in_a_process_of_its_own(self, environment: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "示例.jsonl").write_text(RECORD_IN_CHINESE, encoding="utf-8")
        command = [sys.executable, "-W", "error", "-m", "spanbox", "data", "check", str(tmp_path / "示例.jsonl")]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=os.environ | environment, timeout=HANGS
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr + done.stdout

    def test_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        main._make_output_lenient()
        stream.write("示\ud800")
        stream.seek(0)
        assert stream.read() == "\\u793a\\ud800"


class TestHelp:
    @pytest.mark.parametrize("verb", [[], ["train"], ["data"], ["data", "check"], ["config", "show"]], ids=" ".join)
    def test_short_option(self, verb: list[str], spanbox: Command) -> None:
        assert spanbox(*verb, "-h") == spanbox(*verb, "--help")

    def test_version(self, spanbox: Command) -> None:
        assert spanbox("--version") == (0, f"spanbox {__version__}\n", "")

    def test_shell_completion_is_offered(self, spanbox: Command) -> None:
        assert "--install-completion" in spanbox("--help").out

    @pytest.mark.parametrize(
        ("verb", "text"),
        [
            (["ground"], 'photo.jpg "a [red kite] above a [boat]"'),
            (["ground"], "[[x0, y0, x1, y1], ...] in pixels"),
            (["data", "import", "parquet"], "needs spanbox[parquet]."),
        ],
    )
    def test_brackets_are_not_read_as_markup(self, verb: list[str], text: str, spanbox: Command) -> None:
        assert text in " ".join(spanbox(*verb, "--help").out.replace("│", " ").split())

    @pytest.mark.parametrize("verb", [["train"], ["plan"], ["config", "show"]], ids=" ".join)
    def test_names_every_recipe(self, verb: list[str], spanbox: Command) -> None:
        assert "published" in spanbox(*verb, "--help").out


class TestSchema:
    @pytest.mark.parametrize("section", ["train.optimiser", "train", "model.text.lora"])
    def test_of_a_section(self, section: str, spanbox: Command) -> None:
        out = spanbox("config", "schema", section).out
        for key, _, _ in describe_keys():
            assert (f"\n{key}=" in f"\n{out}") == key.startswith(f"{section}.")

    def test_of_a_key(self, spanbox: Command) -> None:
        out = spanbox("config", "schema", "train.batch_size").out
        assert "train.batch_size" in out
        assert "train.steps" not in out

    def test_of_an_unknown_key(self, spanbox: Command) -> None:
        code, _, err = spanbox("config", "schema", "train.batchsize")
        assert code == 2
        assert err == "spanbox: train.batchsize: unknown key; the nearest known one is train.batch_size\n"


class TestHomeFolder:
    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path))
        return tmp_path

    @pytest.mark.parametrize("key", ["run.dir", "data.train", "data.val", "data.neighbours"])
    def test_in_the_config(self, key: str, home: Path, spanbox: Command) -> None:
        assert f"{home}/x" in spanbox("config", "show", "demo", f"{key}=~/x").out

    @pytest.mark.parametrize("part", ["text", "vision"])
    def test_in_the_path_of_a_tower(self, part: str, home: Path, spanbox: Command) -> None:
        given = spanbox("config", "show", "gmner", f"model.{part}.path=~/x").out
        assert f"path: {home}/x\n" in given

    def test_in_arguments_that_a_shell_leaves(self, home: Path, spanbox: Command) -> None:
        assert f"{home}/x.jsonl: no such" in spanbox("data", "check", "~/x.jsonl").err
        assert f"{home}/y.jsonl: no such" in spanbox("score", "x.jsonl", "--data=~/y.jsonl").err

    def test_of_an_unknown_user_is_left(self, spanbox: Command) -> None:
        assert "~nobody-there/x" in spanbox("config", "show", "demo", "run.dir=~nobody-there/x").out


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [("SIGINT", 130, "spanbox: interrupted\n"), ("SIGTERM", 143, "spanbox: terminated\n")],
)
def test_a_signal_ends_the_command_and_leaves_no_partial_file(
    number: str, code: int, message: str, tmp_path: Path
) -> None:
    script = f"""
import os, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs of a shell
from spanbox.cli import main, losses
from spanbox.files import replacing

def write():
    with replacing(pathlib.Path("new.txt")):
        os.kill(os.getpid(), signal.{number})

next(c for c in main.app.registered_commands if c.callback is losses.losses).callback = write
sys.argv = ["spanbox", "losses"]
main.main()
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, message)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_modules_are_imported() -> None:
    script = """
import sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == "spanbox.cli.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
from spanbox.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANGS)
    assert (done.returncode, done.stderr) == (130, "spanbox: interrupted\n")
