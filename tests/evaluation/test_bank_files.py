"""A bank on disk: what was written comes back, mapped, and anything else is made anew."""

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from banks import make_bank, random_bank
from full_disk import full_disk
from spanbox.errors import OutputError
from spanbox.evaluation.bank_files import FIELDS, open_bank, write_bank
from spanbox.evaluation.extract import FeatureBank
from spanbox.structures import Incident

FINGERPRINT = {"checkpoint": "step-000005", "manifest": [10, 20], "limits": {"max_spans": 16, "margin": 0.1}}
INCIDENTS = [Incident("broken image", "图-1", "cannot be read"), Incident("clipped box", "b", "[0.0, 1.0]")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evaluation" / "features-test"


def parts() -> list[FeatureBank]:
    """More rows than the header of an empty array shows digits for."""
    return [random_bank(0), make_bank(text=torch.ones(2, 3)), random_bank(1, pairs=120)]


def assert_equal_banks(first: FeatureBank, second: FeatureBank) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


class TestWriting:
    def test_gives_the_parts_joined(self, folder: Path) -> None:
        assert_equal_banks(write_bank(folder, FINGERPRINT, iter(parts()), []).bank, FeatureBank.cat(parts()))

    def test_one_part_is_held_at_a_time(self, folder: Path) -> None:
        made: list[weakref.ref[FeatureBank]] = []

        def counted() -> Iterator[FeatureBank]:
            for seed in range(4):
                assert all(bank() is None for bank in made[:-1])
                bank = random_bank(seed)
                made.append(weakref.ref(bank))
                yield bank

        write_bank(folder, FINGERPRINT, counted(), [])

    def test_incidents_met_on_the_way(self, folder: Path) -> None:
        met: list[Incident] = []

        def meeting() -> Iterator[FeatureBank]:
            met.append(INCIDENTS[0])
            yield random_bank(0)
            met.append(INCIDENTS[1])

        assert write_bank(folder, FINGERPRINT, meeting(), met).incidents == INCIDENTS
        stored = open_bank(folder, FINGERPRINT)
        assert stored is not None
        assert stored.incidents == INCIDENTS

    def test_without_spans_and_regions(self, folder: Path) -> None:
        bank = make_bank(pairs=2)
        assert_equal_banks(write_bank(folder, FINGERPRINT, [bank], []).bank, bank)

    def test_replaces_what_was_there(self, folder: Path) -> None:
        first = write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        (folder / "old_field.npy").write_bytes(b"")
        write_bank(folder, FINGERPRINT, [random_bank(1, pairs=2)], [])
        assert not (folder / "old_field.npy").exists()
        assert_equal_banks(first.bank, random_bank(0))  # which still is what it was for who has it open

    def test_plain_arrays_that_numpy_reads(self, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, parts(), [])
        expected = FeatureBank.cat(parts())
        assert {path.name for path in folder.iterdir()} == {"bank.json", *(f"{name}.npy" for name in FIELDS)}
        for name in FIELDS:
            array = np.load(folder / f"{name}.npy", allow_pickle=False)
            assert np.array_equal(array, getattr(expected, name).numpy()), name


class TestOpening:
    def test_is_mapped_and_not_read(self, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, parts(), [])
        stored = open_bank(folder, FINGERPRINT)
        assert stored is not None
        changed = np.memmap(folder / "text.npy", mode="r+", dtype=np.uint8)
        changed[-4:] = 0  # the last feature of the last text
        assert stored.bank.text[-1, -1] == 0

    def test_writing_to_it_changes_no_file(self, folder: Path) -> None:
        stored = write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        stored.bank.text.zero_()
        again = open_bank(folder, FINGERPRINT)
        assert again is not None
        assert_equal_banks(again.bank, random_bank(0))

    def test_tuples_in_a_fingerprint_are_lists_in_a_file(self, folder: Path) -> None:
        write_bank(folder, {"ratio": (0.1, 0.5)}, [random_bank(0)], [])
        assert open_bank(folder, {"ratio": (0.1, 0.5)}) is not None

    def test_nothing_there(self, folder: Path) -> None:
        assert open_bank(folder, FINGERPRINT) is None

    @pytest.mark.parametrize(
        "other",
        [
            {**FINGERPRINT, "checkpoint": "step-000006"},
            {**FINGERPRINT, "manifest": [10, 21]},
            {**FINGERPRINT, "limits": {"max_spans": 8, "margin": 0.1}},
            {},
        ],
    )
    def test_made_of_something_else(self, other: dict[str, object], folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        assert open_bank(folder, other) is None

    def test_one_that_was_cut_short_leaves_nothing_and_the_older_one_stays(self, folder: Path) -> None:
        def stopped() -> Iterator[FeatureBank]:
            yield random_bank(0)
            raise KeyboardInterrupt

        write_bank(folder, FINGERPRINT, [random_bank(1)], [])
        with pytest.raises(KeyboardInterrupt):
            write_bank(folder, {**FINGERPRINT, "checkpoint": "step-000009"}, stopped(), [])
        assert list(folder.parent.iterdir()) == [folder]
        stored = open_bank(folder, FINGERPRINT)
        assert stored is not None
        assert_equal_banks(stored.bank, random_bank(1))

    def test_more_incidents_than_are_read_again(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spanbox.evaluation.bank_files.LARGEST_DESCRIPTION", 300)
        stored = write_bank(folder, FINGERPRINT, [random_bank(0)], INCIDENTS * 9)
        assert stored.incidents == INCIDENTS * 9
        assert_equal_banks(stored.bank, random_bank(0))
        assert open_bank(folder, FINGERPRINT) is None

    def test_no_space_left(self, folder: Path) -> None:
        banks = [random_bank(seed, pairs=60) for seed in range(9)]
        with full_disk(4096), pytest.raises(OutputError, match=r"features-test: cannot be written \(File too large\)"):
            write_bank(folder, FINGERPRINT, banks, [])
        assert list(folder.parent.iterdir()) == []

    @pytest.mark.parametrize("name", ["text.npy", "links.npy", "bank.json"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "rubbish"])
    def test_damaged(self, name: str, damage: str, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes({"empty": b"", "cut off": content[:-5], "rubbish": b"\x80" * 200}[damage])
        assert open_bank(folder, FINGERPRINT) is None

    def test_a_field_of_another_bank(self, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        np.save(folder / "text.npy", np.zeros((3, 3), dtype=np.float32))
        assert open_bank(folder, FINGERPRINT) is None

    def test_pickles_are_refused(self, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        np.save(folder / "text.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        assert open_bank(folder, FINGERPRINT) is None

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "array"),
        [
            ("text", np.zeros((7, 2), np.float32)),  # of another width
            ("text", np.zeros((7, 3), np.int64)),
            ("text", np.zeros((6, 3), np.float32)),
            ("place", np.full(7, -1)),
            ("span_pair", np.full(14, 7)),
            ("region_pair", np.full(21, -1)),
            ("span_entity", np.full(14, -1)),
            ("span_shown", np.ones(14)),
            ("region_box", np.zeros((21, 3), np.float32)),
            ("links", np.full((1, 2), 2**40)),
            ("links", np.full((1, 2), -1)),
            ("links", np.zeros((1, 3), np.int64)),
            ("links", np.zeros(2, np.int64)),
        ],
    )
    def test_arrays_that_do_not_fit_together(self, name: str, array: np.ndarray, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        np.save(folder / f"{name}.npy", array)
        assert open_bank(folder, FINGERPRINT) is None

    def test_a_header_with_a_huge_shape(self, folder: Path) -> None:
        """Nothing is allocated for it."""
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        path = folder / "regions.npy"
        content = path.read_bytes()
        path.write_bytes(content.replace(b"(21, 3), }" + b" " * 12, b"(21000000000000, 3), }"))
        assert path.stat().st_size == len(content)
        assert open_bank(folder, FINGERPRINT) is None

    @pytest.mark.parametrize(
        "content", [b"[" * 100_000, b'{"version": 2, "x": ' + b"9" * 5000 + b"}", b"\xff", b"null"]
    )
    def test_a_hostile_description(self, content: bytes, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        (folder / "bank.json").write_bytes(content)
        assert open_bank(folder, FINGERPRINT) is None

    @pytest.mark.parametrize(
        "change", [{"version": 0}, {"incidents": [["too", "few"]]}, {"incidents": [[1, 2, 3]]}, {"incidents": None}]
    )
    def test_a_description_that_says_something_else(self, change: dict[str, object], folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        description = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
        (folder / "bank.json").write_text(json.dumps(description | change), encoding="utf-8")
        assert open_bank(folder, FINGERPRINT) is None

    def test_a_list_for_a_description(self, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [random_bank(0)], [])
        (folder / "bank.json").write_text("[]", encoding="utf-8")
        assert open_bank(folder, FINGERPRINT) is None


def test_parts_of_different_banks_are_no_parts(tmp_path: Path) -> None:
    other = replace(random_bank(1), text=torch.rand(7, 5))
    with pytest.raises(AssertionError):
        write_bank(tmp_path / "bank", FINGERPRINT, [random_bank(0), other], [])


class TestFusion:
    """Tokens, patches and parts in context, which a model without fusion does not have."""

    def bank(self, seed: int = 0) -> FeatureBank:
        bank = random_bank(seed, pairs=4)
        generator = torch.Generator().manual_seed(seed)
        return replace(
            bank,
            spans_in_context=torch.randn(len(bank.spans), 8, generator=generator),
            regions_in_context=torch.randn(len(bank.regions), 8, generator=generator),
            tokens=torch.randn(9, 8, generator=generator).half(),
            token_count=torch.tensor([2, 0, 3, 4]),
            patches=torch.randn(4, 6, 8, generator=generator).half(),
            content=torch.tensor([(32, 16)] * 4),
        )

    def test_come_back_in_half_precision(self, folder: Path) -> None:
        expected = FeatureBank.cat([self.bank(0), self.bank(1)])
        found = write_bank(folder, FINGERPRINT, [self.bank(0), self.bank(1)], []).bank
        again = open_bank(folder, FINGERPRINT)
        assert again is not None
        for bank in (found, again.bank):
            assert bank.present() == expected.present()
            for name in expected.present():
                assert torch.equal(getattr(bank, name), getattr(expected, name)), name

    @pytest.mark.parametrize("missing", ["tokens", "token_count", "patches", "spans_in_context", "regions_in_context"])
    def test_a_part_that_is_missing_makes_it_useless(self, missing: str, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [self.bank()], [])
        (folder / f"{missing}.npy").unlink()
        assert open_bank(folder, FINGERPRINT) is None

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "array"),
        [
            ("token_count", np.array([2, 0, 3, 5])),
            ("token_count", np.array([2, -1, 4, 4])),
            ("token_count", np.array([2, 7])),
            ("tokens", np.zeros((9, 7), dtype=np.float16)),
            ("tokens", np.zeros((9, 8), dtype=np.float32)),
            ("patches", np.zeros((3, 6, 8), dtype=np.float16)),
            ("patches", np.zeros((4, 8), dtype=np.float16)),
            ("spans_in_context", np.zeros((1, 8), dtype=np.float32)),
            ("content", np.ones((3, 2), dtype=np.int64)),
            ("content", np.ones((4, 4), dtype=np.int64)),
            ("content", np.zeros((4, 2), dtype=np.int64)),
        ],
    )
    def test_arrays_that_do_not_fit_make_it_useless(self, name: str, array: object, folder: Path) -> None:
        write_bank(folder, FINGERPRINT, [self.bank()], [])
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
        assert open_bank(folder, FINGERPRINT) is None
