"""Benchmarks: the steps that are compared with others' training, converted weights, the split of a data set."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import miniature
from spanbox.data.manifest import Manifest
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

    @pytest.mark.slow
    def test_images_of_a_step(self, settings: dict[str, Any]) -> None:
        for name, whole in (("code", 4 * (1 + 1 + 16)), ("paper", 4 * (1 + 15 + 16))):
            _, images, _, crops = settings[name].read()
            assert len(images) + len(crops) == settings[name].images == whole
            assert settings[name].spans == 4

    @pytest.mark.slow
    def test_the_published_code_paints_all_boxes_into_one_copy(self, settings: dict[str, Any]) -> None:
        def black(images: torch.Tensor) -> float:
            return (images < 8).all(dim=1).float().mean().item()

        one, fifteen = (settings[name].read()[1][4:] for name in ("code", "paper"))
        assert black(one) > 2 * black(fifteen) > 0

    @pytest.mark.slow
    def test_the_recipe_contrasts_all_spans(self, settings: dict[str, Any]) -> None:
        batch: Batch = settings["recipe"].read()
        assert settings["recipe"].spans == 16
        assert batch.view_hidden is not None
        assert batch.view_hidden.shape[1] == 15
        assert batch.crops is not None
        assert settings["recipe"].images == pytest.approx(4 + (~batch.view_hidden).sum().item() / 9 + 16)

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_the_temperature_and_the_norms_have_no_weight_decay(self, load: Any) -> None:
        script = load("open_clip_loop")
        model = script.Clip(load("workload").make_model("small"), pad_id=0)
        plain, rest = script.make_optimiser(model, 1e-3).param_groups
        assert (plain["weight_decay"], rest["weight_decay"]) == (0.0, 0.2)
        assert any(parameter is model.logit_scale for parameter in plain["params"])
        assert all(parameter.ndim >= 2 for parameter in rest["params"])
        assert len(plain["params"]) + len(rest["params"]) == len(list(model.parameters()))


class TestEfficientNetLite:
    """The converted network against the lite network written out."""

    # kernel, stride, expansion, channels and repeats of each stage of lite0
    STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3))
    LAST = ((5, 2, 6, 192, 4), (3, 1, 6, 320, 1))

    def random_weights(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weights: dict[str, torch.Tensor] = {}

        def convolution(name: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
            spread = (inputs * kernel**2) ** -0.5
            shape = (outputs, inputs, kernel, kernel)
            weights[f"{name}.weight"] = spread * torch.randn(shape, generator=generator)
            for own, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                weights[f"{norm}.{own}"] = low + torch.rand(outputs, generator=generator)
            weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

        convolution("_conv_stem", "_bn0", 32, 3, 3)
        width, block = 32, 0
        for kernel, _, expansion, channels, repeats in self.STAGES + self.LAST:
            for _ in range(repeats):
                own = f"_blocks.{block}"
                if expansion > 1:
                    convolution(f"{own}._expand_conv", f"{own}._bn0", expansion * width, width, 1)
                convolution(f"{own}._depthwise_conv", f"{own}._bn1", expansion * width, 1, kernel)
                convolution(f"{own}._project_conv", f"{own}._bn2", channels, expansion * width, 1)
                width, block = channels, block + 1
        convolution("_conv_head", "_bn1", 1280, 320, 1)
        return weights | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}

    def slowly(self, weights: dict[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        def layer(states: torch.Tensor, name: str, norm: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
            weight = weights[f"{name}.weight"]
            missing = weight.shape[-1] - stride
            padded = F.pad(states, (missing // 2, missing - missing // 2) * 2)
            made = F.conv2d(padded, weight, stride=stride, groups=groups)
            own = [weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            return F.batch_norm(made, *own, eps=1e-3)

        states = F.relu6(layer(states, "_conv_stem", "_bn0", stride=2))
        block = 0
        for _, stage_stride, expansion, _, repeats in self.STAGES + self.LAST:
            for repeat in range(repeats):
                own, before, stride = f"_blocks.{block}", states, stage_stride if repeat == 0 else 1
                if expansion > 1:
                    states = F.relu6(layer(states, f"{own}._expand_conv", f"{own}._bn0"))
                groups = states.shape[1]
                states = F.relu6(layer(states, f"{own}._depthwise_conv", f"{own}._bn1", stride, groups))
                states = layer(states, f"{own}._project_conv", f"{own}._bn2")
                states, block = states + before if repeat else states, block + 1
        return F.relu6(layer(states, "_conv_head", "_bn1"))

    def test_same_features(self, load: Any) -> None:
        weights = self.random_weights()
        pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = load("efficientnet_lite").converted(weights)(pixels)
            expected = self.slowly(weights, pixels)
        assert expected.std() > 0.1
        torch.testing.assert_close(found.last_hidden_state, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.pooler_output, expected.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)


class TestCatalogue:
    def test_no_held_out_title_is_trained_on(self, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        catalogue = load("catalogue")
        monkeypatch.setattr(catalogue, "PAGES", {"train": 12, "test": 6, "val": 6})
        lines = []
        for number in range(120):
            Image.new("RGB", (6, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
            lines.append(json.dumps({"id": number, "image": f"{number}.png", "text": f"Thing {number // 2}"}))
        (tmp_path / "products.jsonl").write_text("\n".join(lines))
        catalogue.draw_pages(tmp_path, tmp_path / "pages")
        titles: dict[str, set[str]] = {}
        for split in catalogue.PAGES:
            records = Manifest(tmp_path / "pages" / f"{split}.jsonl")
            titles[split] = {record.text[e.start : e.end] for record in records for e in record.entities}
        assert titles["train"]
        assert not titles["train"] & (titles["test"] | titles["val"])
        assert titles["val"] & titles["test"]


class TestPlantedNoise:
    @pytest.mark.slow
    def test_what_is_planted_is_known_and_counted(self, load: Any, tmp_path: Path) -> None:
        """Verdicts that name every fault and nothing else have precision and recall 1."""
        planted = load("planted_noise")
        scenes = miniature.write_scenes(tmp_path / "scenes")
        noisy, truth = planted.plant(scenes / "train.jsonl", tmp_path, (0.25, 0.4, 0.3), seed=0)
        before = {record.id: record for record in Manifest(scenes / "train.jsonl")}
        kinds = [fault[0] for faults in truth.values() if faults != "swapped" for fault in faults.values()]
        assert list(truth.values()).count("swapped") == 8
        assert {"moved", "stripped"} <= set(kinds)
        lines = []
        for record in Manifest(noisy):
            faults, good = truth[record.id], before[record.id]
            links = []
            for place, entity in enumerate(record.entities if faults != "swapped" else ()):
                kind, right = faults.get(place, ("", ()))
                assert (entity == good.entities[place]) == (not kind)
                assert right == (good.entities[place].boxes if kind else ())
                verdict = {"moved": "another box", "stripped": "box found"}.get(
                    kind, "right" if entity.boxes else "no box"
                )
                proposed = [value / 64 for value in right[0]] if right else None
                links.append({"entity": place, "verdict": verdict, "box": entity.boxes or None, "proposed": proposed})
            lines.append(
                json.dumps({"id": record.id, "verdict": "wrong" if faults == "swapped" else "right", "links": links})
            )
        (tmp_path / "verdicts.jsonl").write_text("\n".join(lines))
        rows = planted.table(noisy, tmp_path / "verdicts.jsonl", truth)[2:]
        assert [row.split("|")[4:7] for row in rows] == [[" 1.000 ", " 1.000 ", " 0.00% "]] * 4
