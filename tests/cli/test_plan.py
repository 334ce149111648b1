"""`spanbox plan`: what it prints."""

import miniature
from command import Command
from spanbox.cli.plan import precision_advice


def test_prints_memory_and_both_precisions(spanbox: Command) -> None:
    done = spanbox("plan", "demo", *miniature.TOWERS)
    assert done.code == 0
    assert "exact batches in 8.0 GiB" in done.out
    assert "in float32" in done.out
    assert "in bfloat16" in done.out


def test_advises_bfloat16_only_where_it_is_clearly_faster() -> None:
    faster, slower, same = (precision_advice({"float32": 0.02, "bfloat16": 0.02 * ratio}) for ratio in (0.8, 2, 0.95))
    assert "20.0 ms a pair in float32, 16.0 ms in bfloat16 (0.80x); bfloat16 is faster" in faster
    assert "set train.precision=bfloat16" in faster
    assert "2.00x); keep float32" in slower
    assert "keep float32" in same
