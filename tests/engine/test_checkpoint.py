"""Checkpoints are complete or not there, and everything that is wrong with one is said."""

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from full_disk import full_disk
from spanbox.data.tokenizer import train_tokenizer
from spanbox.engine import checkpoint
from spanbox.engine.checkpoint import (
    CheckpointFiles,
    CheckpointStore,
    find_checkpoint,
    last_checkpoint,
    load_trainer_state,
    load_weights,
    named_weights,
)
from spanbox.errors import CheckpointError, OutputError
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder, ModelSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower

FILES = {"model.safetensors", "config.yaml", "architecture.json", "preprocessing.json", "tokenizer", "trainer.pt"}


def make_model(dim: int = 8, **text: Any) -> DualEncoder:
    settings = ModelSettings(
        text=TowerSettings(architecture=tiny.bert(**{"num_hidden_layers": 1, **text})),
        vision=VisionTowerSettings(architecture=tiny.vit(num_hidden_layers=1)),
        dim=dim,
    )
    towers = build_text_tower(settings.text), build_vision_tower(settings.vision)
    return DualEncoder(*towers, Preprocessing(image_size=tiny.IMAGE_SIZE), settings)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return make_model()


@pytest.fixture(scope="module")
def objective() -> Objective:
    return Objective(LossSettings())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["a red kite above the harbour"], 64)


@pytest.fixture
def store(tmp_path: Path, tokenizer: Any, model: DualEncoder) -> CheckpointStore:
    architecture = {"text": model.text.architecture(), "vision": model.vision.architecture()}
    files = CheckpointFiles("seed: 0\n", tokenizer, architecture, model.preprocessing)
    return CheckpointStore(tmp_path / "checkpoints", files, keep=2)


@pytest.fixture
def save(store: CheckpointStore, model: DualEncoder, objective: Objective) -> Any:
    def save_step(step: int, *, best: bool = False) -> Path:
        return store.save(step, named_weights(model, objective), {"step": step}, best=best)

    return save_step


def steps(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.glob("step-*"))


def target(store: CheckpointStore, name: str) -> str:
    return (store.folder / name).resolve(strict=True).name


class TestSaving:
    def test_holds_everything_and_nothing_else(self, store: CheckpointStore, save: Any) -> None:
        folder = save(500)
        assert folder == store.folder / "step-000500"
        assert {path.name for path in folder.iterdir()} == FILES
        assert (folder / "config.yaml").read_text() == "seed: 0\n"
        assert {path.name for path in store.folder.iterdir()} == {"step-000500", "last"}

    def test_weights_come_back(self, save: Any, model: DualEncoder, objective: Objective) -> None:
        folder = save(1)
        other, other_objective = make_model(), Objective(LossSettings())
        with torch.no_grad():
            for parameter in [*other.parameters(), *other_objective.parameters()]:
                parameter.add_(1.0)
        load_weights(folder, other, other_objective)
        for mine, theirs in ((model, other), (objective, other_objective)):
            assert mine.state_dict().keys() == theirs.state_dict().keys()
            assert all(torch.equal(mine.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())

    def test_links_are_relative_so_that_a_run_may_be_moved(self, store: CheckpointStore, save: Any) -> None:
        save(1, best=True)
        moved = store.folder.with_name("moved")
        store.folder.rename(moved)
        assert (moved / "best" / "model.safetensors").is_file()
        assert (moved / "last" / "model.safetensors").is_file()

    def test_keeps_the_newest_and_the_best(self, store: CheckpointStore, save: Any) -> None:
        for step in range(1, 6):
            save(step, best=step == 2)
        assert steps(store) == ["step-000002", "step-000004", "step-000005"]
        assert (target(store, "best"), target(store, "last")) == ("step-000002", "step-000005")

    def test_a_new_best_lets_the_old_one_go(self, store: CheckpointStore, save: Any) -> None:
        for step in range(1, 6):
            save(step, best=step in (1, 4))
        assert steps(store) == ["step-000004", "step-000005"]
        assert target(store, "best") == "step-000004"

    def test_newest_by_number_beyond_a_million_steps(self, store: CheckpointStore, save: Any) -> None:
        for step in (999_998, 999_999, 1_000_000, 1_000_001):
            save(step)
        assert steps(store) == ["step-1000000", "step-1000001"]

    def test_the_best_of_steps_that_are_trained_again_is_best_no_longer(
        self, store: CheckpointStore, save: Any
    ) -> None:
        for step in (1, 2):
            save(step, best=True)
        (store.folder / "last").unlink()
        (store.folder / "last").symlink_to("step-000001")
        save(2)
        assert not (store.folder / "best").is_symlink()
        assert find_checkpoint(store.folder.parent).name == "step-000002"
        save(3, best=True)
        assert target(store, "best") == "step-000003"

    def test_copies_under_other_names_are_left_alone(self, store: CheckpointStore, save: Any) -> None:
        for step, copy in ((1, "step-000001-good"), (2, "step-000002 (copy)"), (3, "step-000003.old")):
            shutil.copytree(save(step), store.folder / copy)
        save(4)
        (store.folder / "last").unlink()
        assert steps(store) == [
            "step-000001-good",
            "step-000002 (copy)",
            "step-000003",
            "step-000003.old",
            "step-000004",
        ]
        assert last_checkpoint(store.folder) == store.folder / "step-000004"

    def test_the_newest_is_not_written_again_since_it_would_be_missing_meanwhile(
        self, store: CheckpointStore, save: Any
    ) -> None:
        written = save(3).stat().st_ino
        assert save(3, best=True).stat().st_ino == written
        assert steps(store) == ["step-000003"]
        assert (target(store, "best"), target(store, "last")) == ("step-000003", "step-000003")

    def test_what_a_killed_run_left_beyond_the_last_is_replaced(self, store: CheckpointStore, save: Any) -> None:
        save(3)
        stray = store.folder / "step-000004"
        stray.mkdir()
        (stray / "stray").write_text("")
        assert {path.name for path in save(4).iterdir()} == FILES


class TestCrashWhileSaving:
    """Each test stops `save` somewhere; what was there before must still be there, and no half must be readable."""

    @pytest.mark.parametrize("culprit", ["save_file", "torch.save", "json.dumps"])
    def test_leaves_the_old_ones(
        self, culprit: str, store: CheckpointStore, save: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(1, best=True)

        def crash(*arguments: object, **options: object) -> None:
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"{checkpoint.__name__}.{culprit}", crash)
            with pytest.raises(OutputError, match="no space"):
                save(2, best=True)
        assert steps(store) == ["step-000001"]
        assert (target(store, "best"), target(store, "last")) == ("step-000001", "step-000001")
        assert find_checkpoint(store.folder.parent).name == "step-000001"

    def test_the_half_that_is_left_is_swept_up_by_the_next_save(
        self, store: CheckpointStore, save: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*arguments: object, **options: object) -> None:
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", crash)
            with pytest.raises(OutputError, match="no space"):
                save(2)
        save(2)
        assert {path.name for path in store.folder.iterdir()} == {"step-000002", "last"}

    def test_the_best_is_never_older_than_the_state_that_remembers_it(
        self, store: CheckpointStore, save: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A crash between the two links: resuming from `last` finds the new best again, not the other way round."""
        save(1, best=True)
        original = CheckpointStore._point

        def point_and_crash(self: CheckpointStore, name: str, target: Path) -> None:
            original(self, name, target)
            raise OSError("killed")

        monkeypatch.setattr(CheckpointStore, "_point", point_and_crash)
        with pytest.raises(OutputError, match="killed"):
            save(2, best=True)
        assert (target(store, "best"), target(store, "last")) == ("step-000002", "step-000001")


class TestFullDisk:
    def test_weights_do_not_fit(self, store: CheckpointStore, save: Any) -> None:
        save(1, best=True)
        before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
        with full_disk(5000), pytest.raises(OutputError, match=r"step-000002: .*cannot be written.*, then resume"):
            save(2, best=True)
        assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before

    def test_training_state_does_not_fit(
        self, store: CheckpointStore, model: DualEncoder, objective: Objective
    ) -> None:
        """Nor is there an earlier checkpoint to resume from."""
        with full_disk(5000), pytest.raises(OutputError, match=r"step-000002: .*, then start again with run.overwrite"):
            store.save(2, {"small": torch.zeros(4)}, {"large": torch.rand(10_000)}, best=False)
        assert list(store.folder.iterdir()) == []


class TestWithoutLinks:
    """Network drives, exFAT, and copies of a run that followed its links or lost them."""

    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(Path, "symlink_to", refuse)

    def test_pointers_are_files_with_the_name(self, store: CheckpointStore, save: Any) -> None:
        for step in range(1, 5):
            save(step, best=step == 2)
        assert (store.folder / "best").read_text() == "step-000002"
        assert (store.folder / "last").read_text() == "step-000004"
        assert steps(store) == ["step-000002", "step-000003", "step-000004"]
        assert find_checkpoint(store.folder.parent).name == "step-000002"
        assert find_checkpoint(store.folder / "last").name == "step-000004"
        assert last_checkpoint(store.folder) == store.folder / "step-000004"

    @pytest.mark.parametrize("content", ["", "nothing", "..", "/etc", "step-000001/model.safetensors", "x" * 5000])
    def test_a_damaged_pointer_falls_back_on_the_newest_step(
        self, content: str, store: CheckpointStore, save: Any
    ) -> None:
        for step in (1, 2):
            save(step, best=step == 1)
        for name in ("best", "last"):
            (store.folder / name).write_text(content)
        assert find_checkpoint(store.folder.parent).name == "step-000002"
        assert last_checkpoint(store.folder) == store.folder / "step-000002"


class TestCopiedRuns:
    def test_a_copy_that_followed_the_links_is_used_and_saved_into(self, store: CheckpointStore, save: Any) -> None:
        for step in (1, 2):
            save(step, best=step == 1)
        copy = shutil.copytree(store.folder, store.folder.with_name("copy"))
        assert not (copy / "last").is_symlink()
        copied = CheckpointStore(copy, store.files, keep=2)
        assert find_checkpoint(copy / "best") == (copy / "best").resolve()
        assert last_checkpoint(copy) == copy / "last"
        copied.save(3, load_file(store.folder / "step-000002" / "model.safetensors"), {"step": 3}, best=True)
        assert {path.name for path in copy.iterdir()} == {"step-000002", "step-000003", "best", "last"}
        assert (target(copied, "best"), target(copied, "last")) == ("step-000003", "step-000003")

    def test_a_copy_that_lost_its_links_goes_on_from_the_newest_complete_step(
        self, store: CheckpointStore, save: Any
    ) -> None:
        for step in (1, 2):
            save(step, best=step == 1)
        for name in ("best", "last"):
            (store.folder / name).unlink()
        stray = store.folder / "step-000009"
        stray.mkdir()
        (stray / "model.safetensors").write_bytes(b"half a copy")
        assert last_checkpoint(store.folder) == store.folder / "step-000002"
        assert find_checkpoint(store.folder.parent).name == "step-000002"
        written = (store.folder / "step-000002" / "model.safetensors").stat().st_ino
        save(2)
        assert (store.folder / "step-000002" / "model.safetensors").stat().st_ino == written, "it was never missing"

    def test_a_dangling_link_falls_back_on_the_newest_step(self, store: CheckpointStore, save: Any) -> None:
        for step in (1, 2):
            save(step, best=True)
        for name in ("best", "last"):
            (store.folder / name).unlink()
            (store.folder / name).symlink_to("step-000007")
        assert find_checkpoint(store.folder.parent).name == "step-000002"
        assert last_checkpoint(store.folder) == store.folder / "step-000002"

    def test_no_checkpoints(self, tmp_path: Path) -> None:
        assert last_checkpoint(tmp_path / "nothing") is None


class TestFinding:
    def test_itself_a_link_a_run(self, store: CheckpointStore, save: Any) -> None:
        for step in (1, 2):
            save(step, best=step == 1)
        run = store.folder.parent
        assert find_checkpoint(store.folder / "step-000002").name == "step-000002"
        assert find_checkpoint(store.folder / "last").name == "step-000002"
        assert find_checkpoint(run).name == "step-000001"

    def test_the_last_one_where_none_was_best(self, store: CheckpointStore, save: Any) -> None:
        save(1)
        assert find_checkpoint(store.folder.parent).name == "step-000001"

    @pytest.mark.parametrize("name", ["", "nothing-here"])
    def test_none(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint here; expected a run folder"):
            find_checkpoint(tmp_path / name)


class TestLoading:
    def test_of_another_architecture_names_the_first_differences(self, save: Any, objective: Objective) -> None:
        folder = save(1)
        with pytest.raises(CheckpointError) as raised:
            load_weights(folder, make_model(dim=12, intermediate_size=40), objective)
        message = str(raised.value)
        assert message.startswith(f"{folder}/model.safetensors: holds a model of another architecture")
        assert "model.image_projection.bias is (8,) in the checkpoint and (12,) in the model" in message
        assert "intermediate.dense.bias is (48,) in the checkpoint and (40,) in the model" not in message  # beyond five
        assert "\n  and 6 more\n" in message
        assert "Use the config.yaml beside it" in message

    def test_with_more_layers(self, save: Any, objective: Objective) -> None:
        folder = save(1)
        with pytest.raises(CheckpointError, match=r"model\.text\.model\.encoder\.layer\.1\..* is in the model only"):
            load_weights(folder, make_model(num_hidden_layers=2), objective)

    def test_a_refused_checkpoint_leaves_the_model_as_it_was(self, save: Any, objective: Objective) -> None:
        folder = save(1)
        other = make_model(dim=12)
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(CheckpointError):
            load_weights(folder, other, objective)
        assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_cut_off_weights(self, share: float, save: Any, model: DualEncoder, objective: Objective) -> None:
        path = save(1) / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
            load_weights(path.parent, model, objective)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_weights_that_are_not_finite(
        self, value: float, save: Any, model: DualEncoder, objective: Objective
    ) -> None:
        """With them every score would be NaN, and an evaluation a table of zeros."""
        path = save(1) / "model.safetensors"
        weights = load_file(path)
        name = sorted(weights)[0]
        weights[name].view(-1)[-1] = value
        save_file(weights, path)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: {re.escape(name)} has numbers that are not"):
            load_weights(path.parent, model, objective)

    def test_git_lfs_pointers(self, save: Any, model: DualEncoder, objective: Objective) -> None:
        """As a run has them that was cloned without Git LFS."""
        folder = save(1)
        for name in ("model.safetensors", "trainer.pt"):
            (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
        with pytest.raises(CheckpointError, match=r"model\.safetensors: .* a Git LFS pointer, .* run git lfs pull"):
            load_weights(folder, model, objective)
        with pytest.raises(CheckpointError, match=r"trainer\.pt: .* a Git LFS pointer, .* run git lfs pull"):
            load_trainer_state(folder)

    def test_weights_are_what_the_tensors_are(self, save: Any, model: DualEncoder, objective: Objective) -> None:
        saved = load_file(save(1) / "model.safetensors")
        named = {f"model.{name}" for name in model.state_dict()}
        assert saved.keys() == named | {f"objective.{name}" for name in objective.state_dict()}

    def test_training_state_executes_nothing(self, save: Any) -> None:
        folder = save(7)
        assert torch.load(folder / "trainer.pt", weights_only=True) == {"step": 7}
        assert load_trainer_state(folder) == {"step": 7}

    def test_code_in_the_training_state_is_refused(self, save: Any, tmp_path: Path) -> None:
        folder = save(1)
        torch.save({"step": Path("not a tensor")}, folder / "trainer.pt")
        with pytest.raises(CheckpointError, match=r"trainer\.pt: cannot be read"):
            load_trainer_state(folder)

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_cut_off_training_state(self, share: float, save: Any) -> None:
        path = save(1) / "trainer.pt"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(CheckpointError, match=r"trainer\.pt: cannot be read"):
            load_trainer_state(path.parent)

    @pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt"])
    @pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, os.mkfifo], ids=["none", "folder", "pipe"])
    def test_no_regular_file(self, name: str, make: Any, save: Any, model: DualEncoder, objective: Objective) -> None:
        """A named pipe would be waited for."""
        folder = save(1)
        (folder / name).unlink()
        make(folder / name)
        load = {
            "model.safetensors": lambda: load_weights(folder, model, objective),
            "trainer.pt": lambda: load_trainer_state(folder),
        }
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read"):
            load[name]()
