"""Which version becomes champion, and why; the version records the reasons.

`promote` applies the rule in params.yaml: a challenger is compared with the champion on the same documents and prompts.
It must gain a minimum, must not lose more than a bound on any guarded metric, and its code and data must be known.
`choose_champion` is what an experiment does at its end: the best of its versions and the champion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refine.errors import ServiceError, nearest
from refine.identity import UNKNOWN
from refine.metric_names import smaller_is_better
from refine.settings.evaluation import RegistrySettings
from refine.tracking.registry import Version, version_of, versions
from refine.tracking.tags import CHAMPION, CHAMPION_REFUSED, CHAMPION_WHY, COMMIT, DATA, DIRTY

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Verdict:
    """Whether `challenger` may replace `champion`, and why: a phrase for each point of the rule."""

    challenger: Version
    champion: Version | None
    accepted: bool
    reasons: tuple[str, ...]


def judge(rule: RegistrySettings, challenger: Version, champion: Version | None) -> Verdict:
    """Apply the rule. Raises ServiceError if `challenger` lacks a metric that the rule names."""
    against, in_favour = _unknown_origin(challenger), []
    values = {name: _metric(challenger, name) for name in (rule.metric, *rule.guards)}
    if champion is None:
        in_favour.append(f"{rule.metric} {values[rule.metric]:.4f}, and there is no champion yet")
    elif champion.number == challenger.number:
        in_favour.append("it is the champion already")
    elif champion.evaluation != challenger.evaluation:
        against.append(
            f"version {champion.label}, the champion, was scored on other documents and prompts: score both on the "
            f"same ones with `refine evaluate models:/{champion.name}/{champion.number} --rescore`"
        )
    else:
        _compare(rule, challenger, champion, against, in_favour)
    return Verdict(challenger, champion, not against, tuple(against or in_favour))


def promote(client: MlflowClient, rule: RegistrySettings, wanted: str, dry_run: bool = False) -> Verdict:
    """Judge the version (number or alias) `wanted`, and make it champion if the rule accepts it.

    The reasons become a tag of the version, also of a refused one. dry_run: change nothing. Raises ServiceError if the
    model, version or alias does not exist, or if the version lacks a metric.
    """
    challenger = version_of(client, rule.model_name, wanted)
    champion = champion_of(client, rule.model_name)
    verdict = judge(rule, challenger, champion)
    why = "; ".join(verdict.reasons)
    if dry_run:
        return verdict
    if verdict.accepted:
        crown(client, challenger, why)
    else:
        client.set_model_version_tag(challenger.name, str(challenger.number), CHAMPION_REFUSED, why)
    return verdict


def champion_of(client: MlflowClient, name: str) -> Version | None:
    """The version of a registered model that has the alias `champion`, if one has."""
    return next((one for one in versions(client, name) if one.is_champion), None)


def _unknown_origin(version: Version) -> list[str]:
    """Reasons against a version whose code or data cannot be traced."""
    reasons = []
    if version.tags.get(COMMIT, UNKNOWN) == UNKNOWN:
        reasons.append("its code is unknown (no git commit): run the experiment in a git checkout")
    elif version.tags.get(DIRTY) != "false":
        reasons.append("its code is unknown (uncommitted changes): commit them and run again")
    if version.tags.get(DATA, UNKNOWN) == UNKNOWN:
        reasons.append("its data is unknown (no data.dvc): run `refine data fetch` and the experiment again")
    return reasons


def _compare(rule: RegistrySettings, new: Version, old: Version, against: list[str], in_favour: list[str]) -> None:
    """Add the reasons that the two versions' metrics give."""
    value, before = _metric(new, rule.metric), _metric(old, rule.metric)
    gain = before - value if rule.goal == "minimise" else value - before
    both = f"{rule.metric} {value:.4f} against {before:.4f} of version {old.label}"
    if gain > 0 and gain >= rule.minimum_gain:
        in_favour.append(f"{both}: better by {gain:.4f}")
    else:
        against.append(f"{both}: a gain of {gain:.4f}, and at least {rule.minimum_gain:.4f} is required")
    for name, bound in rule.guards.items():
        loss = _metric(new, name) - _metric(old, name)
        loss = loss if smaller_is_better(name) else -loss
        if loss > bound:
            against.append(f"{name} is worse by {loss:.4f}, and at most {bound:.4f} is allowed")
        else:
            in_favour.append(f"{name} holds ({-loss:+.4f})")


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
    """Give the alias `champion` to the best by `metric` of `among` and the present champion; to the first of equals.

    The present champion competes only if it was scored on the same documents and prompts. Raises ServiceError if no
    version has the metric; the message lists the metrics.
    """
    scored = [version for version in among if math.isfinite(version.metrics.get(metric, math.nan))]
    if not scored:
        known = sorted({one for version in among for one in version.metrics})
        raise ServiceError(
            f"registry.metric: no version has a metric {metric!r}{nearest(metric, known)}; "
            f"there are: {', '.join(known) or 'none'}"
        )
    comparable = {version.evaluation for version in scored}
    rivals = [one for one in versions(client, name) if one.is_champion and one.evaluation in comparable]
    best = None
    for version in sorted({v.number: v for v in [*rivals, *scored]}.values(), key=lambda version: version.number):
        if metric in version.metrics and (best is None or better(goal, version.metrics[metric], best.metrics[metric])):
            best = version
    assert best is not None
    crown(client, best, f"best {metric} ({goal}) of versions {', '.join(str(v.number) for v in [*rivals, *scored])}")
    return version_of(client, name, str(best.number))


def crown(client: MlflowClient, version: Version, why: str) -> None:
    """Move the alias `champion` to `version`, with `why` as a tag."""
    client.set_model_version_tag(version.name, str(version.number), CHAMPION_WHY, why)
    client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
