"""Accuracy and visual tokens on a data set, in many settings, with what could have been chosen."""

from tokenflex.evaluation.metrics import METRICS
from tokenflex.evaluation.questions import Questions, read
from tokenflex.evaluation.records import Evaluation
from tokenflex.evaluation.report import report
from tokenflex.evaluation.run import evaluate
from tokenflex.evaluation.settings import Setting, parse
from tokenflex.evaluation.summary import summarise
from tokenflex.model.sources import load

__all__ = ["METRICS", "Evaluation", "Questions", "Setting", "evaluate", "load", "parse", "read", "report", "summarise"]
