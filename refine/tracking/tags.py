"""The names of our tags on MLflow's runs and model versions."""

from __future__ import annotations

CHAMPION = "champion"


KEY, METRICS, SETTINGS, EVALUATION = "refine.key", "refine.metrics", "refine.settings", "refine.evaluation"


EVALUATION_RUN = "refine.evaluation_run"  # the MLflow run that holds every sample's score


EXPERIMENT, ARM, PHASE = "experiment", "arm", "phase"  # tags; with the headline metrics, what the registry's page shows
