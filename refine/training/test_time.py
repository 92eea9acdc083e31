"""Test-time training: REFINE (or SFT) on a prompt before the model answers it; then the weights are restored.

A second buffer on the model's device, allocated once, keeps the original weights. One fused copy on the device
restores them bit for bit. bf16 weights are trained through float32 copies, because bf16 rounds small steps away
(docs/method.md, Test time).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from refine.errors import TrainingError
from refine.objective import next_sequence_step
from refine.objective.external_rewards import external_reward
from refine.settings.objective import reward_kind
from refine.settings.training import TestTimeSettings
from refine.training.freezing import frozen
from refine.training.order import derived_seed

if TYPE_CHECKING:
    from refine.models import FastWeightLanguageModel


@dataclass
class Adaptation:
    """What adapting to one prompt did: the next-token loss before each step [nats per token], the mean of the optimised
    reward at each step (arm refine), and the seconds of the steps and of the restoring."""

    losses: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    seconds: float = 0.0
    restore_seconds: float = 0.0


class TestTimeTrainer:
    """Adapts a model to one prompt after another: an adapter for `refine.evaluation.answers.answer`.

    `arm`: of `settings`; "sft" is "refine" without the next-sequence loss. `seed`: of the run. A prompt's draws depend
    only on it and on the prompt's tokens, so the order of prompts changes nothing. With `settings.carry_over`, weights
    and optimizer carry over from prompt to prompt and are never restored. `tokenizer`: for a reward from outside.
    `adaptations`: one for each prompt.
    """

    __test__ = False

    def __init__(self, settings: TestTimeSettings, arm: str = "refine", seed: int = 0, tokenizer: Any = None) -> None:
        self.settings, self.seed = settings, seed
        self.objective = settings.objective_of(settings.check_arm(arm))
        self.reward = external_reward(self.objective, tokenizer)
        self.adaptations: list[Adaptation] = []
        self._model: FastWeightLanguageModel | None = None
        self._kept: list[Tensor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._masters: list[nn.Parameter] = []

    @contextlib.contextmanager
    def __call__(self, model: FastWeightLanguageModel, prompt: Tensor) -> Iterator[Adaptation]:
        """A context in which `model` is adapted to `prompt` [1, T] or [T] int64. Gradients and mode do not change.

        Raises TrainingError: the loss is not finite. SettingError: `settings.freeze` does not fit the model.
        """
        with frozen(model, self.settings.freeze, "training.test_time.freeze"), self._adapted(model, prompt) as done:
            yield done

    @contextlib.contextmanager
    def _adapted(self, model: FastWeightLanguageModel, prompt: Tensor) -> Iterator[Adaptation]:
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients, training = [parameter.grad for parameter in weights], model.training
        if model is not self._model:
            self._model, self._optimizer = model, None
            self._kept = [] if self.settings.carry_over else [torch.empty_like(weight) for weight in weights]
        if not self.settings.carry_over:
            _copy(self._kept, weights)
        done = Adaptation()
        self.adaptations.append(done)
        try:
            self._adapt(model, weights, prompt.reshape(1, -1), done)
            model.train(training)
            yield done
        finally:
            began = time.perf_counter()
            if not self.settings.carry_over:
                _copy(weights, self._kept)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            model.train(training)
            _synchronise(model.device)
            done.restore_seconds = time.perf_counter() - began

    def _adapt(
        self, model: FastWeightLanguageModel, weights: list[nn.Parameter], prompt: Tensor, done: Adaptation
    ) -> None:
        began = time.perf_counter()
        if self._optimizer is None or not self.settings.carry_over:
            self._start(weights)
        model.train()
        text = derived_seed(*prompt[0].tolist())
        with torch.enable_grad():
            for step in range(self.settings.steps):
                for weight in weights:
                    weight.grad = None
                seeds = torch.tensor([derived_seed("test-time", self.seed, text, step)], device=prompt.device)
                self._step(model, weights, prompt, seeds, done)
        _synchronise(model.device)
        done.seconds = time.perf_counter() - began

    def _start(self, weights: list[nn.Parameter]) -> None:
        """Make a new optimizer over the weights, or over float32 copies of those that are not float32."""
        s = self.settings
        self._masters = [
            weight if weight.dtype == torch.float32 else nn.Parameter(weight.detach().float()) for weight in weights
        ]
        self._optimizer = torch.optim.AdamW(
            self._masters, lr=s.learning_rate, betas=s.adam_betas, weight_decay=s.weight_decay, foreach=True
        )

    def _step(
        self,
        model: FastWeightLanguageModel,
        weights: list[nn.Parameter],
        prompt: Tensor,
        seeds: Tensor,
        done: Adaptation,
    ) -> None:
        mixed = self.settings.precision == "bfloat16"
        with torch.autocast(prompt.device.type, dtype=torch.bfloat16, enabled=mixed):
            result = next_sequence_step(model, prompt, self.objective, seeds, reward=self.reward)
        done.losses.append(float(result.ntp_loss))
        if not torch.isfinite(result.loss.detach()):
            loss = float(result.loss.detach())
            raise TrainingError(
                f"test-time training: the loss on a prompt of {prompt.shape[1]} tokens is {loss}: "
                "lower training.test_time.learning_rate or steps"
            )
        if result.rollout_tokens:
            done.rewards.append(float(result.rewards[reward_kind(self.objective.reward)][result.valid].mean()))
        result.loss.backward()
        for master, weight in zip(self._masters, weights, strict=True):
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.float()
        nn.utils.clip_grad_norm_(self._masters, self.settings.max_gradient_norm)
        assert self._optimizer is not None
        self._optimizer.step()
        changed = [(w, m) for w, m in zip(weights, self._masters, strict=True) if m is not w]
        if changed:
            _copy([w for w, _ in changed], [m for _, m in changed])


def adapted(
    model: FastWeightLanguageModel,
    prompt: Tensor,
    settings: TestTimeSettings,
    arm: str = "refine",
    seed: int = 0,
    tokenizer: Any = None,
) -> Any:
    """``with adapted(model, prompt, settings):`` adapts the model to one prompt [1, T] or [T] int64 and restores it bit
    for bit at the end. For many prompts use one TestTimeTrainer, which keeps its buffers."""
    return TestTimeTrainer(settings, arm, seed, tokenizer)(model, prompt)


@torch.no_grad()
def _copy(to: list[Any], source: list[Any]) -> None:
    """Copy tensor by tensor on the device; one fused call if dtypes agree."""
    torch._foreach_copy_([one.detach() for one in to], [one.detach() for one in source])


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that measured seconds include its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
