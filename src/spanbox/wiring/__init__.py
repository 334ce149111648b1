"""Builds the objects of a run from its config; the only package that imports all others."""

from spanbox.wiring.evaluating import Evaluated, EvaluationOptions, evaluate_checkpoint, evaluate_to_folder
from spanbox.wiring.loading import Loaded, load
from spanbox.wiring.planning import Plan, plan
from spanbox.wiring.training import Trained, train

__all__ = [
    "Evaluated",
    "EvaluationOptions",
    "Loaded",
    "Plan",
    "Trained",
    "evaluate_checkpoint",
    "evaluate_to_folder",
    "load",
    "plan",
    "train",
]
