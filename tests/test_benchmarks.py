"""The benchmarks that compare with others' training: the steps they measure do what they claim."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spanbox.data.tokenizer import train_tokenizer
from spanbox.structures import Batch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


class TestPublished:
    @pytest.fixture
    def settings(self, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        published = load("published")
        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        size = {"text": tiny, "vision": {**tiny, "image_size": 48}}
        monkeypatch.setitem(load("workload").SIZES, "tiny", size)
        manifest = published.write_pairs(tmp_path, 4)
        tokenizer = train_tokenizer((record.text for record in manifest), 200)
        return {
            "code": published.published_setting("tiny", tokenizer, manifest, 1, "cpu"),
            "paper": published.published_setting("tiny", tokenizer, manifest, 15, "cpu"),
            "recipe": published.recipe_setting("tiny", "crop", tokenizer, manifest, tmp_path, "cpu"),
        }

    def test_images_of_a_step(self, settings: dict[str, Any]) -> None:
        for name, whole in (("code", 4 * (1 + 1 + 16)), ("paper", 4 * (1 + 15 + 16))):
            _, images, _, crops = settings[name].read()
            assert len(images) + len(crops) == settings[name].images == whole
            assert settings[name].spans == 4

    def test_the_published_code_paints_all_boxes_into_one_copy(self, settings: dict[str, Any]) -> None:
        def black(images: torch.Tensor) -> float:
            return (images < 8).all(dim=1).float().mean().item()

        one, fifteen = (settings[name].read()[1][4:] for name in ("code", "paper"))
        assert black(one) > 2 * black(fifteen) > 0

    def test_the_recipe_contrasts_all_spans(self, settings: dict[str, Any]) -> None:
        batch: Batch = settings["recipe"].read()
        assert settings["recipe"].spans == 16
        assert batch.view_hidden is not None
        assert batch.view_hidden.shape[1] == 15
        assert batch.crops is not None
        assert settings["recipe"].images == pytest.approx(4 + (~batch.view_hidden).sum().item() / 9 + 16)

    def test_every_step_learns(self, settings: dict[str, Any]) -> None:
        for name in ("code", "paper"):
            data = settings[name].read()
            losses = [settings[name].step(data).item() for _ in range(8)]
            assert losses[-1] < losses[0]
        losses = settings["recipe"].step(settings["recipe"].read())
        assert losses.terms["coarse"] > 0
        assert losses.terms["fine"] > 0


class TestOpenClipLoop:
    def test_without_open_clip_it_ends_with_one_sentence(self, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        script = load("open_clip_loop")
        for name in ("open_clip", "open_clip_train"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(script, "stand_in_for_torchvision", lambda: None)
        with pytest.raises(SystemExit, match=r"^this benchmark needs open_clip .*`pip install open_clip_torch`$"):
            script.import_open_clip()

    def test_the_temperature_and_the_norms_have_no_weight_decay(self, load: Any) -> None:
        script = load("open_clip_loop")
        model = script.Clip(load("workload").make_model("small"), pad_id=0)
        plain, rest = script.make_optimiser(model, 1e-3).param_groups
        assert (plain["weight_decay"], rest["weight_decay"]) == (0.0, 0.2)
        assert any(parameter is model.logit_scale for parameter in plain["params"])
        assert all(parameter.ndim >= 2 for parameter in rest["params"])
        assert len(plain["params"]) + len(rest["params"]) == len(list(model.parameters()))
