"""Scores of a registered version, measured after it was registered: its own evaluation, or an extra one.

Comparisons, the champion's rule and reports use the scores of a version's own evaluation. Extra scores (other lengths,
a few samples, one task) stay beside them and change none of these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from refine.evaluation.record import Evaluation
from refine.tracking.connection import experiment_id
from refine.tracking.registry import Version, add_metrics, show_scores, version_of
from refine.tracking.run import open_run
from refine.tracking.tags import ARM, EVALUATION, EVALUATION_RUN, EXPERIMENT, METRICS, PHASE, SEED, TRAINED_BY

if TYPE_CHECKING:
    from mlflow import MlflowClient


def record_evaluation(
    client: MlflowClient, version: Version, found: Evaluation, files: Iterable[Path], own: bool
) -> Version:
    """Record `found` in a run of its own, with its `files`, and add its scores to `version`. Returns the version.

    own: these become the scores that the version is compared by, in the place of those it has. Otherwise they are extra
    scores, of which one measured on fewer samples than a known one is ignored.
    """
    experiment = experiment_id(client, version.experiment or version.name)
    tags = {name: version.tags[name] for name in (EXPERIMENT, ARM, SEED) if name in version.tags}
    title = f"evaluation of {version.name} {version.number}"
    with open_run(client, experiment, title, tags={PHASE: "evaluation", **tags}) as run:
        run.metrics(found.metrics())
        for file in files:
            client.log_artifact(run.run_id, str(file))
    if not own:
        return add_metrics(client, version, found.metrics())
    return replace_scores(client, version, found.metrics(), scored_on(found), run.run_id)


def replace_scores(
    client: MlflowClient, version: Version, metrics: Mapping[str, float], inputs: str, run_id: str
) -> Version:
    """Compare the version by `metrics` from now on; other metrics, which its training measured, stay.

    inputs: hash of the documents and prompts. run_id: the run that holds every sample's score.
    """
    together = {name: value for name, value in {**version.metrics, **metrics}.items() if math.isfinite(value)}
    tags = {METRICS: json.dumps(together, allow_nan=False), EVALUATION: inputs, EVALUATION_RUN: run_id}
    for name, value in tags.items():
        client.set_model_version_tag(version.name, str(version.number), name, value)
    show_scores(client, version, together)
    if version.run_id and version.evaluation in ("", inputs):
        client.set_tag(run_id, TRAINED_BY, version.run_id)  # `refine report` reads the evaluations that have it
    return version_of(client, version.name, str(version.number))


def is_own(version: Version, inputs: str, complete: bool) -> bool:
    """Whether scores of `inputs` (a hash) are the version's own evaluation: of all documents and prompts (`complete`),
    and the version has none yet, or one of the same inputs."""
    return complete and version.evaluation in ("", inputs)


def scored_on(found: Evaluation) -> str:
    """Hash of the documents and prompts that `found` scored."""
    return str(found.settings.get("scored_on", ""))
