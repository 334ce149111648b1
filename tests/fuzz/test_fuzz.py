"""The short round of the fuzzer: damaged input of each kind is refused or read. `make fuzz` runs the long round."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzz_isolated
import pytest
from fuzz_isolated import FAILURES, MEMORY_LIMIT, Case, run_isolated
from fuzz_kinds import KINDS

from command import HANGS

PER_KIND = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Results of the round by kind, run in a process of its own, which forks for each input."""
    path = tmp_path_factory.mktemp("fuzz") / "results.json"
    script = Path(__file__).with_name("fuzz_run.py")
    command = [sys.executable, str(script), "--count", str(PER_KIND * len(KINDS)), "--json", str(path)]
    subprocess.run(command, capture_output=True, check=False, timeout=HANGS)
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_short_round(kind: str, results: dict[str, list[dict[str, Any]]]) -> None:
    assert len(results[kind]) == PER_KIND
    failures = [result["detail"] for result in results[kind] if result["outcome"] in FAILURES]
    assert not failures, "\n\n".join(failures)


class TestTheFuzzerItself:
    """Each kind of failure is recognised when it happens."""

    @pytest.fixture(autouse=True)
    def memory_besides_that_of_the_tests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A forked process has the memory of its parent, which is that of all tests so far."""
        monkeypatch.setattr(fuzz_isolated, "MEMORY_LIMIT", fuzz_isolated._resident(os.getpid()) + MEMORY_LIMIT)

    def outcome(self, call: Any, folder: Path, **options: Any) -> str:
        return run_isolated(lambda _: Case([], call=call, writes=("out*",)), folder / "one", **options).outcome

    def test_accepted(self, tmp_path: Path) -> None:
        assert self.outcome(lambda: Path("out.txt").write_text("x"), tmp_path) == "accepted"

    def test_refused(self, tmp_path: Path) -> None:
        assert self.outcome(lambda: (print("why", file=sys.stderr), sys.exit(2)), tmp_path) == "refused"

    def test_refused_without_a_word(self, tmp_path: Path) -> None:
        assert self.outcome(lambda: sys.exit(2), tmp_path) == "traceback"

    def test_traceback(self, tmp_path: Path) -> None:
        assert self.outcome(lambda: 1 / 0, tmp_path) == "traceback"

    @pytest.mark.slow
    def test_hang(self, tmp_path: Path) -> None:
        assert self.outcome(lambda: [None for _ in iter(int, 1)], tmp_path, time_limit=1) == "hang"

    @pytest.mark.slow
    def test_memory(self, tmp_path: Path) -> None:
        assert self.outcome(lambda: b"x" * (5 * 2**28), tmp_path) == "above 1 GiB"

    @pytest.mark.slow
    @pytest.mark.parametrize("path", ["../outside.txt", "inside.txt", "/tmp/spanbox-fuzz-outside"])
    def test_outside(self, path: str, tmp_path: Path) -> None:
        def write() -> None:
            try:
                Path(path).touch()
            finally:
                Path(path).unlink(missing_ok=True)

        assert self.outcome(write, tmp_path) == "outside"
