"""Every family of towers: states, pooling, padding, gradients, positions of patches, rebuilding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, SiglipTextConfig, SiglipTextModel

import tiny
from spanbox.errors import ConfigError
from spanbox.models.families import TEXT_FAMILIES, VISION_FAMILIES
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import TextTower, VisionTower, build_text_tower, build_vision_tower


def cases(architectures: list[tiny.Architecture], families: dict[str, Any]) -> list[Any]:
    """Each family with each of its pools."""
    return [
        pytest.param(architecture, pool, id=f"{architecture['model_type']}-{pool}")
        for architecture in architectures
        for pool in families[architecture["model_type"]].pools
    ]


def types(architectures: list[tiny.Architecture]) -> list[Any]:
    return [pytest.param(architecture, id=architecture["model_type"]) for architecture in architectures]


TEXT = types(tiny.TEXT_ARCHITECTURES)
VISION = types(tiny.VISION_ARCHITECTURES)
TEXT_POOLS = cases(tiny.TEXT_ARCHITECTURES, TEXT_FAMILIES)
VISION_POOLS = cases(tiny.VISION_ARCHITECTURES, VISION_FAMILIES)


def text_tower(architecture: tiny.Architecture, pool: Any = "auto") -> TextTower:
    return build_text_tower(TowerSettings(architecture=architecture, pool=pool)).double().eval()


def vision_tower(architecture: tiny.Architecture, pool: Any = "auto", image_size: int | None = None) -> VisionTower:
    sized = {} if image_size is None else {"image_size": image_size}
    settings = VisionTowerSettings(architecture=architecture, pool=pool, **tiny.needs(architecture) | sized)
    return build_vision_tower(settings).double().eval()


def sentences(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids (N, T) padded with random ones, so that nothing but the mask can tell, and their mask."""
    token_ids = torch.randint(5, tiny.VOCABULARY, (len(lengths), max(lengths)))
    return token_ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def images(count: int = 2, size: int = tiny.IMAGE_SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64)


def assert_every_parameter_has_a_gradient(tower: torch.nn.Module) -> None:
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []
    assert all(parameter.requires_grad for parameter in tower.parameters())


def test_every_family_is_tested() -> None:
    assert {a["model_type"] for a in tiny.TEXT_ARCHITECTURES} == set(TEXT_FAMILIES)
    assert {a["model_type"] for a in tiny.VISION_ARCHITECTURES} == set(VISION_FAMILIES)


def test_every_family_is_documented() -> None:
    tables = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in (*TEXT_FAMILIES, *VISION_FAMILIES) if f"`{name}`" not in tables] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "architectures"),
    [
        ("cls", [tiny.bert(), tiny.roberta(), tiny.xlm_roberta(), tiny.electra(), tiny.chinese_clip_text()]),
        ("pooler", [tiny.clip_text(), tiny.siglip_text()]),
        ("cls", [tiny.vit(), tiny.dinov2(), tiny.dinov2_with_registers(), tiny.clip_vision()]),
        ("pooler", [tiny.siglip_vision(), tiny.convnext(), *tiny.BATCH_NORMALISED]),
    ],
)
def test_auto(pool: str, architectures: list[tiny.Architecture]) -> None:
    for architecture in architectures:
        build = text_tower if architecture["model_type"] in TEXT_FAMILIES else vision_tower
        assert build(architecture).settings.pool == pool


class TestText:
    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), TEXT_POOLS)
    def test_shapes(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = text_tower(architecture, pool)
        states = tower(*sentences(7, 4, 1))
        assert states.tokens.shape == (3, 7, tower.width)
        assert states.pooled.shape == (3, tower.pooled_width)

    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), TEXT_POOLS)
    def test_padding_changes_nothing(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = text_tower(architecture, pool)
        token_ids, token_mask = sentences(9, 4)
        padded = tower(token_ids, token_mask)
        alone = tower(token_ids[1:, :4], token_mask[1:, :4])
        torch.testing.assert_close(padded.tokens[1:, :4], alone.tokens, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(padded.pooled[1:], alone.pooled, rtol=1e-10, atol=1e-12)

    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), TEXT_POOLS)
    def test_pooled_state_has_seen_every_real_token(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = text_tower(architecture, pool)
        token_ids, token_mask = sentences(6, 4)
        before = tower(token_ids, token_mask).pooled[1]
        for position in range(4):
            changed = token_ids.clone()
            changed[1, position] = 5 + (token_ids[1, position] - 4) % (tiny.VOCABULARY - 5)
            assert not torch.allclose(tower(changed, token_mask).pooled[1], before)

    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), TEXT_POOLS)
    def test_every_parameter_has_a_gradient(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = text_tower(architecture, pool)
        states = tower(*sentences(7, 4))
        (states.tokens.square().sum() + states.pooled.sum()).backward()
        assert_every_parameter_has_a_gradient(tower)

    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), TEXT_POOLS)
    def test_rebuilt_from_its_own_settings(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = text_tower(architecture, pool)
        settings = TowerSettings.model_validate_json(tower.settings.model_dump_json())
        rebuilt = build_text_tower(settings).double().eval()
        rebuilt.load_state_dict(tower.state_dict())
        inputs = sentences(7, 4)
        assert torch.equal(rebuilt(*inputs).tokens, tower(*inputs).tokens)
        assert torch.equal(rebuilt(*inputs).pooled, tower(*inputs).pooled)
        assert rebuilt.settings == tower.settings

    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", TEXT)
    def test_a_row_without_tokens_is_finite(self, architecture: tiny.Architecture) -> None:
        tower = text_tower(architecture)
        token_ids, token_mask = sentences(5, 3)
        token_mask[1] = False
        states = tower(token_ids, token_mask)
        (states.tokens.square().sum() + states.pooled.sum()).backward()
        assert states.tokens.isfinite().all()
        assert states.pooled.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in tower.parameters() if parameter.grad is not None)

    @pytest.mark.parametrize("architecture", TEXT)
    def test_no_rows(self, architecture: tiny.Architecture) -> None:
        tower = text_tower(architecture)
        states = tower(torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5, dtype=torch.bool))
        assert states.tokens.shape == (0, 5, tower.width)
        assert states.pooled.shape == (0, tower.pooled_width)

    @pytest.mark.parametrize("architecture", TEXT)
    def test_longest_input(self, architecture: tiny.Architecture) -> None:
        tower = text_tower(architecture)
        assert tower.max_tokens == tiny.MAX_TOKENS
        tower(*sentences(tiny.MAX_TOKENS))
        with pytest.raises(ConfigError, match=r"17 tokens.*16 or less"):
            tower(*sentences(tiny.MAX_TOKENS + 1))

    @pytest.mark.parametrize("architecture", TEXT)
    def test_mean_is_over_real_tokens(self, architecture: tiny.Architecture) -> None:
        states = text_tower(architecture, "mean")(*sentences(7, 4))
        torch.testing.assert_close(states.pooled[1], states.tokens[1, :4].mean(dim=0))

    @pytest.mark.parametrize("architecture", types([tiny.bert(), tiny.roberta(), tiny.xlm_roberta()]))
    def test_class_token_and_pooler(self, architecture: tiny.Architecture) -> None:
        inputs = sentences(7, 4)
        states = text_tower(architecture, "cls")(*inputs)
        assert torch.equal(states.pooled, states.tokens[:, 0])
        tower = text_tower(architecture, "pooler")
        states = tower(*inputs)
        torch.testing.assert_close(states.pooled, tower.model.pooler.dense(states.tokens[:, 0]).tanh())

    def test_dropout_follows_the_mode(self) -> None:
        tower = build_text_tower(TowerSettings(architecture=tiny.bert()))
        inputs = sentences(7, 4)
        assert tower.training
        assert not torch.equal(tower(*inputs).pooled, tower(*inputs).pooled)
        tower.eval()
        assert torch.equal(tower(*inputs).pooled, tower(*inputs).pooled)


class TestClipText:
    @pytest.mark.parametrize("eos", [63, 2], ids=["its id in the config", "the config of the first CLIPs"])
    def test_pooled_as_clip_does(self, eos: int) -> None:
        """On what CLIP's tokenizer writes: the end of sequence has the highest id, and is also the padding."""
        architecture = tiny.clip_text(eos_token_id=eos)
        tower = text_tower(architecture)
        token_ids, token_mask = sentences(7, 4)
        token_ids = token_ids.clamp(max=62)
        token_ids[0, 6], token_ids[1, 3:] = 63, 63
        original = CLIPTextModel(CLIPTextConfig(**architecture)).double().eval()
        original.load_state_dict(tower.model.state_dict())
        expected = original(input_ids=token_ids, attention_mask=token_mask.long())
        torch.testing.assert_close(tower(token_ids, token_mask).pooled, expected.pooler_output)

    def test_eos_id_beyond_the_vocabulary(self) -> None:
        tower = text_tower(tiny.clip_text(eos_token_id=49407))
        states = tower(*sentences(7, 4))
        assert torch.equal(states.pooled[0], states.tokens[0, 6])
        assert torch.equal(states.pooled[1], states.tokens[1, 3])

    def test_first_token_has_seen_only_itself(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^model\.text\.pool: .*no class token of the whole input.*auto, pooler or mean"
        ):
            text_tower(tiny.clip_text(), "cls")


class TestSiglipText:
    def test_states_as_in_its_pretraining(self) -> None:
        """Padded to the full length, padding attended to, pooled at the last position, as its own tokenizer writes."""
        architecture = tiny.siglip_text(pad_token_id=3)
        tower = text_tower(architecture)
        token_ids, token_mask = sentences(7, 4)
        original = SiglipTextModel(SiglipTextConfig(**architecture)).double().eval()
        original.load_state_dict(tower.model.state_dict())
        full = torch.full((2, tiny.MAX_TOKENS), 3)
        full[0, :7], full[1, :4] = token_ids[0], token_ids[1, :4]
        expected = original(input_ids=full)
        states = tower(token_ids, token_mask)
        torch.testing.assert_close(states.pooled, expected.pooler_output)
        torch.testing.assert_close(states.tokens[1, :4], expected.last_hidden_state[1, :4])

    def test_padding_of_another_tokenizer(self) -> None:
        tower = build_text_tower(TowerSettings(architecture=tiny.siglip_text()), pad_token_id=9)
        assert tower.architecture()["pad_token_id"] == 9

    def test_pooler_of_another_width(self) -> None:
        tower = text_tower(tiny.siglip_text(projection_size=20))
        assert (tower.width, tower.pooled_width) == (32, 20)
        assert tower(*sentences(7, 4)).pooled.shape == (2, 20)


class TestVision:
    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), VISION_POOLS)
    def test_shapes(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = vision_tower(architecture, pool)
        states = tower(images(2))
        assert tower.image_size == tiny.IMAGE_SIZE
        assert states.grid.shape == (2, 4, 4, tower.width)
        assert states.pooled.shape == (2, tower.pooled_width)

    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", types([a for a in tiny.VISION_ARCHITECTURES if not tiny.needs(a)]))
    def test_each_patch_sits_at_its_place_in_the_grid(self, architecture: tiny.Architecture) -> None:
        tower = vision_tower(architecture)
        image = images(1)
        before = tower(image).grid
        for row, column in [(0, 0), (1, 3), (3, 1)]:
            changed = image.clone()
            changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 5.0
            change = (tower(changed).grid - before).norm(dim=-1)[0]
            assert divmod(change.argmax().item(), 4) == (row, column)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "architecture", types([*tiny.BATCH_NORMALISED[:3], tiny.mobilenet_v2(output_stride=32, hidden_act="relu")])
    )
    def test_each_quarter_sits_at_its_place_in_the_grid(self, architecture: tiny.Architecture) -> None:
        """Padded convolutions see their cell off its centre, by half a cell, and its neighbours too. With positive
        weights, since random ones of few channels move a picture about."""
        tower = vision_tower(architecture)
        half = 4 * tower.stride
        for parameter in tower.parameters():
            parameter.data.abs_()
        image = images(1, size=2 * half)
        before = tower(image).grid
        for row, column in [(0, 0), (0, 1), (1, 0)]:
            changed = image.clone()
            changed[..., half * row : half * row + half, half * column : half * column + half] += 5.0
            change = (tower(changed).grid - before).square().sum(dim=-1)[0]
            quarters = change.reshape(2, 4, 2, 4).sum(dim=(1, 3))
            assert divmod(quarters.argmax().item(), 2) == (row, column)

    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), VISION_POOLS)
    def test_every_parameter_has_a_gradient(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = vision_tower(architecture, pool)
        states = tower(images())
        (states.grid.square().sum() + states.pooled.sum()).backward()
        assert_every_parameter_has_a_gradient(tower)

    @pytest.mark.slow
    @pytest.mark.parametrize(("architecture", "pool"), VISION_POOLS)
    def test_rebuilt_from_its_own_settings(self, architecture: tiny.Architecture, pool: str) -> None:
        tower = vision_tower(architecture, pool, image_size=48)
        settings = VisionTowerSettings.model_validate_json(tower.settings.model_dump_json())
        rebuilt = build_vision_tower(settings).double().eval()
        rebuilt.load_state_dict(tower.state_dict())
        pixels = images(size=48)
        assert torch.equal(rebuilt(pixels).grid, tower(pixels).grid)
        assert torch.equal(rebuilt(pixels).pooled, tower(pixels).pooled)
        assert rebuilt.settings == tower.settings

    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", VISION)
    def test_other_image_sizes(self, architecture: tiny.Architecture) -> None:
        """Crops arrive at sizes of their own; the position embeddings are interpolated."""
        tower = vision_tower(architecture, image_size=48)
        assert tower(images(size=48)).grid.shape == (2, 6, 6, tower.width)
        assert tower(images(size=16)).grid.shape == (2, 2, 2, tower.width)
        assert tower(torch.zeros(1, 3, 16, 32).double()).grid.shape == (1, 2, 4, tower.width)

    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", VISION)
    def test_no_images(self, architecture: tiny.Architecture) -> None:
        tower = vision_tower(architecture)
        states = tower(images(0))
        assert states.grid.shape == (0, 4, 4, tower.width)
        assert states.pooled.shape == (0, tower.pooled_width)

    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", VISION)
    def test_mean_is_over_the_grid(self, architecture: tiny.Architecture) -> None:
        states = vision_tower(architecture, "mean")(images())
        torch.testing.assert_close(states.pooled, states.grid.mean(dim=(1, 2)))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("architecture", "pool"), [case for case in VISION_POOLS if not str(case.id).endswith("-mean")]
    )
    def test_pooled_state_is_the_encoders_own(self, architecture: tiny.Architecture, pool: str) -> None:
        tower, pixels = vision_tower(architecture, pool), images()
        outputs = tower.model(pixel_values=pixels)
        # CLIP's class token is normalised like its patches, which makes it the pooled state that CLIP itself returns.
        normalised = "clip" in architecture["model_type"]
        own = outputs.pooler_output if pool == "pooler" or normalised else outputs.last_hidden_state[:, 0]
        torch.testing.assert_close(tower(pixels).pooled, own.flatten(1))

    def test_clip_patches_are_on_the_scale_of_the_class_token(self) -> None:
        tower = vision_tower(tiny.clip_vision())
        torch.testing.assert_close(
            tower(images()).grid.square().mean(dim=-1), torch.ones(2, 4, 4).double(), rtol=1e-3, atol=0
        )

    def test_image_size_is_rounded_down_to_whole_patches(self) -> None:
        """As for SigLIP's 384 pixels in patches of 14, positions included: there are no more than 27 x 27 of them."""
        tower = vision_tower(tiny.siglip_vision(image_size=37, patch_size=8))
        assert tower.image_size == 32
        pixels = images()
        expected = tower.model(pixel_values=pixels).last_hidden_state.unflatten(1, (4, 4))
        torch.testing.assert_close(tower(pixels).grid, expected)

    def test_image_size_that_is_no_multiple(self) -> None:
        with pytest.raises(ConfigError, match=r"image_size is 50.*8 pixels.*48 or 56"):
            vision_tower(tiny.vit(), image_size=50)

    def test_sizes_given_as_pairs(self) -> None:
        assert vision_tower(tiny.vit(image_size=[32, 32])).image_size == 32
        with pytest.raises(ConfigError, match="square"):
            vision_tower(tiny.vit(image_size=[32, 48]))


@pytest.mark.slow
def test_architecture_is_plain_json() -> None:
    for architecture in tiny.TEXT_ARCHITECTURES:
        resolved = text_tower(architecture).architecture()
        assert json.loads(json.dumps(resolved)) == resolved
    for architecture in tiny.VISION_ARCHITECTURES:
        resolved = vision_tower(architecture).architecture()
        assert json.loads(json.dumps(resolved)) == resolved


DROPPING = types([a for a in tiny.VISION_ARCHITECTURES if VISION_FAMILIES[a["model_type"]].drops_patches])


@pytest.mark.parametrize("architecture", DROPPING)
class TestVisiblePatches:
    def test_all_of_them_are_the_image(self, architecture: tiny.Architecture) -> None:
        tower, pixels = vision_tower(architecture), images()
        patches = (tower.image_size // tower.stride) ** 2
        whole, kept = tower(pixels), tower(pixels, torch.arange(patches).expand(2, -1))
        torch.testing.assert_close(kept.pooled, whole.pooled)
        torch.testing.assert_close(kept.grid.flatten(1, 2), whole.grid.flatten(1, 2))

    def test_hidden_patches_are_never_seen(self, architecture: tiny.Architecture) -> None:
        tower, pixels = vision_tower(architecture), images()
        side, stride = tower.image_size // tower.stride, tower.stride
        kept = torch.tensor([[0, 3, 5], [1, 2, 7]])
        before = tower(pixels, kept)
        hidden = torch.ones(2, side**2, dtype=torch.bool).scatter(1, kept, False).reshape(2, 1, side, 1, side, 1)
        shape = (2, 3, side, stride, side, stride)
        painted = pixels.clone().reshape(shape).masked_fill(hidden.expand(shape), 7.0).reshape(pixels.shape)
        after = tower(painted, kept)
        torch.testing.assert_close(after.pooled, before.pooled)
        assert before.grid.shape == (2, 1, 3, tower.width)
        assert not torch.allclose(before.pooled, tower(pixels).pooled)

    def test_the_next_image_is_whole_again(self, architecture: tiny.Architecture) -> None:
        tower, pixels = vision_tower(architecture), images()
        before = tower(pixels).pooled
        tower(pixels, torch.tensor([[0], [1]]))
        torch.testing.assert_close(tower(pixels).pooled, before)
