"""What an answer costs: from the memory or by re-reading, batched or single; and prefill beside training.

    python benchmarks/answering.py              # prints the tables; writes answering.md beside this file

On a CPU: three models of 1-2M parameters with a vocabulary of 4096, float32; on a CUDA device the same. Every ratio is
the median over rounds of the ratio within a round, in which both sides follow each other, so that what else the
machine does falls on both. An answer has 32 tokens; re-reading is measured over its first tokens and scaled to 32.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine.evaluation.decoding import read_contexts
from refine.models import FastWeightLanguageModel, from_config
from refine.ops.token_statistics import token_statistics

SMALL: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 256, "vocab_size": 4096}
MODELS: dict[str, dict[str, Any]] = {
    "DeltaNet": {"model_type": "delta_net", "num_heads": 2, **SMALL},
    "Gated DeltaNet": {"model_type": "gated_deltanet", "num_heads": 2, "head_dim": 48, "expand_v": 1.0, **SMALL},
    "LaCT": {"model_type": "lact_swiglu", "num_attn_heads": 4, "num_lact_heads": 2, "lact_chunk_size": 512,
             "window_size": 512, **SMALL},
}  # fmt: skip
LENGTHS = (1024, 4096, 16384)
ANSWER = 32  # tokens
REREAD = {1024: 8, 4096: 4, 16384: 2}  # tokens that re-reading is measured over
BATCH = 8
PREFILL_BOUND = 0.8  # of the training forward's tokens/s


def seconds(run: Callable[[], object], device: str) -> float:
    """What `run` takes [s]."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def answer(model: FastWeightLanguageModel, prompts: Tensor) -> Tensor:
    """Read each prompt [B, T] once, then write greedily from the memory: tokens [B, 32]."""
    memory, last = read_contexts(model, list(prompts))
    return model.continue_greedily(memory, last, ANSWER).tokens


@torch.no_grad()
def answer_by_rereading(model: FastWeightLanguageModel, prompts: Tensor, tokens: int) -> Tensor:
    """The same, reading everything again for each token: tokens [B, tokens]."""
    for _ in range(tokens):
        last = model.read(prompts).hidden[:, -1]
        prompts = torch.cat([prompts, model.logits(last).argmax(-1, keepdim=True)], 1)
    return prompts[:, -tokens:]


def training_forward(model: FastWeightLanguageModel, tokens: Tensor) -> Tensor:
    """The forward pass of next-token training over tokens [B, T], with what its backward needs kept."""
    hidden = model.read(tokens).hidden[:, :-1]
    return token_statistics(hidden, model.get_output_embeddings().weight, tokens[:, 1:]).loss


def measure(model: FastWeightLanguageModel, length: int, rounds: int, device: str) -> dict[str, float]:
    """Medians over `rounds` for prompts of `length` tokens."""
    prompts = torch.randint(0, SMALL["vocab_size"], (BATCH, length), device=device)
    one, few = prompts[:1], REREAD[length]
    assert torch.equal(answer(model, one)[:, :few], answer_by_rereading(model, one, few)), "answers differ"
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        single = seconds(lambda: answer(model, one), device)
        reread = seconds(lambda: answer_by_rereading(model, one, few), device) / few * ANSWER
        batch = seconds(lambda: answer(model, prompts), device)
        prefill = seconds(lambda: torch.no_grad()(read_contexts)(model, list(one)), device)
        forward = seconds(lambda: training_forward(model, one), device)
        reading = seconds(lambda: model.read(one), device)
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, of which the median is shown")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [
        f"Answers of {ANSWER} tokens; {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {device}; medians of {arguments.rounds} rounds.",
        "",
        "| model | prompt | one answer | re-reading / memory | 8 at once / one by one | prefill [tokens/s] "
        "| prefill / training forward | prefill / read with gradient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        torch.manual_seed(0)
        made: Any = from_config(MODELS[name])
        model = made.to(device)
        for length in arguments.lengths:
            m = measure(model, length, arguments.rounds, device)
            good = "" if m["prefill_ratio"] >= PREFILL_BOUND else f" (below {PREFILL_BOUND})"
            lines.append(
                f"| {name} | {length} | {m['answer']:.2f} s | {m['rereading']:.1f} × | {m['batch']:.1f} × "
                f"| {m['prefill']:.0f} | {m['prefill_ratio']:.2f}{good} | {m['read_ratio']:.2f} |"
            )
            print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
