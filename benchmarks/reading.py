"""What reading costs: forward and backward over a text, and decoding after texts of any length.

    python -m benchmarks.reading                        # prints the tables; writes reading.md beside this file
    python -m benchmarks.reading --only checkpointing   # measures one section again, keeps the others

Reading: each model beside (1) the token-by-token twin of its memory (DeltaNet and Gated DeltaNet, at the shorter
length; once the op alone against its twin, once the model with the twin in the op's place), (2) a transformers Llama of
the same width, depth and MLP with SDPA, (3) the floor: only the matrix products of the model's own projections and MLP,
forward and backward.
Products: multiplications and additions of all matrix products of a read, counted, over the floor's. No saving elsewhere
can make a read cheaper than that.
Checkpointing: memory and time of a read with gradient checkpointing beside one without.
Decoding: see benchmarks/decoding.py.

Every ratio is the median over rounds of the ratio within a round. The contenders follow each other in a round, so that
other load on the machine slows all of them. Peak memory is the high-water mark of a new process, less what the process
held before the read.
T tokens · D hidden size.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch

from benchmarks.decoding import decoding
from benchmarks.measure import alone, largest_resident_size, matrix_products, measured_rounds, median, seconds, sections
from benchmarks.models import LAYERS, SMALL, VOCABULARY, model_of_width, of_width
from refine.models import FastWeightLanguageModel
from refine.ops.delta_rule import rule as delta_rule
from refine.ops.layout import Layout

LENGTHS = (4096, 16384)
CONTEXTS = (1024, 8192, 32768, 131072)
MODELS = tuple(SMALL)


def _reader(model: Any, tokens: int) -> Callable[[], None]:
    """A read of `tokens` tokens, forward and backward, as a call without arguments."""
    text = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(tokens))

    def read() -> None:
        model.zero_grad(set_to_none=True)
        fast = isinstance(model, FastWeightLanguageModel)
        hidden = model.read(text).hidden if fast else model(text, use_cache=False).last_hidden_state
        hidden.square().mean().backward()

    return read


def _linear_layers(model: Any) -> list[torch.nn.Linear]:
    """The linear layers of the blocks."""
    blocks = model.model.layers if isinstance(model, FastWeightLanguageModel) else model.layers
    return [m for m in blocks.modules() if isinstance(m, torch.nn.Linear)]


def _floor(model: FastWeightLanguageModel, tokens: int) -> Callable[[], None]:
    """The matrix products of the blocks' linear layers, forward and backward, and nothing else."""
    layers = _linear_layers(model)
    inputs = {m.in_features: torch.randn(tokens, m.in_features, requires_grad=True) for m in layers}
    outputs = {m.out_features: torch.randn(tokens, m.out_features) for m in layers}

    def products() -> None:
        for layer in layers:
            layer(inputs[layer.in_features]).backward(outputs[layer.out_features])

    return products


@contextmanager
def _twin() -> Any:
    """Replaces the chunkwise delta rule by the token-by-token one."""
    fast = delta_rule.read

    def by_token(q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, layout: Any) -> Any:
        q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
        decay = None if log_decay is None else log_decay[None]
        o, _ = delta_rule.token_by_token(q[None], k[None], v[None], beta[None], decay, state)
        return o[0], SimpleNamespace(chunks=SimpleNamespace(total=0))  # no chunk states: nothing taps here

    delta_rule.read = by_token
    try:
        yield
    finally:
        delta_rule.read = fast


def _op(name: str, width: int, tokens: int, fast: bool) -> Callable[[], None]:
    """The delta rule alone on one layer's q, k, v, forward and backward: chunk by chunk, or its twin."""
    config = of_width(name, width)
    key = config.get("head_dim", width // config["num_heads"])
    value = int(key * config.get("expand_v", 1))
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(tokens, config["num_heads"], *shape, generator=generator)

    q, k = (torch.nn.functional.normalize(normal(key), dim=-1).requires_grad_() for _ in range(2))
    v, beta = normal(value).requires_grad_(), normal().sigmoid().requires_grad_()
    decay = (-normal().abs()).requires_grad_() if name == "Gated DeltaNet" else None
    upstream, layout = normal(value), Layout([tokens])

    def run() -> None:
        if fast:
            o, _ = delta_rule.read(q, k, v, beta, decay, None, layout)
        else:
            rates = (beta[None], None if decay is None else decay[None])
            o = delta_rule.token_by_token(q[None], k[None], v[None], *rates)[0][0]
        o.backward(upstream)

    return run


def _peak(name: str, width: int, tokens: int, threads: int) -> int:
    """Peak memory of a read [bytes]."""
    return alone(_peak_and_time, name, width, tokens, threads, False)[0]


def _peak_and_time(name: str, width: int, tokens: int, threads: int, checkpointing: bool) -> tuple[int, float]:
    """How much the largest resident size grows over a read [bytes], and its CPU time [s]; runs in a new process.

    A short read first runs all the code once.
    """
    torch.set_num_threads(threads)
    model = model_of_width(name, width)
    if checkpointing:
        model.model.gradient_checkpointing = True
    _reader(model, 128)()
    read, before = _reader(model, tokens), largest_resident_size()
    took = seconds(read, time.process_time)
    return largest_resident_size() - before, took


def reading(width: int, rounds: int, threads: int, lengths: tuple[int, ...]) -> list[str]:
    """The table of reads, a line for each model and length."""
    lines = [
        "| model | T | ms | tokens/s | ÷ floor | ÷ Llama | op: twin ÷ it | model: twin ÷ it | peak MiB | Llama's MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    llama = model_of_width("Llama", width)
    for tokens in lengths:
        llama_peak = _peak("Llama", width, tokens, threads)
        for name in MODELS:
            model = model_of_width(name, width)
            contenders = {"it": _reader(model, tokens), "floor": _floor(model, tokens), "Llama": _reader(llama, tokens)}
            measured = measured_rounds(contenders, rounds)
            twin = "– | –"
            if name != "LaCT" and tokens == min(lengths):
                with _twin():
                    slow = seconds(_reader(model, tokens))
                ops = measured_rounds(
                    {way: _op(name, width, tokens, way == "fast") for way in ("fast", "twin")}, rounds
                )
                twin = f"{median(ops, 'twin', 'fast'):.0f} | {slow / median(measured, 'it'):.1f}"
            it = median(measured, "it")
            beside = [median(measured, "it", other) for other in ("floor", "Llama")]
            peaks = [bytes_ / 2**20 for bytes_ in (_peak(name, width, tokens, threads), llama_peak)]
            lines.append(
                f"| {name} | {tokens} | {1e3 * it:.0f} | {tokens / it:.0f} | {beside[0]:.2f} | {beside[1]:.2f} "
                f"| {twin} | {peaks[0]:.0f} | {peaks[1]:.0f} |"
            )
            click.echo(lines[-1])
    return lines


def products(width: int, tokens: int) -> list[str]:
    """The table of counted matrix products: those of the floor, and those of a read over the floor's."""
    lines = [f"| model | GFLOP of the floor, T = {tokens} | all products of the read ÷ floor's |", "|---|---|---|"]
    for name in (*MODELS, "Llama"):
        model = model_of_width(name, width)
        floor = 6 * tokens * sum(layer.weight.numel() for layer in _linear_layers(model))
        lines.append(f"| {name} | {floor / 1e9:.1f} | {matrix_products(_reader(model, tokens)) / floor:.2f} |")
        click.echo(lines[-1])
    return lines


def checkpointing(width: int, rounds: int, threads: int, lengths: tuple[int, ...]) -> list[str]:
    """The table of gradient checkpointing: peak memory and CPU time of a read without and with it."""
    lines = [
        "With `MALLOC_MMAP_THRESHOLD_=1048576`. By default glibc's malloc keeps freed memory in pieces, and the",
        "process grows as large with checkpointing as without, although its tensors take less.",
        "",
        "| model | T | peak MiB | with checkpointing | with ÷ without | CPU time: with ÷ without |",
        "|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for tokens in lengths:
            pairs = [
                [alone(_peak_and_time, name, width, tokens, threads, on) for on in (False, True)] for _ in range(rounds)
            ]
            plain, less = (statistics.median(pair[i][0] for pair in pairs) / 2**20 for i in (0, 1))
            slower = statistics.median(pair[1][1] / pair[0][1] for pair in pairs)
            lines.append(f"| {name} | {tokens} | {plain:.0f} | {less:.0f} | {less / plain:.2f} | {slower:.2f} |")
            click.echo(lines[-1])
    return lines


@dataclass(frozen=True)
class Options:
    """Sizes of the measurements: hidden size, rounds, threads, tokens of the texts read and of the contexts."""

    hidden: int
    rounds: int
    threads: int
    lengths: tuple[int, ...]
    contexts: tuple[int, ...]


SECTIONS: dict[str, tuple[str, Callable[[Options], list[str]]]] = {  # heading, and how to measure the section
    "reading": ("Reading, forward and backward", lambda o: reading(o.hidden, o.rounds, o.threads, o.lengths)),
    "products": ("Matrix products of a read, counted", lambda o: products(o.hidden, min(o.lengths))),
    "checkpointing": (
        "Gradient checkpointing, forward and backward",
        lambda o: checkpointing(o.hidden, o.rounds, o.threads, o.lengths),
    ),
    "decoding": ("Decoding, one token after a context", lambda o: decoding(o.hidden, o.rounds, o.contexts)),
}


def _measured(name: str, options: Options) -> str:
    """One section: the command, the machine and the table."""
    sizes = {
        model: sum(p.numel() for p in model_of_width(model, options.hidden).parameters()) / 1e6
        for model in (*MODELS, "Llama")
    }
    head = (
        f"`python -m benchmarks.reading --only {name} --hidden {options.hidden} --threads {options.threads} "
        f"--rounds {options.rounds}` on {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"float32, {LAYERS} layers of width {options.hidden}: "
        + ", ".join(f"{model} {size:.1f}M" for model, size in sizes.items())
        + " parameters."
    )
    click.echo("\n" + head)
    return "\n".join([head, "", *SECTIONS[name][1](options)])


@click.command()
@click.option("--hidden", default=256, show_default=True, help="Hidden size, a multiple of 64.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Sections to measure (default: all).")
@click.option("--quick", is_flag=True, help="Short texts and contexts: tries the script, writes nothing.")
def main(hidden: int, rounds: int, threads: int, only: tuple[str, ...], quick: bool) -> None:
    """Measure what reading and decoding cost, print the tables and write reading.md."""
    torch.set_num_threads(threads)
    lengths, contexts = ((256, 512), (256, 512)) if quick else (LENGTHS, CONTEXTS)
    options = Options(hidden, rounds, threads, lengths, contexts)
    measured = {SECTIONS[name][0]: _measured(name, options) for name in only or SECTIONS}
    if quick:
        return
    path = Path(__file__).with_suffix(".md")
    written = sections(path) | measured
    ordered = [(title, written[title]) for title, _ in SECTIONS.values() if title in written]
    text = "# Reading and decoding\n" + "".join(f"\n## {title}\n\n{body}\n" for title, body in ordered)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
