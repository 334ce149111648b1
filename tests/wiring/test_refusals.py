"""What a run refuses before its first step."""

import json
import re
import shutil
from pathlib import Path

import pytest

import miniature
from spanbox.config import load_config
from spanbox.data.manifest import Manifest, write_manifest
from spanbox.data.tokenizer import train_tokenizer
from spanbox.errors import ConfigError, DataError
from spanbox.wiring import train


def test_without_data(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.train: is not set; give the path of a manifest"):
        train(miniature.demo_config(scenes, tmp_path / "run", "data.train=null"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_manifest(split: str, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such manifest"):
        train(miniature.demo_config(scenes, tmp_path / "run", f"data.{split}={tmp_path}/nothing.jsonl"))


def test_missing_image_folder(scenes: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(scenes, tmp_path / "scenes")
    shutil.rmtree(copied / "images" / "val")
    with pytest.raises(DataError, match=r"val\.jsonl: its first image is .* there is no folder .*images/val"):
        train(miniature.demo_config(copied, tmp_path / "run"))


def test_fewer_pairs_than_a_batch(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"a batch of 33 needs more pairs than the 32 of .*; set train\.batch_size=32 or less$",
    ):
        train(miniature.demo_config(scenes, tmp_path / "run", "train.batch_size=33"))


def test_fewer_pairs_than_any_batch(scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "scenes")) / "train.jsonl"
    write_manifest(data, list(Manifest(data))[:1])
    with pytest.raises(ConfigError, match=r"than the 1 of .*; 2 pairs are the fewest$"):
        train(miniature.demo_config(data.parent, tmp_path / "run"))


def test_more_tokens_than_positions(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.max_tokens: 65, but the text tower has positions for 64"):
        train(miniature.demo_config(scenes, tmp_path / "run", "data.max_tokens=65"))


def test_a_vocabulary_beyond_the_limit(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size: 1000000000000, at most 1000000 are trained"):
        train(miniature.demo_config(scenes, tmp_path / "run", f"model.text.architecture.vocab_size={10**12}"))


def test_a_tokenizer_of_another_model(scenes: Path, tmp_path: Path) -> None:
    towers = miniature.save_pretrained_towers(tmp_path, scenes / "train.jsonl")
    larger = train_tokenizer((record.text for record in Manifest(scenes / "train.jsonl")), 200)
    larger.save_pretrained(tmp_path / "bert")
    with pytest.raises(
        ConfigError, match=r"the tokenizer has the token 199, but the tower has embeddings for tokens below 128"
    ):
        train(
            load_config(
                "demo",
                [
                    *miniature.paths(scenes, tmp_path / "run"),
                    *miniature.SCHEDULE,
                    "model.text.architecture=null",
                    "model.vision.architecture=null",
                    *towers,
                ],
            )
        )


def test_unknown_metric(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'retrieval\.t2i\.r1'"):
        train(miniature.demo_config(scenes, tmp_path / "run", "train.best_metric=retrieval.t2i.r@1"))


class TestMetricThatIsNotMeasured:
    """It is refused before the first step, not at the first validation."""

    def refuse(self, scenes: Path, tmp_path: Path, metric: str, match: str, *overrides: str) -> None:
        settings = [f"data.val={scenes / 'val.jsonl'}", f"train.best_metric={metric}", *overrides]
        with pytest.raises(ConfigError, match=match):
            train(miniature.demo_config(scenes, tmp_path / "run", *settings))
        assert not (tmp_path / "run").exists()

    def test_in_context_without_fusion(self, scenes: Path, tmp_path: Path) -> None:
        self.refuse(scenes, tmp_path, "matching.in_context", r"train\.best_metric: .* needs model\.fusion\.kind")

    @pytest.mark.parametrize("override", ["model.fusion.kind=conditioned_pooling", "loss.fusion.parts_weight=0"])
    def test_in_context_with_a_fusion_that_does_not_train_it(self, override: str, scenes: Path, tmp_path: Path) -> None:
        fusion = [] if override.startswith("model.fusion.kind") else ["model.fusion.kind=gated"]
        self.refuse(scenes, tmp_path, "matching.in_context", "in_context", *fusion, override)

    def test_a_type_that_no_entity_has(self, scenes: Path, tmp_path: Path) -> None:
        name = "matching.within_image.type.车"
        self.refuse(scenes, tmp_path, name, r"no entity with a box has the type '车' in data\.val\. Types there: \w+")

    @pytest.mark.parametrize(
        ("metric", "match"),
        [
            ("matching.presence.auc", "no named entities in images with boxes"),
            ("matching.within_image.candidates.6+", r"such as matching\.within_image, "),
            ("matching.within_image.size.small", r"such as matching\.within_image, "),
            ("matching.within_image.hard", r"such as matching\.within_image, "),
            ("matching.within_image.links.certain", "no ambiguous entities with boxes"),
        ],
    )
    def test_what_no_entity_counts_for(self, metric: str, match: str, scenes: Path, tmp_path: Path) -> None:
        lines = [json.loads(line) for line in (scenes / "val.jsonl").read_text().splitlines()]
        for line in lines:
            line["objects"] = []
            line["entities"] = [entity | {"boxes": [[0, 0, 60, 60]]} for entity in line["entities"][:1]]
        path = scenes / "one-box.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        found = rf"^train\.best_metric: no entity of data\.val counts for '{re.escape(metric)}'.*{match}"
        self.refuse(scenes, tmp_path, metric, found, f"data.val={path}")

    @pytest.mark.parametrize("kind", ["images", "sentences", "spans", "regions"])
    def test_uniformity_over_a_single_image(self, kind: str, scenes: Path, tmp_path: Path) -> None:
        """Two captions of it; of spans and regions another image without entities does not help."""
        first, second, *_ = [json.loads(line) for line in (scenes / "val.jsonl").read_text().splitlines()]
        pairs, level = [first, first | {"id": "again"}], "coarse"
        if kind in ("spans", "regions"):
            level = "fine"
            pairs.append({key: second[key] for key in ("id", "text", "image")})
        path = scenes / "one-image.jsonl"
        path.write_text("\n".join(map(json.dumps, pairs)))
        metric = f"embedding.{level}.uniformity.{kind}"
        match = rf"^train\.best_metric: '{metric}' compares {kind} of different images, and data\.val has only"
        self.refuse(scenes, tmp_path, metric, match, f"data.val={path}")

    def test_images_of_which_none_can_be_read(self, scenes: Path, tmp_path: Path) -> None:
        lines = [
            json.loads(line) | {"image": "images/gone.png"} for line in (scenes / "val.jsonl").read_text().splitlines()
        ]
        path = scenes / "gone.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        settings = [f"data.val={path}", "train.best_metric=matching.within_image"]
        with pytest.raises(DataError, match=r"gone\.jsonl: none of its images can be read; `spanbox data check"):
            train(miniature.demo_config(scenes, tmp_path / "run", *settings))

    def test_boxes_that_the_limits_leave_out(self, scenes: Path, tmp_path: Path) -> None:
        coarse = ["data.max_regions=0", "loss.fine.weight=0"]
        self.refuse(scenes, tmp_path, "matching.within_image", "needs entities with boxes", *coarse)

    def test_boxes_where_there_are_none(self, scenes: Path, tmp_path: Path) -> None:
        lines = [json.loads(line) for line in (scenes / "val.jsonl").read_text().splitlines()]
        bare = [{key: line[key] for key in ("id", "text", "image")} for line in lines]
        path = scenes / "bare.jsonl"
        path.write_text("\n".join(map(json.dumps, bare)))
        match = r"^train\.best_metric: metric 'matching\.within_image' needs entities with boxes"
        self.refuse(scenes, tmp_path, "matching.within_image", match, f"data.val={path}")


def test_vocabulary_without_a_size(scenes: Path, tmp_path: Path) -> None:
    config = miniature.demo_config(scenes, tmp_path / "run", "model.text.architecture={model_type: bert}")
    with pytest.raises(ConfigError, match=r"model\.text\.architecture: needs vocab_size"):
        train(config)


def test_vocabulary_without_room_for_the_characters(scenes: Path, tmp_path: Path) -> None:
    config = miniature.demo_config(scenes, tmp_path / "run", "model.text.architecture.vocab_size=20")
    with pytest.raises(ConfigError, match=r"model\.text\.architecture\.vocab_size: 20 .* or more"):
        train(config)
