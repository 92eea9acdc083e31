"""What reading costs: forward and backward over a text, and decoding after texts of any length.

    python benchmarks/reading.py            # prints the tables; writes reading.md beside this file

Reading: each model beside the token-by-token twin of its memory (DeltaNet and Gated DeltaNet, at the shorter length;
once the op alone against its twin, once the whole model with the twin in the op's place), a transformers Llama of the
same width, depth and MLP with SDPA, and the floor: nothing but the matrix products of its own projections and MLP,
forward and backward. Decoding: bytes of the memory and time per token after contexts of several lengths, beside a
Llama whose cache is filled to that length.

Every ratio is the median over rounds of the ratio within a round, in which the contenders follow each other, so that
what else the machine does falls on all. Peak memory is that of a process of its own, less what it held before the read.
T tokens · D hidden size.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from refine.models import FastWeightLanguageModel, from_config
from refine.ops import delta_rule
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


def _floor(model: FastWeightLanguageModel, tokens: int) -> Callable[[], None]:
    """The matrix products of the blocks' linear layers, forward and backward, and nothing else."""
    layers = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
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


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _rounds(contenders: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """Seconds of every contender in every round, after a warm-up each."""
    for run in contenders.values():
        run()
    return [{name: _seconds(run) for name, run in contenders.items()} for _ in range(rounds)]


def _median(rounds: list[dict[str, float]], name: str, beside: str | None = None) -> float:
    return statistics.median(each[name] / (each[beside] if beside else 1) for each in rounds)


def _peak(name: str, width: int, tokens: int, threads: int) -> float:
    """Peak memory of one read in a process of its own, less what the process held before it [bytes]."""
    command = [
        sys.executable,
        __file__,
        "--peak",
        name,
        "--hidden",
        str(width),
        "--tokens",
        str(tokens),
        "--threads",
        str(threads),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _print_peak(name: str, width: int, tokens: int) -> None:
    """Print the growth of the largest resident size over one read, after a short one has loaded all code [bytes]."""
    model = _model(name, width)
    _reader(model, 128)()
    before = _largest_resident_size()
    _reader(model, tokens)()
    print(_largest_resident_size() - before)


def _largest_resident_size() -> int:
    """The most memory this process has held so far [bytes]. Linux's getrusage would count its parent's in, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


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
            measured = _rounds(contenders, rounds)
            twin = "– | –"
            if name != "LaCT" and tokens == min(lengths):
                with _twin():
                    slow = _seconds(_reader(model, tokens))
                ops = _rounds({way: _op(name, width, tokens, way == "fast") for way in ("fast", "twin")}, rounds)
                twin = f"{_median(ops, 'twin', 'fast'):.0f} | {slow / _median(measured, 'it'):.1f}"
            it = _median(measured, "it")
            beside = [_median(measured, "it", other) for other in ("floor", "Llama")]
            peaks = [bytes_ / 2**20 for bytes_ in (_peak(name, width, tokens, threads), llama_peak)]
            lines.append(
                f"| {name} | {tokens} | {1e3 * it:.0f} | {tokens / it:.0f} | {beside[0]:.2f} | {beside[1]:.2f} "
                f"| {twin} | {peaks[0]:.0f} | {peaks[1]:.0f} |"
            )
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
        measured = _rounds(steps, rounds)
        times = [f"{1e3 * _median(measured, str(tokens)) / DECODED:.2f}" for tokens in contexts]
        lines.append(f"| {name} | " + " | ".join(f"{size}, {ms}" for size, ms in zip(cells, times, strict=True)) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, print, write reading.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256, help="hidden size, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="short texts and contexts: tries the script, measures nothing"
    )
    parser.add_argument("--peak", choices=(*MODELS, "Llama"), help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        _print_peak(arguments.peak, arguments.hidden, arguments.tokens)
        return
    lengths, contexts = ((256, 512), (256, 512)) if arguments.quick else (LENGTHS, CONTEXTS)
    sizes = {
        name: sum(p.numel() for p in _model(name, arguments.hidden).parameters()) / 1e6 for name in (*MODELS, "Llama")
    }
    lines = [
        "# Reading and decoding",
        "",
        f"`python benchmarks/reading.py --hidden {arguments.hidden} --threads {arguments.threads}` on "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, float32, {LAYERS} layers of width "
        f"{arguments.hidden}: " + ", ".join(f"{name} {size:.1f}M" for name, size in sizes.items()) + " parameters.",
        "", "## Reading, forward and backward", "",
        *reading(arguments.hidden, arguments.rounds, arguments.threads, lengths),
        "", "## Decoding, one token after a context", "", *decoding(arguments.hidden, arguments.rounds, contexts), "",
    ]  # fmt: skip
    if not arguments.quick:
        Path(__file__).with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
