"""The names of our tags on MLflow's runs and model versions. Each is public: people search and sort by them.

Who owns a run, and its last sign of life, are `refine.system.liveness.OWNER` and `ALIVE`; the identity's tags come from
`refine.identity.Identity.tags`.
"""

from __future__ import annotations

# What a run or version is of
EXPERIMENT, PHASE, ARM = "experiment", "phase", "arm"
SEED = "identity.seed"
# Of runs
KEY = "refine.key"  # hash of what decides the run's result
ERROR = "refine.error"  # why it failed, in a line
MODEL, MODEL_HASH = "refine.model", "refine.model_hash"
TRAINED_BY = "refine.trained_by"  # of an evaluation: the run that trained the model
# Of versions
CHAMPION = "champion"  # the alias of the best version
CHAMPION_WHY = "champion.why"
METRICS, SETTINGS = "refine.metrics", "refine.settings"  # JSON: every number by its tracked name; settings, flat
EVALUATION = "refine.evaluation"  # hash of the documents and prompts that the scores are of
EVALUATION_RUN = "refine.evaluation_run"  # the run that holds every sample's score
EVALUATION_FOLDER = "refine.evaluation_folder"
# Of Prefect's run that an MLflow run belongs to
FLOW_RUN_ID, FLOW_RUN_NAME, PREFECT_URL = "prefect.flow_run_id", "prefect.flow_run_name", "prefect.url"
