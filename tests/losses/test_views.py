"""What masked views add to the losses: relations by table and by loops, the ranking, its gate, and the objective."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

import loss_reference
import relation_reference
from batches import make_batch, random_batch
from spanbox.losses.blocks import tiled_statistics
from spanbox.losses.kernel import row_statistics
from spanbox.losses.levels import coarse_contrast, fine_contrast
from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.relations import (
    WHOLE,
    Relation,
    sentence_image_relation,
    sentence_view_relation,
    span_region_relation,
    span_view_relation,
)
from spanbox.losses.views import Gate, ViewLossSettings, ranking_loss
from spanbox.structures import PADDING_ID, Batch, Features

CANDIDATE = ViewLossSettings()
MARGIN = ViewLossSettings(form="margin")
DIM = 4


def with_views(batch: Batch, sentence: list[list[int]], spans: list[list[list[int]]] | None = None) -> Batch:
    """The batch with views of these meanings, (B, V) and (B, V, K)."""
    of_sentence = torch.tensor(sentence, dtype=torch.int8)
    of_spans = torch.zeros(*of_sentence.shape, batch.links.shape[1], dtype=torch.int8)
    return replace(
        batch,
        view_sentence=of_sentence,
        view_spans=of_spans if spans is None else torch.tensor(spans, dtype=torch.int8),
    )


def features_of(batch: Batch, seed: int = 0) -> Features:
    """Random unit features, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    pairs, spans, regions = batch.links.shape
    assert batch.view_sentence is not None
    shapes = [(pairs,), (pairs,), (pairs, spans), (pairs, regions), tuple(batch.view_sentence.shape)]
    values = [torch.randn(*shape, DIM, generator=generator, dtype=torch.float64) for shape in shapes]
    return Features(*(normalize(value, dim=-1).requires_grad_() for value in values))


def objective_of(loss: str = "info_nce", **views: Any) -> Objective:
    level = {"loss": loss, "temperature": 0.5}
    settings = LossSettings.model_validate({"coarse": level, "fine": level, "views": views})
    objective = Objective(settings, dim=DIM).double()
    if objective.gate:
        for number, parameter in enumerate(objective.gate.parameters()):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    return objective


def view_relation(batch: Batch, settings: ViewLossSettings, *block: slice, of_columns: bool = False) -> Relation:
    """Of sentences to images and views, of which these settings use some."""
    used = {"keeping": settings.positives, "hiding": settings.negatives}
    return sentence_view_relation(batch, *block, **used, of_columns=of_columns)


def table(relation: Relation, keys_of_a_pair: int) -> list[str]:
    """A row for each query, a letter for each key: P positive, N negative, . neither; a space between pairs."""
    positives, candidates, _ = relation
    assert (candidates | ~positives).all(), "every positive is a candidate"
    letters = [
        "".join("P" if positive else "N" if candidate else "." for positive, candidate in zip(*row, strict=True))
        for row in zip(positives.tolist(), candidates.tolist(), strict=True)
    ]
    return [
        " ".join(row[start : start + keys_of_a_pair] for start in range(0, len(row), keys_of_a_pair)) for row in letters
    ]


# Relations


def test_views_of_sentences_by_table() -> None:
    """Behind each image a view that keeps, one that hides, one that says nothing. Pairs 1 and 2 are of one group."""
    batch = with_views(make_batch([[]] * 3, [0] * 3, [], group=[5, 6, 6]), [[1, -1, 0]] * 3)
    assert table(view_relation(batch, CANDIDATE), 4) == ["PPN. N... N...", "N... PPN. P...", "N... P... PPN."]
    of_columns = view_relation(batch, CANDIDATE, of_columns=True)
    assert table(of_columns, 4) == ["PPN. NN.. NN..", "NN.. PPN. P...", "NN.. P... PPN."]


def test_views_of_sentences_without_positives() -> None:
    batch = with_views(make_batch([[]] * 2, [0] * 2, []), [[1, -1, 0]] * 2)
    settings = ViewLossSettings(positives=False)
    for of_columns in (False, True):
        assert table(view_relation(batch, settings, of_columns=of_columns), 4) == ["P.N. N...", "N... P.N."]


def test_views_that_are_ranked_are_no_candidates() -> None:
    batch = with_views(make_batch([[]] * 2, [0] * 2, []), [[1, -1, 0]] * 2)
    assert table(view_relation(batch, MARGIN), 4) == ["PP.. N...", "N... PP.."]


def test_a_view_is_not_contrasted_with_the_same_words_about_another_image() -> None:
    batch = with_views(make_batch([[]] * 2, [0] * 2, []), [[1], [1]])
    same = replace(batch, wording=torch.zeros(2, dtype=torch.int64))
    assert table(view_relation(same, CANDIDATE, of_columns=True), 2) == ["PP ..", ".. PP"]


def test_views_of_spans_by_table() -> None:
    """1 and 3 have a region, 2 has none, the last is padding. Each image's region is followed by two views."""
    batch = make_batch([[1, 2], [3]], [1, 1], [(0, 0, 0), (1, 0, 0)])
    batch = with_views(batch, [[0, 0]] * 2, [[[-1, -1], [1, -1]], [[0, -1], [-1, -1]]])
    assert table(span_view_relation(batch), 3) == ["PN. N..", "N.. N..", "N.. P.N", "... ..."]


@pytest.mark.parametrize("seed", range(20))
def test_relations_equal_the_plain_loops(seed: int) -> None:
    batch = random_batch(seed, views=3)
    for settings in (CANDIDATE, MARGIN, ViewLossSettings(positives=False)):
        expected = relation_reference.sentence_view_masks(batch, settings.positives, settings.form == "candidate")
        positives, of_rows, _ = view_relation(batch, settings)
        assert [positives.tolist(), of_rows.tolist()] == [*expected[:2]]
        positives, of_columns, _ = view_relation(batch, settings, of_columns=True)
        assert [positives.tolist(), of_columns.tolist()] == [expected[0], expected[2]]
    for mask, expected_mask in zip(
        span_view_relation(batch)[:2], relation_reference.span_view_masks(batch), strict=True
    ):
        assert mask.tolist() == expected_mask


@pytest.mark.parametrize("seed", range(10))
def test_a_block_is_cut_from_the_whole(seed: int) -> None:
    batch = random_batch(seed, pairs=5, views=2)
    spans, regions = batch.links.shape[1:]
    rows, columns = slice(1, 4), slice(0, 3)
    for of_columns in (False, True):
        blocks = view_relation(batch, CANDIDATE, rows, columns, of_columns=of_columns)
        for block, whole in zip(blocks[:2], view_relation(batch, CANDIDATE, of_columns=of_columns)[:2], strict=True):
            assert torch.equal(block, whole[1:4, : 3 * 3])
    for block, whole in zip(span_view_relation(batch, rows, columns)[:2], span_view_relation(batch)[:2], strict=True):
        assert torch.equal(block, whole[spans : 4 * spans, : 3 * (regions + 2)])


def test_relations_of_no_views_are_those_without() -> None:
    batch = random_batch(1, pairs=4, spans=2, regions=2, views=0)
    for of_columns in (False, True):
        relation = view_relation(batch, CANDIDATE, of_columns=of_columns)
        assert all(map(torch.equal, relation[:2], sentence_image_relation(batch)[:2]))
    assert all(map(torch.equal, span_view_relation(batch)[:2], span_region_relation(batch)[:2]))


# What is contrasted


def test_views_join_the_keys_only_where_they_have_a_use() -> None:
    batch = random_batch(1, pairs=4, spans=2, regions=3, views=2)
    features = features_of(batch)

    def keys(**settings: Any) -> tuple[int, int]:
        views = ViewLossSettings(**settings)
        return coarse_contrast(features, batch, views).keys.shape[1], fine_contrast(features, batch, views).keys.shape[
            1
        ]

    assert keys() == (3, 5)
    assert keys(positives=False) == (3, 5)
    assert keys(form="margin") == (3, 3)
    assert keys(form="margin", positives=False) == (1, 3)
    assert keys(form="none") == (1, 3)


@pytest.mark.parametrize("form", ["candidate", "margin", "none"])
def test_without_views_all_is_as_it_was(form: str) -> None:
    """Absent, or none of any image."""
    batch = random_batch(2, pairs=4, spans=2, regions=2, views=0)
    features = features_of(batch)
    absent = replace(features, views=None), replace(batch, view_sentence=None, view_spans=None)
    expected = Objective(objective_of().settings).double()(*absent).terms
    for case in ((features, batch), absent):
        assert objective_of(form=form)(*case).terms == expected


def test_views_that_say_nothing_change_nothing() -> None:
    batch = random_batch(2, pairs=4, spans=2, regions=2, views=3)
    silent = replace(
        batch, view_sentence=torch.zeros_like(batch.view_sentence), view_spans=torch.zeros_like(batch.view_spans)
    )
    features = features_of(batch)
    expected = objective_of(form="none")(features, silent).terms
    torch.testing.assert_close(objective_of()(features, silent).terms, expected)
    ranked = objective_of(form="margin")(features, silent).terms
    assert ranked.pop("views") == 0
    torch.testing.assert_close(ranked, expected)


@pytest.mark.parametrize("tile_pairs", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_tiles_equal_the_whole_matrix_whose_columns_have_candidates_of_their_own(seed: int, tile_pairs: int) -> None:
    batch = random_batch(seed, pairs=7, views=3)
    features = features_of(batch, seed)
    contrast = coarse_contrast(features, batch, CANDIDATE)
    assert contrast.column_relation is not None
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    tiled = tiled_statistics(contrast, scale, tile_pairs)
    logits = scale * contrast.queries.flatten(0, 1) @ contrast.keys.flatten(0, 1).T
    of_columns = contrast.column_relation(WHOLE, WHOLE).transposed()
    whole = row_statistics(logits, contrast.relation(WHOLE, WHOLE)), row_statistics(logits.T, of_columns)
    for one, other in zip(tiled, whole, strict=True):
        torch.testing.assert_close(tuple(one[:4]), tuple(other[:4]), rtol=1e-10, atol=1e-12)
    leaves = [features.text, features.image, features.views, scale]
    generator = torch.Generator().manual_seed(1)
    totals = [0.0, 0.0]
    for one, other in zip(tiled, whole, strict=True):
        for values, expected in zip(one[:3], other[:3], strict=True):
            weights = torch.randn(len(values), generator=generator, dtype=torch.float64)
            totals = [totals[0] + values @ weights, totals[1] + expected @ weights]
    gradients, wanted = (torch.autograd.grad(total, leaves) for total in totals)
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-10)


# The ranking


def by_hand(*, best: float, view: float, margin: float) -> float:
    query, key = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[view, 0.0]]])
    return ranking_loss(query, torch.tensor([[best]]), key, torch.tensor([[[True]]]), margin).item()


def test_a_ranking_by_hand() -> None:
    assert by_hand(best=0.5, view=0.4, margin=0.2) == pytest.approx(0.1)
    assert by_hand(best=0.5, view=0.7, margin=0.2) == pytest.approx(0.4)
    assert by_hand(best=0.5, view=0.2, margin=0.2) == 0


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gate"])
@pytest.mark.parametrize("seed", range(8))
def test_rankings_equal_the_plain_loops_with_their_gradients(seed: int, gate: bool) -> None:
    batch = random_batch(seed, views=2)
    features = features_of(batch, seed)
    objective = objective_of(form="margin", margin=0.7, gate=gate)
    term = objective(features, batch).terms["views"]

    def openness(view: Tensor, text: Tensor) -> Tensor:
        assert objective.gate
        weights = torch.cat([objective.gate.of_view, objective.gate.of_text])
        return torch.sigmoid(weights @ torch.cat([view, text]) + objective.gate.bias)

    expected = sum(
        loss_reference.ranking_loss(comparisons, 0.7, openness if gate else None)
        for comparisons in relation_reference.view_comparisons(features, batch)
    )
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=1e-12)
    leaves = [*features.tensors(), *(objective.gate.parameters() if objective.gate else [])]
    gradients, wanted = (
        torch.autograd.grad(one + 0 * sum(leaf.sum() for leaf in leaves), leaves) for one in (term, expected)
    )
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-10)


def test_the_best_region_of_a_span_is_compared() -> None:
    """Of its own two: neither a better one of another span, nor padding."""
    batch = with_views(make_batch([[1, 2]], [4], [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 0, 3)]), [[0]], [[[-1, 0]]])
    batch = replace(batch, region_valid=torch.tensor([[True, True, True, False]]))
    cosines = torch.tensor([0.1, 0.3, 0.9, 0.8])
    regions = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)[None]
    spans = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    features = Features(torch.zeros(1, 2), torch.zeros(1, 2), spans, regions, torch.tensor([[[0.5, 0.0]]]))
    assert objective_of(form="margin", margin=0.2)(features, batch).terms["views"].item() == pytest.approx(0.4)


def test_the_term_counts_with_its_weight() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    losses = objective_of(form="margin", weight=3.0)(features_of(batch), batch)
    terms = {name: term.item() for name, term in losses.terms.items()}
    assert losses.total.item() == pytest.approx(terms["coarse"] + terms["fine"] + 3 * terms["views"])
    assert terms["views"] > 0


def test_a_weight_of_zero_leaves_the_term_out() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    assert set(objective_of(form="margin", weight=0.0)(features_of(batch), batch).terms) == {"coarse", "fine"}


def test_a_level_that_is_left_out_is_not_ranked() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    features = features_of(batch)

    def ranking(**weights: float) -> float:
        levels = {name: {"weight": weight} for name, weight in weights.items()}
        settings = LossSettings.model_validate({"views": {"form": "margin"}, **levels})
        return Objective(settings)(features, batch).terms["views"].item()

    assert ranking(coarse=0.0) + ranking(fine=0.0) == pytest.approx(ranking())


# The gate


def test_the_gate_starts_without_a_preference() -> None:
    used = torch.rand(3, 2, 4) < 0.5
    weights = Gate(DIM)(torch.randn(3, 4, DIM), torch.randn(3, 2, DIM), used)
    torch.testing.assert_close(weights[used], torch.ones(int(used.sum())))


@pytest.mark.parametrize("bias", [-1e4, 0.0, 1e4])
def test_closing_all_gates_gains_nothing(bias: float) -> None:
    gate = Gate(DIM)
    torch.nn.init.constant_(gate.bias, bias)
    used = torch.rand(3, 2, 4) < 0.5
    weights = gate(torch.randn(3, 4, DIM), torch.randn(3, 2, DIM), used)
    assert weights[used].mean().item() == pytest.approx(1.0)
    assert not weights[~used].any()


def test_the_gate_does_not_move_the_towers() -> None:
    """The gradient at the features is that of the weights as constants."""
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    views = features_of(batch).views
    text = features_of(batch, 1).text[:, None].detach().requires_grad_()
    hides = torch.ones(4, 1, 2, dtype=torch.bool)
    gate = Gate(DIM).double()
    torch.nn.init.normal_(gate.of_view)
    gate(views, text, hides).pow(2).sum().backward()
    assert views.grad is None
    assert text.grad is None
    assert gate.of_view.grad.abs().sum() > 0


def test_the_gate_learns_to_rely_on_one_view_more_than_on_another() -> None:
    batch = with_views(make_batch([[]], [0], []), [[-1, -1]])
    features, objective = features_of(batch), objective_of(form="margin", margin=2.0, gate=True)
    before = objective(features, batch)
    before.total.backward()
    with torch.no_grad():
        for parameter in objective.gate.parameters():
            parameter -= 0.1 * parameter.grad
    assert objective(features, batch).total < before.total


# The objective


def by_loops(loss: str, objective: Objective, features: Features, batch: Batch) -> dict[str, Tensor]:
    """Both levels in the candidate form, both directions."""
    text, spans = features.text, features.spans.flatten(0, 1)
    images = torch.cat([features.image[:, None], features.views], dim=1).flatten(0, 1)
    objects = torch.cat([features.regions, features.views], dim=1).flatten(0, 1)
    positives, of_rows, of_columns = relation_reference.sentence_view_masks(batch, keeping=True, hiding=True)
    span_positives, span_candidates = relation_reference.span_view_masks(batch)
    row_loss = {"info_nce": loss_reference.plain_info_nce, "sigmoid": loss_reference.sigmoid}[loss]

    def direction(cosines: Tensor, positives: Tensor, candidates: Tensor, learned: list[Tensor]) -> Tensor:
        losses, counted = loss_reference.row_losses(
            lambda right, wrong, relative: row_loss(right, wrong, relative, *learned), cosines, positives, candidates
        )
        return losses.sum() / max(int(counted.sum()), 1)

    levels = {
        "coarse": (text @ images.T, positives, of_rows, of_columns, objective.coarse_log_scale.exp()),
        "fine": (spans @ objects.T, span_positives, span_candidates, span_candidates, objective.fine_log_scale.exp()),
    }
    terms = {}
    for name, (cosines, *masks, scale) in levels.items():
        positive, rows, columns = (torch.tensor(mask).reshape(cosines.shape) for mask in masks)
        learned = [scale, objective.biases[name]] if loss == "sigmoid" else [scale]
        forward = direction(cosines, positive, rows, learned)
        terms[name] = (forward + direction(cosines.T, positive.T, columns.T, learned)) / 2
    return terms


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "parts"])
@pytest.mark.parametrize("seed", range(5))
def test_objective_equals_the_plain_loops_with_its_gradients(
    seed: int, parts: bool, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts:
        for name, limit in {"MOST_LOGITS": 0, "TILE_SIDE": 8, "STRIP_LOGITS": 60}.items():
            monkeypatch.setattr(f"spanbox.losses.blocks.{name}", limit)
    batch = random_batch(seed, pairs=5, spans=2, regions=2, views=3)
    features, objective = features_of(batch, seed), objective_of(loss)
    losses, expected = objective(features, batch), by_loops(loss, objective, features, batch)
    torch.testing.assert_close(losses.terms, expected, rtol=1e-9, atol=1e-12)
    leaves = [*features.tensors(), *objective.parameters()]
    gradients, wanted = (
        torch.autograd.grad(sum(terms.values()), leaves, materialize_grads=True) for terms in (losses.terms, expected)
    )
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("views", [{}, {"positives": False}, {"form": "margin"}, {"form": "margin", "gate": True}])
@pytest.mark.parametrize("negatives", [{}, {"per_anchor": 2}, {"per_anchor": 3, "choice": "hardest"}])
@pytest.mark.parametrize("loss", ["info_nce", "sup_con", "decoupled", "sigmoid", "arc_face", "hardness_weighted"])
def test_parts_change_neither_losses_nor_gradients(
    loss: str, negatives: dict[str, Any], views: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    level = {"loss": loss, "negatives": negatives}
    settings = LossSettings.model_validate({"coarse": level, "fine": level, "views": views})
    objective = Objective(settings, dim=DIM).double()
    batch = random_batch(5, pairs=7, spans=3, regions=2, views=2)
    features = features_of(batch)
    leaves = [*features.tensors(), *objective.parameters()]
    whole = objective(features, batch)
    for name, limit in {"MOST_LOGITS": 0, "TILE_SIDE": 10, "STRIP_LOGITS": 200}.items():
        monkeypatch.setattr(f"spanbox.losses.blocks.{name}", limit)
    parts = objective(features, batch)
    torch.testing.assert_close(parts.terms, whole.terms, rtol=1e-10, atol=1e-12)
    gradients, wanted = (torch.autograd.grad(one.total, leaves) for one in (parts, whole))
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-10)


def test_a_view_that_hides_what_is_named_is_pushed_away_and_one_that_keeps_it_is_pulled() -> None:
    batch = with_views(make_batch([[], []], [0, 0], []), [[1, -1, 0]] * 2)
    features = features_of(batch)
    objective_of()(features, batch).total.backward()
    along_text = (features.views.grad * features.text[:, None]).sum(dim=2)  # of the loss, so downhill is up
    assert (along_text[:, 0] < 0).all()
    assert (along_text[:, 1] > 0).all()
    assert not features.views.grad[:, 2].any()


@pytest.mark.parametrize("seed", range(4))
def test_order_of_views_does_not_matter(seed: int) -> None:
    batch = random_batch(seed, pairs=4, spans=2, regions=2, views=3)
    features, order = features_of(batch), [2, 0, 1]
    shuffled = replace(features, views=features.views[:, order])
    same = replace(batch, view_sentence=batch.view_sentence[:, order], view_spans=batch.view_spans[:, order])
    for form in ("candidate", "margin"):
        terms = objective_of(form=form)(features, batch).terms
        torch.testing.assert_close(objective_of(form=form)(shuffled, same).terms, terms)


DEGENERATE = {
    "all hidden": with_views(
        make_batch([[1], [2]], [1, 1], [(0, 0, 0), (1, 0, 0)]), [[-1, -1]] * 2, [[[-1], [-1]], [[-1], [-1]]]
    ),
    "all kept": with_views(make_batch([[1], [2]], [1, 1], [(0, 0, 0), (1, 0, 0)]), [[1, 1]] * 2),
    "one pair": with_views(make_batch([[1]], [1], [(0, 0, 0)]), [[1, -1]], [[[1], [-1]]]),
    "no spans and no regions": with_views(make_batch([[], []], [0, 0], []), [[1, -1]] * 2),
    "spans without regions": with_views(make_batch([[1], [2]], [0, 0], []), [[0]] * 2, [[[-1]], [[-1]]]),
    "all padding": with_views(make_batch([[PADDING_ID]] * 2, [1, 1], [(0, 0, 0)]), [[0]] * 2, [[[-1]], [[-1]]]),
}


@pytest.mark.parametrize("views", [{}, {"form": "margin"}, {"form": "margin", "gate": True}, {"form": "none"}])
@pytest.mark.parametrize("loss", ["info_nce", "decoupled", "sigmoid"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_have_losses_and_gradients(name: str, loss: str, views: dict[str, Any]) -> None:
    batch, objective = DEGENERATE[name], objective_of(loss, **views)
    features = features_of(batch)
    losses = objective(features, batch)
    with torch.autograd.set_detect_anomaly(True):
        losses.total.backward()
    assert losses.total.isfinite()
    for parameter in objective.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    for tensor in features.tensors():
        assert tensor.grad is None or tensor.grad.isfinite().all()


def test_the_hidden_view_is_the_only_negative_of_one_pair() -> None:
    """With the same feature as the image it takes half of the mass."""
    batch = with_views(make_batch([[]], [0], []), [[-1]])
    features = features_of(batch)
    same = replace(features, views=features.image[:, None])
    # The image finds its sentence without a rival, so that direction adds nothing.
    assert objective_of()(same, batch).terms["coarse"].item() == pytest.approx(torch.tensor(2.0).log().item() / 2)


@pytest.mark.parametrize("views", [{"gate": True}, {"form": "none", "gate": True}])
def test_a_gate_without_a_ranking_is_refused(views: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="gate applies to form=margin only"):
        ViewLossSettings.model_validate(views)


def test_settings_survive_being_written_and_read() -> None:
    settings = LossSettings.model_validate({"views": {"form": "margin", "gate": True}})
    assert LossSettings.model_validate(settings.model_dump(mode="json")) == settings
