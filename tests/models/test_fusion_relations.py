"""Fusion finds the object that a word names, and learns where it has to be."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_batches import PAIR_KINDS
from spanbox.models.fusion import build_fusion, grid_waves, waves
from spanbox.models.fusion_settings import FusionSettings

DIM, SIDE = 16, 3
every_pair_kind = pytest.mark.parametrize("kind", PAIR_KINDS)


def make_fusion(kind: str) -> Any:
    torch.manual_seed(0)
    settings = FusionSettings.model_validate({"kind": kind, "layers": 1, "heads": 2, "width": 32})
    return build_fusion(settings, patch_width=8, patches=SIDE**2, dim=DIM)


@every_pair_kind
def test_before_training_a_token_attends_to_the_patch_with_its_feature(kind: str) -> None:
    fusion, features = make_fusion(kind), torch.randn(SIDE**2, DIM)
    places = torch.tensor([4, 0, 8])
    tokens = fusion.states_of_tokens(features[places][None], torch.ones(1, 3, dtype=torch.bool))
    patches = fusion.states_of_patches(torch.randn(1, SIDE, SIDE, 8), features.reshape(1, SIDE, SIDE, DIM))
    (seen,) = fusion.tokens.seen(tokens, None, patches, None)
    assert (seen.attention[0].argmax(dim=1) == places).all()
    assert (seen.attention[0].amax(dim=1) > 0.9).all()


def test_every_place_of_a_grid_has_an_encoding_of_its_own() -> None:
    encodings = grid_waves(32, 64, like=torch.zeros(())).flatten(0, 1)
    apart = torch.cdist(encodings, encodings) + 10 * torch.eye(len(encodings))
    assert apart.min() > 0.5


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_waves_are_sines_then_cosines(width: int) -> None:
    found = waves(5, width, like=torch.zeros((), dtype=torch.float64))
    assert found.shape == (5, width)
    torch.testing.assert_close(found[:, 0], torch.arange(5.0, dtype=torch.float64).sin())


class Scenes:
    """Two objects in a grid, and the sentence "A over B": who is above shows in the order of the tokens alone."""

    def __init__(self, seed: int) -> None:
        self.objects = torch.randn(12, DIM, generator=torch.Generator().manual_seed(99))
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, pairs: int) -> tuple[Tensor, Tensor]:
        """Objects (pairs, 2) of the sentence, in its order, and their places (pairs, 2), the first one above."""
        objects = torch.rand(pairs, 12, generator=self.generator).argsort(dim=1)[:, :2]
        columns = torch.randint(SIDE, (pairs, 2), generator=self.generator)
        rows = torch.tensor([0, 2]).expand(pairs, 2)
        return objects, rows * SIDE + columns

    def states(self, fusion: Any, objects: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """States of the tokens (n, 2, F) and of the patches (n, 9, F)."""
        grid = torch.zeros(len(objects), SIDE**2, DIM)
        grid = grid.scatter(1, places[:, :, None].expand(-1, -1, DIM), self.objects[objects])
        nothing = torch.zeros(len(objects), SIDE, SIDE, 8)
        tokens = fusion.states_of_tokens(self.objects[objects], torch.ones_like(objects, dtype=torch.bool))
        return tokens, fusion.states_of_patches(nothing, grid.reshape(-1, SIDE, SIDE, DIM))


@pytest.mark.slow
@every_pair_kind
def test_which_of_two_objects_is_above_is_learned_from_pairs_that_differ_in_nothing_else(kind: str) -> None:
    fusion, mask = make_fusion(kind), torch.ones(64, 2, dtype=torch.bool)
    optimiser = torch.optim.Adam(fusion.parameters(), lr=3e-3)

    def margin(scenes: Scenes) -> Tensor:
        """Score of each sentence with its scene, less that with the scene in which the objects changed places."""
        objects, places = scenes.draw(64)
        tokens, own = scenes.states(fusion, objects, places)
        _, swapped = scenes.states(fusion, objects, places.flip(1))
        same = torch.zeros(64, 1)  # the towers tell the scenes of a pair apart no better than this
        first, second = (fusion.scores(same, tokens, mask, same, patches) for patches in (own, swapped))
        difference: Tensor = first - second
        return difference

    training = Scenes(1)
    for _ in range(150):
        optimiser.zero_grad()
        F.softplus(-15 * margin(training)).mean().backward()
        optimiser.step()
    with torch.no_grad():
        right = (margin(Scenes(2)) > 0).float().mean()
    assert right > 0.95
