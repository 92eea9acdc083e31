"""What an answer costs: from the memory or by re-reading, batched or single; and prefill beside training.

    python -m benchmarks.answering              # prints the table; writes answering.md beside this file

Models of 1.7M to 1.8M parameters with a vocabulary of 4096, float32, on a CUDA device if there is one. Every ratio is
the median over rounds of the ratio within a round. Both sides follow each other in a round, so that other load on the
machine slows both. An answer has 32 tokens; re-reading is measured over its first tokens and scaled to 32.
"""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.measure import seconds
from benchmarks.models import SMALL
from refine.evaluation.decoding import read_contexts
from refine.models import FastWeightLanguageModel, from_config
from refine.ops.token_statistics import token_statistics

LENGTHS = (1024, 4096, 16384)
ANSWER = 32  # tokens
REREAD = {1024: 8, 4096: 4, 16384: 2}  # tokens that re-reading is measured over
BATCH = 8
PREFILL_BOUND = 0.8  # of the training forward's tokens/s


@torch.no_grad()
def answer(model: FastWeightLanguageModel, prompts: Tensor) -> Tensor:
    """Read each prompt [B, T] once, then write greedily from the memory: tokens [B, 32]."""
    memory, last = read_contexts(model, list(prompts))
    return model.continue_greedily(memory, last, ANSWER).tokens


@torch.no_grad()
def answer_by_rereading(model: FastWeightLanguageModel, prompts: Tensor, tokens: int) -> Tensor:
    """The same answer, reading everything again for each token: tokens [B, tokens]."""
    for _ in range(tokens):
        last = model.read(prompts).hidden[:, -1]
        prompts = torch.cat([prompts, model.logits(last).argmax(-1, keepdim=True)], 1)
    return prompts[:, -tokens:]


def training_forward(model: FastWeightLanguageModel, tokens: Tensor) -> Tensor:
    """The forward pass of next-token training over tokens [B, T], which keeps what its backward needs."""
    hidden = model.read(tokens).hidden[:, :-1]
    return token_statistics(hidden, model.get_output_embeddings().weight, tokens[:, 1:]).loss


def measure(model: FastWeightLanguageModel, length: int, rounds: int, device: str) -> dict[str, float]:
    """Medians over `rounds` for prompts of `length` tokens."""
    prompts = torch.randint(0, model.config.vocab_size, (BATCH, length), device=device)
    one, few = prompts[:1], REREAD.get(length, 2)
    assert torch.equal(answer(model, one)[:, :few], answer_by_rereading(model, one, few)), "answers differ"
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        single = seconds(lambda: answer(model, one), device=device)
        reread = seconds(lambda: answer_by_rereading(model, one, few), device=device) / few * ANSWER
        batch = seconds(lambda: answer(model, prompts), device=device)
        prefill = seconds(lambda: torch.no_grad()(read_contexts)(model, list(one)), device=device)
        forward = seconds(lambda: training_forward(model, one), device=device)
        reading = seconds(lambda: model.read(one), device=device)
        measured = {
            "answer": single,
            "rereading": reread / single,
            "batch": BATCH * single / batch,
            "prefill": length / prefill,
            "prefill_ratio": forward / prefill,
            "read_ratio": reading / prefill,
        }
        for name, value in measured.items():
            found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Measurements of each; the table has their medians.")
@click.option("--lengths", type=int, multiple=True, default=LENGTHS, show_default=True, help="Prompts' tokens.")
@click.option("--models", type=click.Choice(list(SMALL)), multiple=True, default=list(SMALL), show_default=True)
@click.option("--output", type=Path, default=Path(__file__).with_suffix(".md"), help="Default: answering.md, here.")
def main(rounds: int, lengths: tuple[int, ...], models: tuple[str, ...], output: Path) -> None:
    """Measure what answers cost, print the table and write it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [
        f"Answers of {ANSWER} tokens; {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {device}; medians of {rounds} rounds.",
        "",
        "| model | prompt | one answer | re-reading / memory | 8 at once / one by one | prefill [tokens/s] "
        "| prefill / training forward | prefill / read with gradient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    click.echo("\n".join(lines))
    for name in models:
        torch.manual_seed(0)
        made: Any = from_config(SMALL[name])
        model = made.to(device)
        for length in lengths:
            m = measure(model, length, rounds, device)
            good = "" if m["prefill_ratio"] >= PREFILL_BOUND else f" (below {PREFILL_BOUND})"
            lines.append(
                f"| {name} | {length} | {m['answer']:.2f} s | {m['rereading']:.1f} × | {m['batch']:.1f} × "
                f"| {m['prefill']:.0f} | {m['prefill_ratio']:.2f}{good} | {m['read_ratio']:.2f} |"
            )
            click.echo(lines[-1])
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
