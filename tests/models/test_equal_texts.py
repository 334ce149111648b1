"""Equal texts of a batch are read once, and features and gradients are those of reading every row."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dual_encoders import encode, encoder, every_source, repeats, samples
from encoders import collate, make_model, make_sample
from spanbox.models import inputs as inputs_module
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.inputs import tower_inputs


def every_row(*tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for `_distinct`: every row is encoded."""
    numbers = torch.arange(len(tables[0]))
    return numbers, numbers


def rows_read(model: DualEncoder) -> list[int]:
    """The number of rows of each call of the text tower from now on."""
    counts: list[int] = []
    model.text.register_forward_pre_hook(lambda _, arguments: counts.append(len(arguments[0])))
    return counts


class TestEqualTextsAreReadOnce:
    @pytest.mark.slow
    @every_source
    def test_same_features_and_gradients(self, spans: str, regions: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = encoder(spans, regions).double(), repeats()
        results = []
        for distinct in (inputs_module._distinct, every_row):
            monkeypatch.setattr(inputs_module, "_distinct", distinct)
            model.zero_grad()
            features = model(batch)
            sum(torch.sin(3 * tensor).sum() for tensor in features.tensors()).backward()
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            results.append((dict(features.named_tensors()), grads))
        torch.testing.assert_close(*results, rtol=0, atol=1e-10)

    def test_rows(self) -> None:
        model, batch = encoder("own"), repeats()
        counts = rows_read(model)
        encode(model, batch)
        names = batch.own_token_ids[batch.span_valid].tolist()  # type: ignore[index]
        assert counts == [3, len(set(map(tuple, names)))]
        assert counts[1] < len(names)

    def test_what_is_in_the_padding_does_not_count(self) -> None:
        model, batch = encoder(), repeats()
        counts = rows_read(model)
        noise = torch.randint(5, 99, batch.token_ids.shape)
        scribbled = replace(batch, token_ids=torch.where(batch.token_mask, batch.token_ids, noise))
        torch.testing.assert_close(encode(model, scribbled).text, encode(model, batch).text)
        assert counts == [3, 3]

    def test_a_longer_text_is_another_one(self) -> None:
        """Rows with the same ids, of which one has an end in the padding of the other."""
        batch = collate(*[make_sample(0)] * 3)
        mask = batch.token_mask.clone()
        mask[1, -1] = False
        places = tower_inputs(replace(batch, token_mask=mask), spans_alone=False, crops=False, patch=8).places
        assert places.text.tolist() == [0, 1, 0]

    def test_other_spans_make_another_row(self) -> None:
        batch = collate(*[make_sample(0)] * 3)
        span_tokens = batch.span_tokens.clone()
        span_tokens[1] = span_tokens[1].flip(0)
        batch = replace(batch, span_tokens=span_tokens)
        assert tower_inputs(batch, spans_alone=False, crops=False, patch=8).places.text.tolist() == [0, 1, 0]
        assert tower_inputs(batch, spans_alone=True, crops=False, patch=8).places.text.tolist() == [0, 0, 0]

    @given(st.lists(st.sampled_from([(9, 1), (3, 3), (1, 2), (2, 9)]), max_size=9))
    def test_rows_and_their_copies(self, texts: list[tuple[int, int]]) -> None:
        table = torch.tensor(texts, dtype=torch.int64).reshape(len(texts), 2)
        rows, copies = inputs_module._distinct(table)
        assert rows.tolist() == [number for number, text in enumerate(texts) if text not in texts[:number]]
        assert torch.equal(table[rows][copies], table)

    def test_nothing_repeats(self) -> None:
        """The same rows in the same order: to the last bit what it was, dropout included."""
        model, batch = make_model(dropout=0.3), collate(*samples())
        read = []
        model.text.register_forward_pre_hook(lambda _, arguments: read.append(arguments))
        torch.manual_seed(1)
        text = model(batch).text
        assert torch.equal(read[0][0], batch.token_ids)
        torch.manual_seed(1)
        pooled = model.text(batch.token_ids, batch.token_mask).pooled
        assert torch.equal(text, torch.nn.functional.normalize(model.text_projection(pooled), dim=-1))

    def test_with_dropout_equal_texts_share_what_is_dropped(self) -> None:
        text = make_model(dropout=0.3)(repeats()).text
        assert torch.equal(text[0], text[2])

    @every_source
    def test_no_rows(self, spans: str, regions: str) -> None:
        features = encode(encoder(spans, regions), repeats()[:0])
        assert features.text.shape == (0, 8)
        assert len(features.spans) == len(features.regions) == 0
