"""Extraction keeps what is not padding, with indices that hold across batches."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from encoders import collate, fused, make_model, make_sample, padded
from spanbox.errors import DataError
from spanbox.evaluation.evaluate import evaluate
from spanbox.evaluation.extract import FeatureBank, extract_parts
from spanbox.structures import PADDING_ID, Batch, Features, Sample
from spanbox.wiring.fusing import context_of, pair_scores

FEATURES = 3


def make_batch(
    span_identity: list[list[int]], region_valid: list[list[bool]], links: list[tuple[int, int, int]], first: int = 0
) -> Batch:
    """A batch whose pixels number the pairs from `first`; `links` are (pair, span, region).

    The boxes name their place, too: x0 is the number of the pair, y0 that of the region, in hundredths.
    """
    identity = torch.tensor(span_identity, dtype=torch.int64).reshape(len(span_identity), -1)
    valid = torch.tensor(region_valid, dtype=torch.bool).reshape(len(region_valid), -1)
    pairs, spans, regions = len(identity), identity.shape[1], valid.shape[1]
    linked = torch.zeros(pairs, spans, regions, dtype=torch.bool)
    for link in links:
        linked[link] = True
    numbers = torch.arange(first, first + pairs)
    corners = torch.stack([numbers[:, None].expand(-1, regions), torch.arange(regions).expand(pairs, -1)], dim=2)
    boxes = torch.cat([corners, torch.full_like(corners, 100)], dim=2)
    return Batch(
        pixels=numbers.float()[:, None, None, None].expand(-1, 3, 2, 2),
        token_ids=torch.zeros(pairs, 4, dtype=torch.int64),
        token_mask=torch.ones(pairs, 4, dtype=torch.bool),
        span_tokens=torch.ones(pairs, spans, 4, dtype=torch.bool),
        span_entity=torch.arange(spans).where(identity != PADDING_ID, PADDING_ID),
        span_shown=(torch.arange(spans) % 3 - 1).to(torch.int8).expand(pairs, -1),
        place=400 + numbers,
        span_identity=identity,
        regions=boxes / 100,
        region_valid=valid,
        links=linked,
        group=100 + numbers,
        sample=200 + numbers,
        wording=300 + numbers,
    )


WEIGHT = torch.nn.Parameter(torch.ones(1))


def encode(batch: Batch) -> Features:
    """Features that name their place: pair, 10 * pair + span, 100 * pair + region."""
    pair = batch.pixels[:, 0, 0, 0] * WEIGHT
    span = 10 * pair[:, None] + torch.arange(batch.span_identity.shape[1])
    region = 100 * pair[:, None] + torch.arange(batch.region_valid.shape[1])
    return Features(
        text=pair[:, None].expand(-1, FEATURES),
        image=-pair[:, None].expand(-1, FEATURES),
        spans=span[:, :, None].expand(-1, -1, FEATURES),
        regions=region[:, :, None].expand(-1, -1, FEATURES),
    )


PAD = PADDING_ID
FIRST = make_batch([[7, PAD], [PAD, 8]], [[True, False, True], [False, True, False]], [(0, 0, 2), (1, 1, 1)])
# Another batch size and other padding; links that reach into the padding must not enter.
SECOND = make_batch([[9, 7, PAD]], [[True, False]], [(0, 1, 0), (0, 2, 0), (0, 0, 1)], first=2)


def extract(encode: Callable[[Batch], Features], batches: Iterable[Batch]) -> FeatureBank:
    return FeatureBank.cat(extract_parts(encode, batches))


def test_only_valid_spans_and_regions_enter() -> None:
    bank = extract(encode, [FIRST, SECOND])
    assert bank.text[:, 0].tolist() == [0, 1, 2]
    assert bank.image[:, 0].tolist() == [0, -1, -2]
    assert bank.group.tolist() == [100, 101, 102]
    assert bank.sample.tolist() == [200, 201, 202]
    assert bank.wording.tolist() == [300, 301, 302]
    assert bank.spans[:, 0].tolist() == [0, 11, 20, 21]
    assert bank.span_pair.tolist() == [0, 1, 2, 2]
    assert bank.span_identity.tolist() == [7, 8, 9, 7]
    assert bank.span_entity.tolist() == [0, 1, 0, 1]
    assert bank.span_shown.tolist() == [-1, 0, -1, 0]
    assert bank.place.tolist() == [400, 401, 402]
    assert bank.regions[:, 0].tolist() == [0, 2, 101, 200]
    assert bank.region_pair.tolist() == [0, 0, 1, 2]
    torch.testing.assert_close(bank.region_box[:, :2] * 100, torch.tensor([[0.0, 0], [0, 2], [1, 1], [2, 0]]))
    assert bank.links.tolist() == [[0, 1], [1, 2], [3, 3]]


def test_a_link_joins_a_span_and_a_region_of_the_same_pair() -> None:
    bank = extract(encode, [FIRST, SECOND])
    assert torch.equal(bank.span_pair[bank.links[:, 0]], bank.region_pair[bank.links[:, 1]])


def test_batches_of_one_give_the_same_bank() -> None:
    assert_equal_banks(extract(encode, [*FIRST.split(1), SECOND]), extract(encode, [FIRST, SECOND]))


def test_batches_may_come_from_an_iterator() -> None:
    assert len(extract(encode, iter([FIRST, SECOND]))) == 3


def test_what_features_and_ids_were_cut_from_is_let_go() -> None:
    owners: list[weakref.ref[np.ndarray]] = []

    def cut_from_something_larger(tensor: torch.Tensor) -> torch.Tensor:
        owner = np.zeros((2, *tensor.shape), dtype=tensor.detach().numpy().dtype)
        owners.append(weakref.ref(owner))
        return torch.from_numpy(owner)[0]

    def encode_views(batch: Batch) -> Features:
        features = encode(batch)
        views = {name: cut_from_something_larger(tensor) for name, tensor in features.named_tensors()}
        return Features(**views)

    def batches() -> Iterator[Batch]:
        for batch in [FIRST, SECOND, FIRST]:
            # Only the batch in hand may still be there: its group and its four features.
            assert all(owner() is None for owner in owners[:-5])
            yield replace(batch, group=cut_from_something_larger(batch.group))

    extract(encode_views, batches())


def test_no_gradient_and_nothing_but_features_is_held() -> None:
    bank = extract(encode, [SECOND])
    for name in bank.present():
        tensor = getattr(bank, name)
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name
    assert torch.is_grad_enabled()


def test_spans_and_regions_of_no_width() -> None:
    plain = make_batch([[], []], [[], []], [], first=5)
    bank = extract(encode, [plain])
    assert bank.spans.shape == bank.regions.shape == (0, FEATURES)
    assert bank.links.shape == (0, 2)
    assert bank.span_pair.shape == bank.region_pair.shape == (0,)
    assert all(name.startswith(("retrieval.", "embedding.coarse.")) for name in evaluate(bank).metrics)


def test_all_padding_equals_no_width() -> None:
    padded = make_batch([[PAD], [PAD]], [[False, False]] * 2, [(0, 0, 0)])
    assert_equal_banks(extract(encode, [padded]), extract(encode, [make_batch([[], []], [[], []], [])]))


def test_a_batch_without_spans_among_others_shifts_no_index() -> None:
    plain = make_batch([[]], [[]], [], first=2)
    bank = extract(encode, [FIRST, plain, make_batch([[4]], [[True]], [(0, 0, 0)], first=3)])
    assert bank.span_pair.tolist() == [0, 1, 3]
    assert bank.region_pair.tolist() == [0, 0, 1, 3]
    assert bank.links.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_an_empty_data_set_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        extract(encode, [])


class TestFusion:
    """Tokens, patches and parts in context of a model with fusion."""

    @staticmethod
    def samples(*, padding: bool = False) -> list[Sample]:
        samples = [make_sample(number, spans=number % 3, regions=(number + 1) % 3) for number in range(4)]
        return [padded(one, (32, 8 + 7 * place)) for place, one in enumerate(samples)] if padding else samples

    def extracted(self, kind: str, size: int, *, padding: bool = False, **options: Any) -> FeatureBank:
        torch.manual_seed(0)
        model = make_model(fusion=fused(kind)).eval()
        samples = self.samples(padding=padding)
        batches = [collate(*samples[start : start + size]) for start in range(0, 4, size)]
        return FeatureBank.cat(extract_parts(model, batches, context=context_of(model), **options))

    def test_batches_and_their_padding_do_not_matter(self) -> None:
        whole, one_by_one = (self.extracted("gated", size, keep_states=True) for size in (4, 1))
        assert whole.present() == [entry.name for entry in fields(FeatureBank) if entry.name != "content"]
        for name in whole.present():
            torch.testing.assert_close(getattr(one_by_one, name), getattr(whole, name), atol=2e-3, rtol=1e-3)
        assert whole.tokens is not None
        assert whole.token_count is not None
        assert (whole.tokens.dtype, len(whole.tokens)) == (torch.float16, int(whole.token_count.sum()))

    def test_states_are_kept_only_where_they_are_needed(self) -> None:
        bank = self.extracted("conditioned_pooling", 2)
        assert not {"tokens", "token_count", "patches", "spans_in_context", "regions_in_context"} & {*bank.present()}

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    @pytest.mark.parametrize("padding", [False, True])
    def test_scores_from_a_bank_are_those_of_the_batch(self, kind: str, *, padding: bool) -> None:
        torch.manual_seed(0)
        model = make_model(fusion=fused(kind)).eval()
        batch = collate(*self.samples(padding=padding))
        bank = self.extracted(kind, 2, padding=padding, keep_states=True)
        scores = pair_scores(model, bank)
        assert scores is not None
        sentences, images = torch.tensor([0, 3, 2, 1, 0]), torch.tensor([0, 1, 2, 3, 3])
        with torch.no_grad():
            expected = model.fusion.pair_scores(model(batch), batch, sentences, images)  # type: ignore[union-attr]
        torch.testing.assert_close(scores(sentences, images), expected, atol=5e-3, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and `-m cuda`")
def test_features_come_back_to_the_cpu() -> None:
    def encode_on_gpu(batch: Batch) -> Features:
        return encode(batch).to("cuda")

    assert_equal_banks(extract(encode_on_gpu, [FIRST, SECOND]), extract(encode, [FIRST, SECOND]))


def assert_equal_banks(first: FeatureBank, second: FeatureBank) -> None:
    assert first.present() == second.present()
    for name in first.present():
        assert torch.equal(getattr(first, name), getattr(second, name)), name
