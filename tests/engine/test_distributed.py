"""Several ranks give the gradient of one process: ragged spans and regions, any parallelism, any chunks."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from gloo_ranks import SCENARIOS, gradients, own_batch, run_scenarios, start
from spanbox.engine.distributed import Ranks
from spanbox.structures import PADDING_ID

pytestmark = pytest.mark.slow
WORLD_SIZES = (2, 3)


@pytest.fixture(scope="module", params=WORLD_SIZES, ids=lambda size: f"{size} ranks")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What every rank found in every scenario, and what they exchanged."""
    out = tmp_path_factory.mktemp("ranks")
    start(request.param, run_scenarios, out)
    return {
        name: [torch.load(out / f"{name} {rank}.pt", weights_only=True) for rank in range(request.param)]
        for name in (*SCENARIOS, "exchanged")
    }


@cache
def alone(name: str) -> dict[str, Tensor]:
    """Of one process, in one piece."""
    return gradients(replace(SCENARIOS[name], parallel="ddp", text=100, image=100), Ranks())


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_give_the_gradient_of_one_process(name: str, results: dict[str, list[dict[str, Any]]]) -> None:
    for found in results[name]:
        assert found.keys() == alone(name).keys()
        for parameter, expected in alone(name).items():
            tolerance, least = (1e-10, 1e-5) if expected.dtype == torch.float64 else (1e-4, 1e-2)
            scale = max(expected.abs().max().item(), least)
            torch.testing.assert_close(found[parameter], expected, rtol=0, atol=tolerance * scale, msg=parameter)


def test_gathered_ids_and_links_are_those_of_the_batch_made_in_one_piece(
    results: dict[str, list[dict[str, Any]]],
) -> None:
    """Ranks pad to their own longest lists; ids are padded with PADDING_ID, or padding would name things."""
    whole = own_batch(Ranks()).targets
    assert (whole.span_identity == PADDING_ID).any()
    for exchanged in results["exchanged"]:
        for name, expected in whole.named_tensors():
            assert torch.equal(exchanged["targets"][name], expected), name


def test_ranks_agree(results: dict[str, list[dict[str, Any]]]) -> None:
    for exchanged in results["exchanged"]:
        last = len(results["exchanged"]) - 1
        assert exchanged["largest"] == [last, -1.0]
        assert exchanged["everyones"] == [item for rank in range(1, last + 1) for item in ("rank", rank)]


def test_one_rank_talks_to_nobody() -> None:
    ranks = Ranks()
    targets = own_batch(ranks).targets
    assert (ranks.rank, ranks.world_size, ranks.is_main, ranks.is_sharded) == (0, 1, True, False)
    assert ranks.gather(targets) is targets
    assert ranks.largest(2.0, 3.0) == [2.0, 3.0]
    assert ranks.everyones([1]) == [1]
    ranks.wait_for_all()
    ranks.close()
