"""Rewards from outside of this package: a function of yours, named in the settings or given to a trainer.

Shape legend: R rollout starts · n rollouts of a start · k tokens of a rollout · D hidden size.

The function is called as ``f(hidden, actual, rollouts, text, tokenizer)``, with what a reward of this package gets
(`refine.objective.rewards`: hidden [R, n, k, D], actual [R, k, D], rollouts [R, n, k], text [R, k]), and the training's
tokenizer. It returns finite numbers [R, n]: a tensor, or what torch.as_tensor takes. They need no gradient.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine.errors import SettingError, reason
from refine.identity import hash_of, hash_of_files
from refine.objective.rewards import REWARDS
from refine.settings.objective import ObjectiveSettings, is_external_reward, reward_kind

Function = Callable[..., Any]


@dataclass(frozen=True)
class ExternalReward:
    """A function from outside as a reward. name: as in the settings. kind: its name in metrics and results."""

    name: str
    kind: str
    function: Function
    tokenizer: Any = None

    def __call__(self, hidden: Tensor, actual: Tensor, rollouts: Tensor, text: Tensor) -> Tensor:
        """The rewards [R, n], detached, in the dtype of `hidden`. Raises SettingError: the function fails, or returns
        something else than finite numbers of that shape."""
        try:
            returned = self.function(hidden, actual, rollouts, text, self.tokenizer)
            found = torch.as_tensor(returned).detach().to(hidden.device, hidden.dtype)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename}, line {where.lineno}"
            raise SettingError(
                f"reward {self.name}: fails with {type(error).__name__}: {reason(error)} ({place})"
            ) from error
        if found.shape != rollouts.shape[:2]:
            raise SettingError(
                f"reward {self.name}: returned numbers of shape {list(found.shape)}; expected [R, n] = "
                f"{list(rollouts.shape[:2])}, one for each of the rollouts {list(rollouts.shape)}"
            )
        if not bool(found.isfinite().all()):
            odd = found[~found.isfinite()][0]
            raise SettingError(f"reward {self.name}: returned {float(odd)} for a rollout; expected finite numbers")
        return found


def external_reward(
    settings: ObjectiveSettings, tokenizer: Any = None, function: Function | None = None
) -> ExternalReward | None:
    """The reward that `settings.reward` names, or `function`. None if it is one of this package's.

    Raises SettingError: it cannot be imported, is not callable, or has no name for its metrics.
    """
    if function is not None:
        if not callable(function):
            raise SettingError(f"reward: expected a function or 'package.module:function', not {shown(function)}")
        kind = getattr(function, "__name__", type(function).__name__)
        return _named(f"{getattr(function, '__module__', '')}:{kind}", kind, function, tokenizer)
    if not is_external_reward(settings.reward):
        return None
    return _named(settings.reward, reward_kind(settings.reward), _imported(settings.reward), tokenizer)


def shown(value: Any) -> str:
    """`value` as a short text."""
    return reason(repr(value), 60)


def check_reward(reward: ExternalReward | None, settings: ObjectiveSettings, vocabulary: int, width: int) -> None:
    """Call `reward` once on random rollouts, before the work. vocabulary: of the tokenizer. width: D of the model.

    Raises SettingError as `ExternalReward.__call__` does.
    """
    if reward is None:
        return
    draws = torch.Generator().manual_seed(0)
    n, k = settings.rollouts, settings.rollout_length
    hidden, actual = (torch.randn(*shape, k, width, generator=draws) for shape in ((2, n), (2,)))
    rollouts, text = (torch.randint(vocabulary, (*shape, k), generator=draws) for shape in ((2, n), (2,)))
    reward(hidden, actual, rollouts, text)


def code_of(settings: ObjectiveSettings) -> dict[str, str]:
    """``{"reward_code": hash}`` of the file that defines an external reward, so that a record names what made it.
    {} for a reward of this package. Raises SettingError as `external_reward`."""
    reward = external_reward(settings)
    if reward is None:
        return {}
    try:
        file = inspect.getsourcefile(inspect.unwrap(reward.function))
    except TypeError:  # an object with __call__, or a function without Python source
        file = inspect.getsourcefile(type(reward.function)) if not inspect.isbuiltin(reward.function) else None
    return {"reward_code": hash_of(reward.name) if file is None else hash_of_files(file)}


def _named(name: str, kind: str, function: Function, tokenizer: Any) -> ExternalReward:
    if kind in REWARDS or not kind.isidentifier():
        why = "is the name of another reward" if kind in REWARDS else "is no name"
        raise SettingError(f"reward {name}: {kind!r} {why}, and metrics need one of its own: rename the function")
    return ExternalReward(name, kind, function, tokenizer)


def _imported(name: str) -> Function:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        raise SettingError(
            f"reward {name}: {module} cannot be imported ({type(error).__name__}: {reason(error)}); install it, or put "
            "its folder into PYTHONPATH"
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise SettingError(f"reward {name}: {module} has no {path!r}; expected the name of a function in it")
        found = getattr(found, part)
    if not callable(found):
        raise SettingError(f"reward {name}: is {shown(found)}; expected a function")
    return found
