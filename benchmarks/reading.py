"""What reading costs: forward and backward over a text, and decoding after texts of any length.

    python benchmarks/reading.py                        # prints the tables; writes reading.md beside this file
    python benchmarks/reading.py --only checkpointing   # measures one of its sections again, keeps the others

Reading: each model beside the token-by-token twin of its memory (DeltaNet and Gated DeltaNet, at the shorter length;
once the op alone against its twin, once the whole model with the twin in the op's place), a transformers Llama of the
same width, depth and MLP with SDPA, and the floor: nothing but the matrix products of its own projections and MLP,
forward and backward. Products: multiplications and additions of all matrix products of a read, counted, over the
floor's: what no saving elsewhere can undercut. Checkpointing: memory and time of a read with gradient checkpointing
beside one without. Decoding: bytes of the memory and time per token after contexts of several lengths, beside a Llama
whose cache is filled to that length.

Every ratio is the median over rounds of the ratio within a round, in which the contenders follow each other, so that
what else the machine does falls on all. Peak memory is the high-water mark of a process of its own, less what it held
before the read.
T tokens · D hidden size.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measure import alone, largest_resident_size, matrix_products, measured_rounds, median, seconds, sections
from transformers import DynamicCache, LlamaConfig, LlamaModel

from refine.models import FastWeightLanguageModel, from_config
from refine.ops.delta_rule import rule as delta_rule
from refine.ops.layout import Layout

VOCABULARY, LAYERS = 512, 4
LENGTHS = (4096, 16384)
CONTEXTS = (1024, 8192, 32768, 131072)
DECODED = 512  # tokens written after each context, timed together
PIECE = 4096  # a context is read in pieces of this many tokens: the memory is the same, the peak is not


def _config(name: str, width: int) -> dict[str, Any]:
    shared = {
        "hidden_size": width,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "intermediate_size": 3 * width,
    }
    heads = width // 64
    own = {
        "DeltaNet": {"model_type": "delta_net", "num_heads": heads},
        "Gated DeltaNet": {"model_type": "gated_deltanet", "num_heads": heads, "head_dim": 48, "expand_v": 2.0},
        "LaCT": {"model_type": "lact_swiglu", "num_attn_heads": heads, "num_lact_heads": max(1, heads // 2),
                 "lact_chunk_size": 512, "window_size": 512},
    }  # fmt: skip
    return shared | own[name]


MODELS = ("DeltaNet", "Gated DeltaNet", "LaCT")


def _model(name: str, width: int) -> Any:
    torch.manual_seed(0)
    if name != "Llama":
        return from_config(_config(name, width))
    heads = width // 64
    return LlamaModel(
        LlamaConfig(hidden_size=width, num_hidden_layers=LAYERS, num_attention_heads=heads, num_key_value_heads=heads,
                    intermediate_size=3 * width, vocab_size=VOCABULARY, attn_implementation="sdpa")
    )  # fmt: skip


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
    """Those of the blocks."""
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
    """The token-by-token delta rule in the chunkwise one's place."""
    fast = delta_rule.read

    def by_token(q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, layout: Any) -> Any:
        q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
        decay = None if log_decay is None else log_decay[None]
        o, _ = delta_rule.token_by_token(q[None], k[None], v[None], beta[None], decay, state)
        return o[0], SimpleNamespace(chunks=SimpleNamespace(total=0))  # states that nobody asks for

    delta_rule.read = by_token
    try:
        yield
    finally:
        delta_rule.read = fast


def _op(name: str, width: int, tokens: int, fast: bool) -> Callable[[], None]:
    """The delta rule alone on one layer's q, k, v, forward and backward: chunk by chunk, or its twin."""
    config = _config(name, width)
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
    """For a process of its own: how much the largest resident size grows over a read [bytes], and its CPU time [s].

    A short read before has been through all code.
    """
    torch.set_num_threads(threads)
    model = _model(name, width)
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
    llama = _model("Llama", width)
    for tokens in lengths:
        llama_peak = _peak("Llama", width, tokens, threads)
        for name in MODELS:
            model = _model(name, width)
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
            print(lines[-1], flush=True)
    return lines


def products(width: int, tokens: int) -> list[str]:
    """The table of matrix products, counted: of the floor, and of a read over it."""
    lines = [f"| model | GFLOP of the floor, T = {tokens} | all products of the read ÷ floor's |", "|---|---|---|"]
    for name in (*MODELS, "Llama"):
        model = _model(name, width)
        floor = 6 * tokens * sum(layer.weight.numel() for layer in _linear_layers(model))
        lines.append(f"| {name} | {floor / 1e9:.1f} | {matrix_products(_reader(model, tokens)) / floor:.2f} |")
        print(lines[-1], flush=True)
    return lines


def checkpointing(width: int, rounds: int, threads: int, lengths: tuple[int, ...]) -> list[str]:
    """The table of gradient checkpointing: peak memory and CPU time of a read without and with it."""
    lines = [
        "With `MALLOC_MMAP_THRESHOLD_=1048576` set, for glibc's malloc otherwise keeps what is freed, in pieces:",
        "the process then grows as large with checkpointing as without, though its tensors take as little.",
        "",
        "| model | T | peak MiB | with checkpointing | with ÷ without | CPU time: with ÷ without |",
        "|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for tokens in lengths:
            pairs = [[alone(_peak_and_time, name, width, tokens, threads, on) for on in (False, True)]
                     for _ in range(rounds)]  # fmt: skip
            plain, less = (statistics.median(pair[i][0] for pair in pairs) / 2**20 for i in (0, 1))
            slower = statistics.median(pair[1][1] / pair[0][1] for pair in pairs)
            lines.append(f"| {name} | {tokens} | {plain:.0f} | {less:.0f} | {less / plain:.2f} | {slower:.2f} |")
            print(lines[-1], flush=True)
    return lines


@torch.no_grad()
def _after(model: FastWeightLanguageModel, tokens: int) -> Any:
    """The memory after `tokens` tokens."""
    text = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0))
    memory = None
    for start in range(0, tokens, PIECE):
        memory = model.read(text[:, start : start + PIECE], memory).memory
    return memory


def _decoder(model: FastWeightLanguageModel, memory: Any) -> Callable[[], None]:
    """DECODED tokens, one after the other: a whole chunk of LaCT, so that each pays its share of an update."""
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
    for name in (*MODELS, "Llama"):
        model, cells, steps = _model(name, width), [], {}
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
        print(lines[-1], flush=True)
    return lines


SECTIONS = {  # heading, and how the section is measured
    "reading": ("Reading, forward and backward", lambda o: reading(o.hidden, o.rounds, o.threads, o.lengths)),
    "products": ("Matrix products of a read, counted", lambda o: products(o.hidden, min(o.lengths))),
    "checkpointing": (
        "Gradient checkpointing, forward and backward",
        lambda o: checkpointing(o.hidden, o.rounds, o.threads, o.lengths),
    ),
    "decoding": ("Decoding, one token after a context", lambda o: decoding(o.hidden, o.rounds, o.contexts)),
}


def _measured(name: str, options: argparse.Namespace) -> str:
    """One section: what was run on what, and its table."""
    sizes = {m: sum(p.numel() for p in _model(m, options.hidden).parameters()) / 1e6 for m in (*MODELS, "Llama")}
    head = (
        f"`python benchmarks/reading.py --only {name} --hidden {options.hidden} --threads {options.threads} "
        f"--rounds {options.rounds}` on {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"float32, {LAYERS} layers of width {options.hidden}: "
        + ", ".join(f"{model} {size:.1f}M" for model, size in sizes.items())
        + " parameters."
    )
    print("\n" + head, flush=True)
    return "\n".join([head, "", *SECTIONS[name][1](options)])


def main() -> None:
    """Measure, print, write reading.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256, help="hidden size, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="short texts and contexts: tries the script, measures nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.lengths, options.contexts = ((256, 512), (256, 512)) if options.quick else (LENGTHS, CONTEXTS)
    measured = {SECTIONS[name][0]: _measured(name, options) for name in options.only}
    path = Path(__file__).with_suffix(".md")
    written = sections(path) | measured
    ordered = [(title, written[title]) for title, _ in SECTIONS.values() if title in written]
    if not options.quick:
        text = "# Reading and decoding\n" + "".join(f"\n## {title}\n\n{body}\n" for title, body in ordered)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
