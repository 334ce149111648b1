"""Several jobs share the cores that this process may use."""

import pytest

from spanbox import processes
from spanbox.processes import available_cores, threads_of_each


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(("at_once", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (100, 1)])
def test_each_has_its_share(at_once: int, threads: int) -> None:
    assert threads_of_each(at_once) == threads


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("3", 3), ("4", 4), ("64", 4), ("0", 4), ("", 4), ("2,1", 4)])
def test_a_number_of_threads_that_the_user_set_is_the_most(
    given: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_of_each(2) == threads


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
