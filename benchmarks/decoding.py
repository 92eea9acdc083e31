"""What decoding costs: bytes of the memory and time per token after contexts of several lengths, beside a Llama whose
cache is filled to that length. A section of `python -m benchmarks.reading`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import torch
from transformers import DynamicCache

from benchmarks.measure import measured_rounds, median
from benchmarks.models import LAYERS, SMALL, VOCABULARY, model_of_width
from refine.models import FastWeightLanguageModel

DECODED = 512  # tokens written after each context, timed together
PIECE = 4096  # a context is read in pieces of this many tokens: the memory is the same, the peak is smaller


@torch.no_grad()
def _after(model: FastWeightLanguageModel, tokens: int) -> Any:
    """The memory after `tokens` tokens."""
    text = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0))
    memory = None
    for start in range(0, tokens, PIECE):
        memory = model.read(text[:, start : start + PIECE], memory).memory
    return memory


def _decoder(model: FastWeightLanguageModel, memory: Any) -> Callable[[], None]:
    """DECODED tokens, one after the other: a complete chunk of LaCT, so that its update is in the time."""
    token = torch.ones(1, 1, dtype=torch.int64)

    def run() -> None:
        now = memory
        with torch.no_grad():
            for _ in range(DECODED):
                now = model.read(token, now).memory

    return run


def _llama_decoder(model: Any, tokens: int, width: int) -> tuple[Callable[[], None], int]:
    """DECODED tokens of a Llama whose cache holds `tokens` (random) tokens, and the bytes of that cache."""
    cache, shape = DynamicCache(), (1, width // 64, tokens, 64)
    for layer in range(LAYERS):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    token = torch.ones(1, 1, dtype=torch.int64)

    def run() -> None:
        with torch.no_grad():
            for _ in range(DECODED):
                model(token, past_key_values=cache, use_cache=True)
        cache.crop(-DECODED)

    return run, LAYERS * 2 * 4 * tokens * width


def decoding(width: int, rounds: int, contexts: tuple[int, ...]) -> list[str]:
    """The table of decoding: bytes of the memory and milliseconds of a token after each context."""
    lines = [
        "| model | " + " | ".join(f"{n // 1024}K: KiB, ms" for n in contexts) + " |",
        "|---|" + "---|" * len(contexts),
    ]
    for name in (*SMALL, "Llama"):
        model, cells, steps = model_of_width(name, width), [], {}
        for tokens in contexts:
            if name == "Llama":
                steps[str(tokens)], size = _llama_decoder(model, tokens, width)
            else:
                memory = _after(model, tokens)
                steps[str(tokens)], size = _decoder(model, memory), memory.nbytes
            cells.append(f"{size / 1024:.0f}")
        measured = measured_rounds(steps, rounds)
        times = [f"{1e3 * median(measured, str(tokens)) / DECODED:.2f}" for tokens in contexts]
        lines.append(f"| {name} | " + " | ".join(f"{size}, {ms}" for size, ms in zip(cells, times, strict=True)) + " |")
        click.echo(lines[-1])
    return lines
