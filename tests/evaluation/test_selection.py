"""What chooses the best checkpoint."""

import pytest
import torch

from banks import make_bank, random_bank
from spanbox.errors import ConfigError
from spanbox.evaluation.evaluate import evaluate
from spanbox.evaluation.selection import SELECTABLE, check_selectable, metric_value, selection_value
from spanbox.metric_names import ANNOTATIONS


class TestWhatCanChoose:
    def test_one_metric_or_several(self) -> None:
        check_selectable("retrieval.i2t.r5")
        check_selectable({"retrieval.i2t.r5": 1.0, "matching.within_image": 0.5})
        check_selectable({"retrieval.i2t.median_rank": -1.0})

    @pytest.mark.parametrize("best_metric", ["retrieval.t2i.r@1", {"retrieval.i2t.r1": 1.0, "retrieval.t2i.r@1": 1.0}])
    def test_an_unknown_one_names_the_nearest(self, best_metric: str | dict[str, float]) -> None:
        with pytest.raises(
            ConfigError,
            match=r"^train\.best_metric: 'retrieval\.t2i\.r@1' cannot choose a checkpoint\. Did you mean "
            r"'retrieval\.t2i\.r1'\? Known: ",
        ):
            check_selectable(best_metric)

    @pytest.mark.parametrize(
        "name", ["retrieval.i2t.count", "matching.within_image.chance", "retrieval.i2t.r1.low", ""]
    )
    def test_what_describes_the_data_or_another_metric_chooses_nothing(self, name: str) -> None:
        with pytest.raises(ConfigError, match="cannot choose a checkpoint"):
            check_selectable(name)

    @pytest.mark.parametrize("weights", [{}, {"retrieval.i2t.r1": 0.0}])
    def test_without_any_weight(self, weights: dict[str, float]) -> None:
        with pytest.raises(
            ConfigError, match=r"^train\.best_metric: all weights are 0; write NAME, or \{NAME: weight,"
        ):
            check_selectable(weights)

    def test_all_that_is_measured_can_choose_but_for_what_describes_the_data(self) -> None:
        bank = random_bank(0)
        ambiguous = torch.zeros(len(bank.spans), dtype=torch.bool)
        ambiguous[bank.links[0, 0]] = True
        measured = evaluate(bank, ["人物"] * len(bank.spans), ambiguous, intervals=False).metrics
        figures = {name for name in measured if name.rpartition(".")[2] not in ANNOTATIONS}
        by_type = "matching.within_image.type.人物"
        described = {"matching.within_image.mean_candidates", "matching.within_image.trivial"}
        described |= {f"embedding.{level}.modality_gap" for level in ("coarse", "fine")}
        assert figures - set(SELECTABLE) == {by_type, *described}
        check_selectable(by_type)
        # The bank has no box of medium size, and no features of a fusion.
        assert set(SELECTABLE) - figures == {"matching.within_image.size.medium", "matching.in_context"}


class TestValue:
    def test_of_a_metric(self) -> None:
        assert selection_value({"retrieval.i2t.r1": 0.5}, "retrieval.i2t.r1") == 0.5

    @pytest.mark.parametrize(
        "name", ["retrieval.i2t.median_rank", "matching.across_set.mean_rank", "embedding.fine.uniformity.spans"]
    )
    def test_of_one_of_which_less_is_better_is_negated(self, name: str) -> None:
        assert selection_value({name: 3.0}, name) == -3.0

    def test_of_a_type(self) -> None:
        assert selection_value({"matching.within_image.type.地点": 0.5}, "matching.within_image.type.地点") == 0.5

    def test_of_a_type_that_the_data_does_not_have(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown metric .*type\.PRE'\. Did you mean '.*type\.PER'\?"):
            selection_value({"matching.within_image.type.PER": 0.5}, "matching.within_image.type.PRE")

    def test_of_a_weighted_sum_the_weights_carry_the_sign(self) -> None:
        metrics = {"retrieval.i2t.r1": 0.5, "matching.within_image": 0.8, "retrieval.i2t.median_rank": 3.0}
        weights = {"retrieval.i2t.r1": 1.0, "matching.within_image": 0.5, "retrieval.i2t.median_rank": -0.01}
        assert selection_value(metrics, weights) == pytest.approx(0.5 + 0.4 - 0.03)

    def test_what_this_data_does_not_allow(self) -> None:
        metrics = evaluate(make_bank(pairs=2), intervals=False).metrics
        with pytest.raises(ConfigError, match="needs entities with boxes"):
            selection_value(metrics, {"retrieval.i2t.r1": 1.0, "matching.within_image": 0.5})


class TestLookup:
    def test_a_known_metric_is_found(self) -> None:
        assert metric_value({"retrieval.i2t.r1": 0.5}, "retrieval.i2t.r1") == 0.5

    def test_an_unknown_metric_names_the_nearest(self) -> None:
        metrics = evaluate(random_bank(0), intervals=False).metrics
        with pytest.raises(
            ConfigError, match=r"unknown metric 'retrieval\.i2t\.r@1'\. Did you mean 'retrieval\.i2t\.r1'\?"
        ):
            metric_value(metrics, "retrieval.i2t.r@1")

    def test_an_unknown_metric_that_resembles_none_lists_all(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown metric 'zzz'\. Known: a, b$"):
            metric_value({"b": 1.0, "a": 2.0}, "zzz")

    def test_a_matching_metric_without_boxes_says_what_is_missing(self) -> None:
        with pytest.raises(ConfigError, match="needs entities with boxes"):
            metric_value(evaluate(make_bank(pairs=2), intervals=False).metrics, "matching.within_image")
