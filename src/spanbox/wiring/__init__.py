"""From a config to the objects of a run: the only place that knows all parts."""

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
