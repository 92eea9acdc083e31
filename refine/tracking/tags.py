"""The names of our tags on MLflow's runs and model versions. Each is public: people search and sort by them.

`refine.system.liveness.OWNER` and `ALIVE` are further tags: the process that owns a run, and its last sign of life.
"""

from __future__ import annotations

from dataclasses import fields

from refine.identity import Identity

# Of runs and versions: what they belong to
EXPERIMENT, PHASE, ARM = "experiment", "phase", "arm"
# Of runs and versions: as `Identity.tags` writes them
COMMIT, DIRTY, PARAMS, DATA, CODE, SEED = (f"identity.{field.name}" for field in fields(Identity))
# Of runs
KEY = "refine.key"  # hash of everything that decides the result
ERROR = "refine.error"  # why the run failed, in one line
USER = "mlflow.user"  # MLflow's pages show it as the run's maker
DESCRIPTION = "mlflow.note.content"  # Markdown; MLflow shows it at the top of the run's page
TRAINED_BY = "refine.trained_by"  # of an evaluation: id of the run that trained the model
# Of versions
MODEL_HASH = "refine.model_hash"
CHAMPION = "champion"  # the alias of the best version
CHAMPION_WHY, CHAMPION_REFUSED = "champion.why", "champion.refused"  # why it became champion, or why not
METRICS, SETTINGS = "refine.metrics", "refine.settings"  # JSON: metric name -> value, dotted setting -> value
EXTRA = "refine.extra_metrics"  # JSON as METRICS: of evaluations that no other version is compared by
EVALUATION = "refine.evaluation"  # hash of the documents and prompts that the scores are of
EVALUATION_RUN = "refine.evaluation_run"  # id of the run that holds every sample's score
EVALUATION_FOLDER = "refine.evaluation_folder"
# Of runs: the run of Prefect's that they belong to
FLOW_RUN_ID, FLOW_RUN_NAME, PREFECT_URL = "prefect.flow_run_id", "prefect.flow_run_name", "prefect.url"
# Not among a run's tags, which a person reads: the run's RECORD has them beside all else. A version keeps its own.
IN_RECORD = (DIRTY, CODE, FLOW_RUN_NAME)
RECORD = "record.json"  # artifact of a run: its identity, settings, machine and results
