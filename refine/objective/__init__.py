"""REFINE: reinforcement of fast weights by next-sequence prediction, one file a step, in the paper's order.

candidates -> positions -> rollouts -> rewards -> advantages -> loss; `step` puts them together. docs/method.md has the
formulas. Pure functions of tensors and one seed a row.
"""

from refine.objective.candidates import spans
from refine.objective.result import StepResult
from refine.objective.step import next_sequence_step
from refine.settings.objective import ObjectiveSettings

__all__ = ["ObjectiveSettings", "StepResult", "next_sequence_step", "spans"]
