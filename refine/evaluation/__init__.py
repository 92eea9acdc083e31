"""Scores that can be trusted: next-token prediction, needles, multi-document questions, LongBench, lm-eval's tasks."""

from refine.evaluation.evaluate import evaluate_model
from refine.evaluation.inputs import Inputs, Sources, load_inputs
from refine.evaluation.record import Evaluation, TaskScore

__all__ = ["Evaluation", "Inputs", "Sources", "TaskScore", "evaluate_model", "load_inputs"]
