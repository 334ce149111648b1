"""`spanbox plan`: what it prints."""

import miniature
from command import Command
from spanbox.cli.plan import times


def test_prints_memory_and_both_precisions(spanbox: Command) -> None:
    done = spanbox("plan", "demo", *miniature.TOWERS)
    assert done.code == 0
    assert "exact batches in 8.0 GiB" in done.out
    assert "in float32" in done.out
    assert "in bfloat16" in done.out


def test_advises_the_other_precision_only_where_it_is_clearly_faster() -> None:
    faster, slower, same = ({"float32": 0.02, "bfloat16": 0.02 * ratio} for ratio in (0.8, 2, 0.95))
    said = times(faster, "float32")
    assert "20.0 ms a pair in float32, 16.0 ms in bfloat16 (0.80x); trained in float32" in said
    assert "train.precision=bfloat16" in said
    assert "train.precision=float32" in times(slower, "bfloat16")
    for seconds, chosen in ((faster, "bfloat16"), (slower, "float32"), (same, "float32")):
        assert times(seconds, chosen).endswith(f"trained in {chosen}")
