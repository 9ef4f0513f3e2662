"""The one training loop, what a method adds to it, and what lets it stop and go on."""

from tas_fast.engine.evaluation import accuracy
from tas_fast.engine.interrupt import Interrupted, Interruption
from tas_fast.engine.loop import Phase, train
from tas_fast.engine.method import Method, Supervised
from tas_fast.engine.precision import Precision
from tas_fast.engine.run import Run
from tas_fast.engine.session import Session

__all__ = [
    "Interrupted",
    "Interruption",
    "Method",
    "Phase",
    "Precision",
    "Run",
    "Session",
    "Supervised",
    "accuracy",
    "train",
]
