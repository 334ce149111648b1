"""Temperatures and weights of levels as the run goes on: by table, and what is learned instead; options of losses."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from batches import random_batch
from spanbox.losses.formulas import LOSSES
from spanbox.losses.objective import LevelSettings, LossSettings, Objective
from spanbox.losses.settings import scheduled
from spanbox.structures import Features, Losses

BATCH = random_batch(3, pairs=4, spans=2, regions=2)
MIDWAY = 1 - 1 / math.sqrt(2)  # share of the way that a cosine has made after half of its first half


def features() -> Features:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4,), (4,), (4, 2), (4, 2)]
    values = [torch.randn(*shape, 5, generator=generator, dtype=torch.float64) for shape in shapes]
    return Features(*(torch.nn.functional.normalize(value, dim=-1).requires_grad_() for value in values))


def objective_of(coarse: dict[str, Any], fine: dict[str, Any] | None = None) -> Objective:
    return Objective(LossSettings.model_validate({"coarse": coarse, "fine": fine or {}}))


def losses_at(objective: Objective, done: float) -> Losses:
    objective.set_progress(done)
    losses: Losses = objective(features(), BATCH.targets)
    return losses


@pytest.mark.parametrize(
    ("schedule", "start", "end", "done", "value"),
    [
        ("linear", 1.0, 0.3, 0.0, 1.0),
        ("linear", 1.0, 0.3, 0.5, 0.65),
        ("linear", 1.0, 0.3, 1.0, 0.3),
        ("linear", 0.5, 1.0, 0.25, 0.625),
        ("linear", 0.5, 1.0, 1.2, 1.0),
        ("cosine", 1.0, 0.3, 0.0, 1.0),
        ("cosine", 1.0, 0.0, 0.25, 1 - MIDWAY / 2),
        ("cosine", 1.0, 0.3, 0.5, 0.65),
        ("cosine", 1.0, 0.3, 1.0, 0.3),
        ("cosine", 0.5, 1.0, 1.2, 1.0),
        ("linear", 0.4, 0.4, 0.7, 0.4),
        ("fixed", 0.7, None, 0.9, 0.7),
        ("learnable", 0.7, None, 0.9, 0.7),
    ],
)
def test_scheduled(schedule: str, start: float, end: float | None, done: float, value: float) -> None:
    assert scheduled(schedule, start, end, done) == pytest.approx(value)


@pytest.mark.parametrize(("schedule", "quarter"), [("linear", 0.425), ("cosine", 0.5 - 0.3 * MIDWAY / 2)])
def test_a_temperature_follows_its_schedule(schedule: str, quarter: float) -> None:
    level = {"temperature": 0.5, "temperature_end": 0.2, "temperature_schedule": schedule}
    objective = objective_of(level, {"temperature_schedule": "fixed", "temperature": 0.3})
    assert objective.temperatures() == pytest.approx({"coarse": 0.5, "fine": 0.3})
    for done, temperature in ((0.25, quarter), (1.0, 0.2)):
        losses = losses_at(objective, done)
        assert objective.temperatures() == pytest.approx({"coarse": temperature, "fine": 0.3})
        fixed = objective_of({"temperature": temperature, "temperature_schedule": "fixed"})
        assert losses.terms["coarse"].item() == pytest.approx(losses_at(fixed, done).terms["coarse"].item(), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_progress_leaves_a_learned_temperature_alone() -> None:
    objective = objective_of({})
    with torch.no_grad():
        objective.coarse_log_scale.fill_(1.0)
    objective.set_progress(0.7)
    assert objective.coarse_log_scale.item() == 1.0
    assert objective.coarse_log_scale.requires_grad


def test_weights_follow_their_schedules() -> None:
    """The attention of the run moves from sentences to spans."""
    objective = objective_of(
        {"weight": 1.0, "weight_end": 0.3, "weight_schedule": "linear"},
        {"weight": 0.5, "weight_end": 1.0, "weight_schedule": "linear"},
    )
    for done, coarse, fine in ((0.0, 1.0, 0.5), (0.5, 0.65, 0.75), (1.0, 0.3, 1.0)):
        losses = losses_at(objective, done)
        assert objective.weights() == pytest.approx({"coarse": coarse, "fine": fine})
        terms = coarse * losses.terms["coarse"] + fine * losses.terms["fine"]
        assert losses.total.item() == pytest.approx(terms.item())


def test_before_any_progress_the_run_stands_at_its_start() -> None:
    objective = objective_of({"weight": 0.2, "weight_end": 1.0, "weight_schedule": "cosine"})
    assert objective.weights() == {"coarse": 0.2, "fine": 1.0}


@pytest.mark.parametrize("done", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_level_whose_weight_is_zero_for_a_moment_still_gives_gradients(start: float, end: float, done: float) -> None:
    """Or processes that share gradients would wait for them."""
    objective = objective_of({"weight": start, "weight_end": end, "weight_schedule": "linear"})
    losses_at(objective, done).total.backward()
    assert objective.coarse_log_scale.grad is not None


def test_a_level_that_never_has_weight_is_left_out() -> None:
    objective = objective_of({"weight": 0.0, "weight_end": 0.0, "weight_schedule": "linear"})
    assert set(losses_at(objective, 0.5).terms) == set(objective.weights()) == {"fine"}
    assert not objective.coarse_log_scale.requires_grad


def test_a_weight_learned_from_uncertainty_worked_out_by_hand() -> None:
    objective = objective_of({"weight": 2.0, "weight_schedule": "uncertainty"}, {"weight": 0.0}).double()
    losses = losses_at(objective, 0.5)
    term = losses.terms["coarse"].item()
    log_variance = objective.log_variances["coarse"]
    assert objective.weights() == pytest.approx({"coarse": 2.0})
    assert log_variance.item() == pytest.approx(-math.log(2.0))
    assert losses.total.item() == pytest.approx(2.0 * term - math.log(2.0))
    losses.total.backward()
    assert log_variance.grad is not None
    assert log_variance.grad.item() == pytest.approx(1 - 2.0 * term)


def test_a_learned_weight_comes_to_rest_at_one_over_the_loss() -> None:
    objective = objective_of({"weight_schedule": "uncertainty"}, {"weight": 0.0}).double()
    term = losses_at(objective, 0.0).terms["coarse"].item()
    with torch.no_grad():
        objective.log_variances["coarse"].fill_(math.log(term))
    losses_at(objective, 0.0).total.backward()
    assert objective.weights()["coarse"] == pytest.approx(1 / term)
    assert objective.log_variances["coarse"].grad.item() == pytest.approx(0, abs=1e-12)


def test_the_weights_of_levels_are_learned_apart() -> None:
    objective = objective_of({"weight_schedule": "uncertainty"}, {"weight_schedule": "uncertainty"}).double()
    losses = losses_at(objective, 0.0)
    losses.total.backward()
    for name, log_variance in objective.log_variances.items():
        assert log_variance.grad.item() == pytest.approx(1 - losses.terms[name].item())


def test_a_checkpoint_holds_what_is_learned() -> None:
    level = {"loss": "sigmoid", "weight_schedule": "uncertainty"}
    objective, other = objective_of(level), objective_of(level)
    with torch.no_grad():
        for number, parameter in enumerate(objective.parameters()):
            parameter.fill_(-0.1 * number)
    other.load_state_dict(objective.state_dict())
    assert other.weights() == objective.weights()
    assert other.temperatures() == objective.temperatures()
    assert losses_at(other, 0.0).total == losses_at(objective, 0.0).total


def test_an_objective_without_extras_has_the_two_temperatures_alone() -> None:
    assert set(objective_of({}).state_dict()) == {"coarse_log_scale", "fine_log_scale"}


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ({"temperature_schedule": "linear"}, "temperature_schedule=linear needs temperature_end"),
        ({"temperature_end": 0.05}, "temperature_end has no effect with temperature_schedule=learnable"),
        ({"temperature_schedule": "linear", "temperature_end": 0.001}, r"greater than or equal to 0\.01"),
        ({"temperature_schedule": "step"}, "'learnable', 'fixed', 'linear' or 'cosine'"),
        ({"weight_schedule": "cosine"}, "weight_schedule=cosine needs weight_end"),
        ({"weight_end": 0.3}, "weight_end has no effect with weight_schedule=fixed"),
        ({"weight_schedule": "uncertainty", "weight_end": 0.3}, "has no effect with weight_schedule=uncertainty"),
        ({"weight_schedule": "uncertainty", "weight": 0.0}, "needs an initial weight above 0"),
        ({"learnable": False}, "Extra inputs are not permitted"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(level: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LevelSettings.model_validate(level)


def test_settings_have_published_values_unless_given() -> None:
    assert LevelSettings(loss="sigmoid").temperature == 0.1
    assert LevelSettings(loss="sigmoid", temperature=0.3, bias=-2.0).temperature == 0.3
    assert LevelSettings(loss="arc_face").margin == 0.5
    assert LevelSettings(loss="arc_face", margin=0.2).margin == 0.2
    assert LevelSettings(loss="hardness_weighted").beta == 1.0
    assert LevelSettings().temperature == 0.07


@pytest.mark.parametrize("name", LOSSES)
def test_settings_survive_being_written_and_read(name: str) -> None:
    level = LevelSettings.model_validate({"loss": name})
    assert LevelSettings.model_validate(level.model_dump(mode="json")) == level


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ({"loss": "triplet"}, "Input should be 'info_nce'"),
        ({"loss": 3}, "Input should be 'info_nce'"),
        ({"margin": 0.2}, "margin is not an option of the loss info_nce"),
        ({"loss": "arc_face", "beta": 1.0}, "beta is not an option of the loss arc_face"),
        ({"loss": "arc_face", "margin": 2.0}, "less than or equal to 1.5"),
        ({"loss": "hardness_weighted", "beta": -1.0}, "greater than or equal to 0"),
        ({"loss": "decoupled", "weight_schedule": "uncertainty"}, "never negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(level: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LevelSettings.model_validate(level)
