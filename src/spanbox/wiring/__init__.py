"""Builds the objects of a run from its config; the only package that imports all others."""

from spanbox.wiring.evaluating import Evaluated, EvaluationOptions, evaluate_checkpoint, evaluate_to_folder
from spanbox.wiring.gmner_predicting import predict_gmner
from spanbox.wiring.gmner_training import GmnerStart, config_to_resume, train_gmner
from spanbox.wiring.loading import Loaded, load
from spanbox.wiring.planning import Plan, plan
from spanbox.wiring.training import Trained, train

__all__ = [
    "Evaluated",
    "EvaluationOptions",
    "GmnerStart",
    "Loaded",
    "Plan",
    "Trained",
    "config_to_resume",
    "evaluate_checkpoint",
    "evaluate_to_folder",
    "load",
    "plan",
    "predict_gmner",
    "train",
    "train_gmner",
]
