"""From a config to the objects of a run: the only place that knows all parts."""

from spanbox.wiring.evaluating import Evaluated, Loaded, evaluate_checkpoint, load
from spanbox.wiring.planning import Plan, plan
from spanbox.wiring.training import Trained, train

__all__ = ["Evaluated", "Loaded", "Plan", "Trained", "evaluate_checkpoint", "load", "plan", "train"]
