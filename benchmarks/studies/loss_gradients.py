"""The gradients of the two losses of a REFINE step before any training: `python -m benchmarks.studies.loss_gradients
--output FOLDER` (after the data stages of `make run`).

Measures each setting of `benchmarks.studies.first_result` and its ablations on the same batches of training text:
rewards and their spread within groups, the entropy where rollouts start, the norms of both gradients, and the cosines
between them, and of each with itself on other rollouts of the same text and on other text. Writes FOLDER/losses.md and
FOLDER/rewards.png.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.first_result import ABLATIONS, MAIN, MODEL
from refine import paths, settings
from refine.models import from_pretrained
from refine.objective import ObjectiveSettings, StepResult, next_sequence_step
from refine.phases.prepared_data import Prepared

COLUMNS = {
    "reward": "reward",
    "spread": "its spread",
    "within": "spread in a group",
    "idle": "rollouts without advantage [%]",
    "entropy": "entropy at the positions [nats]",
    "ntp": "gradient norm, NTP",
    "nsp": "gradient norm, λ NSP",
    "both": "cosine NTP, NSP",
    "again": "cosine NSP, other rollouts",
    "across": "cosine NSP, other text",
    "ntp_across": "cosine NTP, other text",
}


@click.command()
@click.option("--output", type=Path, default=paths.results() / "first", show_default=True)
@click.option("--params", type=Path, default=Path("params.yaml"), show_default=True)
@click.option("--batches", default=6, show_default=True, help="Batches of training.mid.sequences_per_step sequences.")
def main(output: Path, params: Path, batches: int) -> None:
    """Measure every setting on the same batches."""
    torch.set_num_threads(1)
    model = from_pretrained(MODEL).eval()
    rewards, lines = {}, [f"| setting | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    arms = {name: of_arm for name, of_arm in {**MAIN, **ABLATIONS}.items() if name not in ("none", "sft")}
    for name, of_arm in arms.items():
        mid = settings.load(params, of_arm).training.mid
        texts = _batches(batches, mid.sequences_per_step)
        found, rewards[name] = _measured(model, texts, mid.objective)
        lines.append(f"| {name} | {' | '.join(f'{found[key]:.3g}' for key in COLUMNS)} |")
        click.echo(lines[-1], err=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / "losses.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw({name: rewards[name] for name in MAIN if name in rewards}, output / "rewards.png")
    click.echo("\n".join(lines))


def _batches(count: int, size: int) -> list[Tensor]:
    import pyarrow.parquet as pq

    rows = pq.read_table(Prepared(paths.prepared()).documents("train"))["tokens"]
    chosen = np.random.default_rng(0).permutation(len(rows))[: count * size]
    return [torch.tensor([rows[int(i)].as_py() for i in part]) for part in np.split(chosen, count)]


def _measured(model: Any, texts: list[Tensor], objective: ObjectiveSettings) -> tuple[dict[str, float], np.ndarray]:
    alone = objective.model_copy(update={"ntp_weight": 0.0})
    results, nsp, again, ntp = [], [], [], []
    for number, tokens in enumerate(texts):
        seeds = torch.arange(len(tokens)) + 1000 * number
        result, gradient = _gradient(model, tokens, alone, seeds)
        results.append(result)
        nsp.append(gradient)
        again.append(_gradient(model, tokens, alone, seeds + 500)[1])
        ntp.append(_gradient(model, tokens, objective.model_copy(update={"nsp_weight": 0.0}), seeds)[1])
    per_batch = [_rewards(result, objective) for result in results]
    found = {name: float(np.mean([one[name] for one in per_batch])) for name in per_batch[0]}
    found |= {
        "ntp": float(np.mean([one.norm().item() for one in ntp])),
        "nsp": float(np.mean([one.norm().item() for one in nsp])),
        "both": _cosine(zip(ntp, nsp, strict=True)),
        "again": _cosine(zip(nsp, again, strict=True)),
        "across": _cosine(itertools.combinations(nsp, 2)),
        "ntp_across": _cosine(itertools.combinations(ntp, 2)),
    }
    return found, np.concatenate([result.rewards[objective.reward][result.valid].flatten() for result in results])


def _gradient(model: Any, tokens: Tensor, objective: ObjectiveSettings, seeds: Tensor) -> tuple[StepResult, Tensor]:
    """The step, and the gradient of all parameters as one vector."""
    model.zero_grad()
    result = next_sequence_step(model, tokens, objective, seeds)
    result.loss.backward()
    return result, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _rewards(result: StepResult, objective: ObjectiveSettings) -> dict[str, float]:
    """Statistics of the rewards, over all rollouts and within the groups that are compared."""
    rewards = result.rewards[objective.reward]  # [B, C, n]
    groups = rewards.flatten(1) if objective.group == "sequence" else rewards.flatten(0, 1)
    at = (result.positions - 1).clamp(min=0)
    return {
        "reward": rewards.mean().item(),
        "spread": rewards.std().item(),
        "within": groups.std(dim=1).mean().item() if groups.shape[1] > 1 else 0.0,
        "idle": 100 * (result.advantages == 0).float().mean().item(),
        "entropy": result.entropy.gather(1, at)[result.valid].mean().item(),
    }


def _cosine(pairs: Any) -> float:
    return float(np.mean([torch.nn.functional.cosine_similarity(a, b, dim=0).item() for a, b in pairs]))


def _draw(rewards: dict[str, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(rewards), 2.8), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(1, len(rewards), sharex=True), rewards.items(), strict=True):
        axis.hist(values, bins=40, density=True)
        axis.set(title=name, xlabel="reward of a rollout", yticks=[])
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
