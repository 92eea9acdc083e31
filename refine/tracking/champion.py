"""Who may become champion: a rule of params.yaml, what it found, and why, written on the version.

A challenger is held against the present champion on the same documents and prompts. It has to be better by a minimum,
must not lose more than a bound on any guarded metric, and its code and data must be known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refine.errors import ServiceError, nearest
from refine.metric_names import smaller_is_better
from refine.settings.evaluation import RegistrySettings
from refine.tracking.registry import Version, version_of, versions
from refine.tracking.tags import CHAMPION, CHAMPION_WHY

if TYPE_CHECKING:
    from mlflow import MlflowClient

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Verdict:
    """Whether `challenger` may take the place of `champion`, and why (one phrase for each point of the rule)."""

    challenger: Version
    champion: Version | None
    accepted: bool
    reasons: tuple[str, ...]


def judge(rule: RegistrySettings, challenger: Version, champion: Version | None) -> Verdict:
    """Hold `challenger` against the rule. Raises ServiceError where it lacks a metric that the rule names."""
    refused, fine = _origin(challenger)
    values = {name: _metric(challenger, name) for name in (rule.metric, *rule.guards)}
    value = values[rule.metric]
    if champion is None:
        fine.append(f"{rule.metric} {value:.4f}, and there is no champion yet")
    elif champion.number == challenger.number:
        fine.append("it is the champion already")
    elif champion.evaluation != challenger.evaluation:
        refused.append(
            f"version {champion.label}, the champion, was scored on other documents and prompts: evaluate it on these "
            "first"
        )
    else:
        _compare(rule, challenger, champion, refused, fine)
    return Verdict(challenger, champion, not refused, tuple(refused or fine))


def promote(client: MlflowClient, rule: RegistrySettings, wanted: str, dry_run: bool = False) -> Verdict:
    """Judge the version (number or alias) `wanted`, and where the rule accepts it make it champion; writes why on it.

    Raises ServiceError: no such model, version or alias; a metric that it does not have.
    """
    challenger = version_of(client, rule.model_name, wanted)
    champion = next((one for one in versions(client, rule.model_name) if one.is_champion), None)
    verdict = judge(rule, challenger, champion)
    why = "; ".join(verdict.reasons)
    if dry_run:
        return verdict
    if verdict.accepted:
        crown(client, challenger, why)
    else:
        client.set_model_version_tag(challenger.name, str(challenger.number), "champion.refused", why)
    return verdict


def _origin(version: Version) -> tuple[list[str], list[str]]:
    """(reasons against, reasons for): what is known of its code and data."""
    against = []
    if version.tags.get("identity.commit", "unknown") == "unknown":
        against.append("its code is unknown (no git commit): run the experiment in a git checkout")
    elif version.tags.get("identity.dirty") != "false":
        against.append("its code is unknown (uncommitted changes): commit them and run again")
    if version.tags.get("identity.data", "unknown") == "unknown":
        against.append("its data is unknown (no data.dvc): run `refine data fetch` and the experiment again")
    return against, []


def _compare(rule: RegistrySettings, new: Version, old: Version, refused: list[str], fine: list[str]) -> None:
    """Gain on the rule's metric, and losses on the guarded ones."""
    value, before = _metric(new, rule.metric), _metric(old, rule.metric)
    gain = before - value if rule.goal == "minimise" else value - before
    told = f"{rule.metric} {value:.4f} against {before:.4f} of version {old.label}"
    if gain > 0 and gain >= rule.minimum_gain:
        fine.append(f"{told}: better by {gain:.4f}")
    else:
        refused.append(f"{told}: a gain of {gain:.4f}, and at least {rule.minimum_gain:.4f} is asked for")
    for name, bound in rule.guards.items():
        loss = _metric(new, name) - _metric(old, name)
        loss = loss if smaller_is_better(name) else -loss
        if loss > bound:
            refused.append(f"{name} is worse by {loss:.4f}, and at most {bound:.4f} is allowed")
        else:
            fine.append(f"{name} holds ({-loss:+.4f})")


def _metric(version: Version, name: str) -> float:
    value = version.metrics.get(name, math.nan)
    if not math.isfinite(value):
        known = sorted(version.metrics)
        raise ServiceError(
            f"version {version.label} of {version.name} has no metric {name!r}{nearest(name, known)}; it has: "
            f"{', '.join(known) or 'none'}"
        )
    return value


def better(goal: str, value: float, than: float) -> bool:
    """Whether a metric of `value` beats one of `than`, under goal minimise or maximise."""
    return value < than if goal == "minimise" else value > than


def choose_champion(client: MlflowClient, name: str, among: Sequence[Version], metric: str, goal: str) -> Version:
    """Give the alias `champion` to the best by `metric` of `among` and the present champion; the earlier of equals.

    The present champion only counts where its scores are of the same documents and prompts. Raises ServiceError
    where no version has the metric, naming those there are.
    """
    having = [version for version in among if math.isfinite(version.metrics.get(metric, math.nan))]
    if not having:
        known = sorted({one for version in among for one in version.metrics})
        raise ServiceError(
            f"registry.metric {metric!r} is a metric of no version{nearest(metric, known)}; "
            f"there are: {', '.join(known) or 'none'}"
        )
    comparable = {version.evaluation for version in having}
    rivals = [one for one in versions(client, name) if one.is_champion and one.evaluation in comparable]
    best = None
    for version in sorted({v.number: v for v in [*rivals, *having]}.values(), key=lambda version: version.number):
        if metric in version.metrics and (best is None or better(goal, version.metrics[metric], best.metrics[metric])):
            best = version
    assert best is not None
    crown(client, best, f"best {metric} ({goal}) of versions {', '.join(str(v.number) for v in [*rivals, *having])}")
    return version_of(client, name, str(best.number))


def crown(client: MlflowClient, version: Version, why: str) -> None:
    """Move the alias `champion` to `version` and write why on it."""
    client.set_model_version_tag(version.name, str(version.number), CHAMPION_WHY, why)
    client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
