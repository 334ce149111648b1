"""All metrics of a feature bank under flat, dotted names, and their table for the terminal.

The names are an interface: the config chooses a checkpoint by one (`selection`), the log and `metrics.json` hold them.
docs/evaluation.md defines each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor

from spanbox.evaluation.embedding import alignment_outcomes, embedding_figures
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.grounding import grounding_outcomes
from spanbox.evaluation.matching import across_set_outcomes, within_image_facts, within_image_outcomes
from spanbox.evaluation.outcomes import Figure, Outcome, figures_of
from spanbox.evaluation.own_image import score_own_image
from spanbox.evaluation.presence import presence_figures
from spanbox.evaluation.ranking import BLOCK_ELEMENTS
from spanbox.evaluation.reranking import RERANKED, PairScores, gains, in_context_outcomes, reranked_outcomes
from spanbox.evaluation.retrieval import retrieval_outcomes
from spanbox.metric_names import ANNOTATIONS, COUNTED, is_part, is_rate
from spanbox.progress import StartProgress, hidden

COLUMNS = ("metric", "value", "95 %", "chance", "baseline", "count")  # of the table for the terminal


@dataclass(frozen=True)
class Evaluation:
    """Metrics, and the outcomes of their queries."""

    metrics: dict[str, float]  # NAME, NAME.low, NAME.high, NAME.chance, NAME.baseline, NAME.count
    outcomes: dict[str, Outcome]  # of the metrics that are means over queries, by NAME


def evaluate(
    bank: FeatureBank,
    entity_types: Sequence[str | None] | None = None,
    ambiguous: Tensor | None = None,
    *,
    intervals: bool = True,
    threshold: float | None = None,
    device: torch.device | str = "cpu",
    block_elements: int = BLOCK_ELEMENTS,
    progress: StartProgress = hidden,
    fused_scores: PairScores | None = None,
    reranked: int = RERANKED,
) -> Evaluation:
    """Every metric that the data allow: those of sentences and images always, the others where spans are linked to
    regions. A metric that cannot be measured is absent, not zero.

    Args:
        entity_types: (S,) type of each span of the bank, for figures by type; None where it is unknown.
        ambiguous: (S,) bool, spans for which it is unknown which of several boxes is meant.
        intervals: whether to compute intervals, which takes longer than the figures of a small set.
        threshold: score from which an entity counts as shown, chosen on other data.
        device: where similarities are computed; it needs float64.
        block_elements: similarities that are held at a time.
        progress: shows the rankings.
        fused_scores: of pairs of a sentence and an image, to re-rank the candidates of the towers.
        reranked: candidates that the towers propose; 0: none.
    """
    outcomes = retrieval_outcomes(bank, device=device, block_elements=block_elements, progress=progress)
    figures: dict[str, Figure] = {}
    facts: dict[str, float] = {}
    if len(bank.links):
        own = score_own_image(bank)
        outcomes |= within_image_outcomes(own, entity_types, ambiguous)
        outcomes |= across_set_outcomes(bank, device=device, block_elements=block_elements, progress=progress)
        outcomes |= grounding_outcomes(own)
        figures, facts = presence_figures(own, bank.span_shown, threshold=threshold, intervals=intervals)
        facts |= within_image_facts(own)
        if bank.spans_in_context is not None and bank.regions_in_context is not None:
            in_context = replace(bank, spans=bank.spans_in_context, regions=bank.regions_in_context)
            outcomes |= in_context_outcomes(score_own_image(in_context))
    if fused_scores is not None and reranked:
        outcomes |= reranked_outcomes(bank, fused_scores, reranked, device=device, progress=progress)
    outcomes |= alignment_outcomes(bank)
    figures = figures_of(outcomes, intervals=intervals) | figures | embedding_figures(bank, intervals=intervals)
    figures |= gains(outcomes)
    metrics = {key: value for name, figure in figures.items() for key, value in figure.named(name).items()}
    means = {name: outcome for name, outcome in outcomes.items() if len(outcome) and outcome.summary == "mean"}
    return Evaluation(metrics | facts, means)


def metrics_table(metrics: Mapping[str, float], title: str | Text | None = None) -> Table:
    """The metrics for the terminal, shares in percent: value, interval, chance, a trivial rule, number of queries.

    Names are grouped by their first two parts. Breakdowns, which may be long, and empty columns are left out.
    """
    table = Table(
        title=Text(title) if isinstance(title, str) else title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    shown = [name for name in metrics if _has_a_row(metrics, name)]
    rows: list[tuple[str, ...]] = []
    for family in dict.fromkeys(map(_family, shown)):
        rows.append((family, *(_cells(metrics, family) if family in shown else ())))
        rows += [
            (f"  {name.removeprefix(family)}", *_cells(metrics, name))
            for name in shown
            if name.startswith(f"{family}.")
        ]
    columns = zip_longest(*rows, fillvalue="")
    filled = {heading: cells for heading, cells in zip(COLUMNS, columns, strict=False) if any(cells)}
    for heading in filled:
        table.add_column(heading, justify="left" if heading == "metric" else "right", no_wrap=True)
    for row in zip(*filled.values(), strict=True):
        table.add_row(*row)
    return table


def _has_a_row(metrics: Mapping[str, float], name: str) -> bool:
    beside, _, last = name.rpartition(".")
    return (last not in ANNOTATIONS or beside not in metrics) and not is_part(name)


def _cells(metrics: Mapping[str, float], name: str) -> tuple[str, ...]:
    low, high, chance, baseline = (metrics.get(f"{name}.{part}") for part in ANNOTATIONS[:-1])
    count = metrics.get(f"{name}.count")
    return (
        _shown(name, metrics[name]),
        "" if low is None or high is None else f"{_bare(name, low)} to {_bare(name, high)}",
        "" if chance is None else _shown(name, chance),
        "" if baseline is None else _shown(name, baseline),
        "" if count is None else f"{count:,.0f}",
    )


def _family(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _shown(name: str, value: float) -> str:
    return f"{_bare(name, value)} %" if is_rate(name) else _bare(name, value)


def _bare(name: str, value: float) -> str:
    if is_rate(name):
        return f"{100 * value:z.1f}"
    last = name.rpartition(".")[2]
    if last == "count":
        return f"{value:,.0f}"
    return f"{value:z,.1f}" if last in COUNTED else f"{value:z.3f}"
