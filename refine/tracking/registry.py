"""Model versions in MLflow's registry: a model folder (config, safetensors, tokenizer; no pickle) with its scores,
settings and identity as tags, so that a version explains itself without the run that made it.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import ServiceError, nearest
from refine.metric_names import COUNTS, HEADLINES, told_apart
from refine.system.files import folder_beside
from refine.system.leftovers import temporary_folder
from refine.system.names import check_name
from refine.system.quiet import no_download_bars
from refine.system.readers import in_form, mapping, parsed_json
from refine.tracking.model_storage import from_store, store
from refine.tracking.references import LATEST, parse_reference
from refine.tracking.tags import (
    ARM,
    CHAMPION,
    EVALUATION,
    EVALUATION_RUN,
    EXPERIMENT,
    EXTRA,
    KEY,
    METRICS,
    PHASE,
    SETTINGS,
)
from refine.tracking.version_card import version_card

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Version:
    """A registered version. metrics: every number of its own evaluation and its training, by its tracked name. extra:
    those of other evaluations. settings: of its training, by dotted name."""

    name: str
    number: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`3 (mid refine)`: number, phase and arm."""
        trained_by = f"{self.phase} {self.arm}".strip()
        return f"{self.number} ({trained_by})" if trained_by else str(self.number)

    @property
    def phase(self) -> str:
        """The phase that trained it last."""
        return self.tags.get(PHASE, "")

    @property
    def arm(self) -> str:
        """The arm that trained it."""
        return self.tags.get(ARM, "")

    @property
    def experiment(self) -> str:
        """The experiment that made it."""
        return self.tags.get(EXPERIMENT, "")

    @property
    def evaluation(self) -> str:
        """Hash of the documents and prompts it was scored on. Only scores with the same hash can be compared."""
        return self.tags.get(EVALUATION, "")

    @property
    def is_champion(self) -> bool:
        """Whether it has the alias `champion`."""
        return CHAMPION in self.aliases


def register(
    client: MlflowClient,
    name: str,
    folder: str | Path,
    *,
    key: str,
    run_id: str,
    experiment_id: str,
    metrics: Mapping[str, float],
    settings: Mapping[str, Any],
    tags: Mapping[str, Any],
    headline: Sequence[str] = (),
    scored_by: str = "",
) -> Version:
    """Make the model in `folder` a version of the registered model `name`. A version with this `key` is returned as is.

    metrics: logged to the model, and kept as a tag of the version, as are the settings. headline: metrics that also get
    a tag each, for MLflow's registry page. run_id: the run that trained the model. scored_by: the run that evaluated
    it, which the metrics are logged to (default: run_id). The version is created last, when everything is stored.
    Raises ServiceError if the folder is no model, the store of models does not answer, or MLflow refuses.
    """
    known = [version for version in versions(client, name) if version.tags.get(KEY) == key]
    if known:
        return known[-1]
    if not (Path(folder) / "config.json").is_file():
        raise ServiceError(f"{folder} is no model folder (no config.json): nothing to register")
    texts = {n: str(v) for n, v in tags.items()}
    card = version_card(name, Path(folder), metrics, settings, texts)
    model_id = store(client, folder, experiment_id=experiment_id, name=name, run_id=run_id, tags=texts, card=card)
    _log_metrics(client, scored_by or run_id, model_id, metrics)
    _ensure_registered(client, name)
    shown = {_short(one): f"{metrics[one]:.4f}" for one in headline if one in metrics}
    records = {KEY: key, METRICS: json.dumps(metrics), SETTINGS: json.dumps(settings, default=str)}
    made = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags={**_first(tags, (PHASE, ARM)), **shown, **texts, **records},
        model_id=model_id,
        description=_description(tags, shown),
    )
    return _version(client.get_model_version(name, made.version))


def _short(metric: str) -> str:
    """`eval/niah_single_1/1024/score` is `niah_single_1/1024` on MLflow's page, whose columns are narrow."""
    return metric.removeprefix("eval/").removesuffix("/score")


def _first(tags: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The tags that tell versions apart. MLflow's page shows tags in the order they were given, so these come first."""
    return {name: str(tags[name]) for name in names if name in tags}


def _description(tags: Mapping[str, Any], shown: Mapping[str, str]) -> str:
    """A sentence about a version: phase, arm, experiment and the headline metrics."""
    trained = f"{tags.get(PHASE, '')} {tags.get(ARM, '')}".strip()
    scores = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"{trained} of experiment {tags.get(EXPERIMENT, '')}: {scores}"


def versions(client: MlflowClient, name: str) -> list[Version]:
    """All versions of `name`, oldest first; empty if there is no such model."""
    check_name(name, "a registered model")
    return sorted(
        (_version(client.get_model_version(name, one.version)) for one in _pages(client, f"name = '{name}'")),
        key=lambda version: version.number,
    )


def version_of(client: MlflowClient, name: str, wanted: str) -> Version:
    """The version with number or alias `wanted`, or the `latest`. Raises ServiceError, which lists those there are."""
    found = versions(client, name)
    if not found:
        known = [model.name for model in client.search_registered_models()]
        raise ServiceError(
            f"no registered model {name!r}{nearest(name, known)}; there {'is' if len(known) == 1 else 'are'}: "
            f"{', '.join(known) or 'none: `make run` registers the first'}"
        )
    if wanted == LATEST:
        return found[-1]
    for version in found:
        if wanted == str(version.number) or wanted in version.aliases:
            return version
    aliases = [alias for version in found for alias in version.aliases]
    raise ServiceError(
        f"{name} has no version or alias {wanted!r}{nearest(wanted, aliases)}; versions: "
        f"{', '.join(str(version.number) for version in found)}; aliases: {', '.join(aliases) or 'none'}"
    )


def download(client: MlflowClient, reference: str, folder: str | Path | None = None) -> Path:
    """The model folder behind ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME/latest``.

    It is copied to `folder` unless it lies on this machine's disk. Raises ServiceError if the model, version or alias
    does not exist, or if the store of models does not answer.
    """
    import mlflow

    name, wanted = parse_reference(reference)
    version = version_of(client, name, wanted)
    uri = f"models:/{name}/{version.number}"

    def copy() -> str:
        where = None if folder is None else str(folder)
        return str(
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=where, tracking_uri=client.tracking_uri)
        )

    with no_download_bars():
        return Path(from_store(copy, f"fetching {uri}"))


def fetch(client: MlflowClient, version: Version, folder: Path) -> Path:
    """Copy the model of `version` to `folder`, which appears once the copy is complete."""
    with temporary_folder("download") as downloads, folder_beside(folder) as beside:
        found = download(client, f"models:/{version.name}/{version.number}", downloads)
        shutil.copytree(found, beside, dirs_exist_ok=True)
    return folder


def add_metrics(client: MlflowClient, version: Version, metrics: Mapping[str, float]) -> Version:
    """Add the scores of a later evaluation to a version, as `extra`. Returns the version with them.

    A score measured on fewer samples than a known one is ignored. The metrics go to the evaluation's run, not to the
    training's, whose curves show only what the training measured.
    """
    metrics = _over_no_fewer(metrics, {**version.metrics, **version.extra})
    together = {**version.extra, **metrics}
    client.set_model_version_tag(version.name, str(version.number), EXTRA, json.dumps(together, allow_nan=False))
    source = client.get_model_version(version.name, str(version.number)).source or ""
    if source.startswith("models:/m-"):
        run_id = version.tags.get(EVALUATION_RUN, version.run_id)
        _log_metrics(client, run_id, source.removeprefix("models:/"), metrics)
    return version_of(client, version.name, str(version.number))


def show_scores(client: MlflowClient, version: Version, metrics: Mapping[str, float]) -> None:
    """Renew the scores that MLflow's page lists as tags and in the description. A version that shows none yet gets all
    headlines of `metrics`."""
    listed = [one for one in metrics if _short(one) in version.tags]
    chosen = listed or [one for one in metrics if one.endswith(HEADLINES)]
    shown = {_short(one): f"{metrics[one]:.4f}" for one in chosen}
    for name, value in shown.items():
        client.set_model_version_tag(version.name, str(version.number), name, value)
    client.update_model_version(version.name, str(version.number), _description(version.tags, shown))


def _over_no_fewer(found: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    """`found` without the metrics that were measured on fewer samples or sequences than in `known`."""
    counts = [name for name in found if name.endswith(COUNTS) and found[name] < known.get(name, 0.0)]
    fewer = {name.rpartition("/")[0] for name in counts}
    return {name: value for name, value in found.items() if name.rpartition("/")[0] not in fewer}


def _version(found: ModelVersion) -> Version:
    tags = dict(found.tags or {})
    where = f"version {found.version} of {found.name}: tag"
    metrics = _numbers(_fields(tags, METRICS, where), f"{where} {METRICS}")
    return Version(
        found.name,
        int(found.version),
        tags,
        tuple(found.aliases or ()),
        told_apart(metrics) if tags.get(PHASE) == "post" else metrics,
        _fields(tags, SETTINGS, where),
        found.run_id or "",
        _numbers(_fields(tags, EXTRA, where), f"{where} {EXTRA}"),
    )


def _fields(tags: Mapping[str, str], tag: str, where: str) -> dict[str, Any]:
    """The JSON in a tag; empty without it. Raises ServiceError: it is not what `register` writes."""
    value = parsed_json(tags.get(tag, "{}"), f"{where} {tag}", ServiceError)
    return mapping(value, f"{where} {tag}", "what `refine` writes there", ServiceError)


def _numbers(values: Mapping[str, Any], where: str) -> dict[str, float]:
    with in_form(where, "numbers by name", ServiceError):
        return {name: float(value) for name, value in values.items() if value is not None}


def _pages(client: MlflowClient, wanted: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_model_versions(wanted, max_results=200, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return found


def _ensure_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise ServiceError(f"MLflow does not register {name!r}: {' '.join(str(error).split())[:200]}") from None


def _log_metrics(client: MlflowClient, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
    """Log the metrics to the run and to its logged model."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [
        Metric(name, float(value), now, 0, model_id=model_id, run_id=run_id)
        for name, value in metrics.items()
        if math.isfinite(value)
    ]
    for first in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[first : first + 1000])
