"""The memory plan of a config."""

import pytest

import miniature
from spanbox.config import load_config
from spanbox.engine.memory import CPU_BUDGET
from spanbox.wiring import plan
from spanbox.wiring.building import build_model, sample_limits


def test_of_the_demo_without_its_data() -> None:
    made = plan(load_config("demo", miniature.TOWERS))
    assert made.parameters == made.trained > 10_000
    plain, checkpointed = (
        sum(tower.chunk.row for tower in memory.towers.values()) for memory in (made.plain, made.checkpointed)
    )
    assert plain > checkpointed > 0
    chunked, whole = ({"text": size, "image": size} for size in (8, 64))
    assert made.plain.peak(64, chunked) < made.plain.peak(64, whole)
    assert made.budget == CPU_BUDGET
    assert set(made.seconds) == {"float32", "bfloat16"}


def test_frozen_and_low_rank_towers_need_less() -> None:
    made = plan(load_config("demo", [*miniature.TOWERS, "model.text.freeze=all", "model.vision.lora.rank=2"]))
    whole = plan(load_config("demo", miniature.TOWERS))
    assert made.trained < 0.5 * whole.trained
    assert made.plain.state < whole.plain.state


def test_views_cost_what_they_leave_visible() -> None:
    views = ["data.views.count=4", "data.views.fill=drop"]
    none, some, many = (
        plan(load_config("demo", [*miniature.TOWERS, *more])).plain
        for more in ([], [*views, "data.views.ratio=0.75"], [*views, "data.views.ratio=0.25"])
    )
    assert [memory.towers["image"].rows for memory in (none, some, many)] == [1, 5, 5]
    chunks = {"text": 1000, "image": 4}
    assert none.peak(64, chunks) <= some.peak(64, chunks) <= many.peak(64, chunks)


@pytest.mark.parametrize("unused", ["form: none", "form: margin, positives: false, weight: 0"])
def test_views_that_no_loss_uses_are_neither_drawn_nor_encoded(unused: str) -> None:
    config = load_config("demo", [*miniature.TOWERS, "data.views.count=4", f"loss.views={{{unused}}}"])
    assert plan(config).plain.towers["image"].rows == 1
    assert sample_limits(config, build_model(config.model), training=True).views is None
