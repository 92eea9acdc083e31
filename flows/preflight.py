"""What would stop an experiment, found before anything is started."""

from __future__ import annotations

from refine import paths
from refine.errors import DataError, SettingError, nearest
from refine.metric_names import HEADLINES
from refine.phases.prepared_data import Prepared
from refine.settings import Settings


def check(settings: Settings) -> None:
    """Find what would stop the experiment, before anything is started: data, folders, MLflow's server.

    Raises RefineError: one line on what is wrong.
    """
    from refine.tracking.connection import check_answers, tracking_uri, writable

    check_answers(tracking_uri())
    writable(paths.home())
    writable(paths.results().resolve())
    data = Prepared(paths.prepared())
    data.check("train", "validation")
    if settings.training.post is not None and not data.questions("train"):
        raise DataError(
            f"{data.folder / 'questions'} holds no prompts to train on: make them with `dvc repro questions`, or set "
            "training.post to null"
        )
    if settings.model.checkpoint is not None:
        from refine.phases.prepared_data import check_model

        check_model(settings.model.checkpoint, data)
    check_metrics(settings, data)


def check_metrics(settings: Settings, data: Prepared) -> None:
    """Raises SettingError where `registry` goes by a metric that no version of this experiment will have."""
    from refine.evaluation.metric_names import evaluated
    from refine.metric_names import validated

    known = evaluated(data.folder) | validated(settings.training, bool(data.questions("validation")))
    rule = settings.registry
    for setting, name in (("metric", rule.metric), *((f"guards.{name}", name) for name in rule.guards)):
        if name not in known:
            told = [one for one in known if one.endswith(HEADLINES)]
            told.sort(key=lambda one: (one.startswith("eval/"), one))
            raise SettingError(
                f"registry.{setting}: no version will have a metric {name!r}{nearest(name, known)}; with this data and "
                f"these settings there will be {', '.join(told)}"
            )
