"""What a REFINE step costs beside a next-token step, and beside the twin that reads every prefix again.

    python benchmarks/refine_step.py                  # prints the tables; writes refine_step.md and .png beside this
    python benchmarks/refine_step.py --device cuda    # the same as refine_step_cuda.md and .png
    python benchmarks/refine_step.py --device cpu --shapes published --quick --output /tmp/x    # tries what a GPU runs

On a CPU: three models of 1-2M parameters with a vocabulary of 4096, float32. On a CUDA device the same table for the
1.3B DeltaNet and the 760M LaCT (random weights, bfloat16) at 4096 and 16384 tokens, with tokens/s, the implementations
that were chosen and the kernels that take most of the time.

Every ratio is the median over rounds of the ratio within a round, in which the steps follow each other, so that what
else the machine does falls on both. `--clock cpu` counts the process's own time instead of the wall's, for a machine
that is busy with other work (use it with one thread: OMP_NUM_THREADS=1). Both steps are forward and backward over the
same sequence with the same cross-entropy in pieces. T tokens · c positions · k tokens of a rollout · n rollouts.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import allocated_on_cpu, kernels

from refine.models import from_config
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.objective.rereading import Rereading
from refine.objective.rollouts import OneRead, ReadingStrategy
from refine.ops.attention import window as window_attention
from refine.ops.delta_rule import fla
from refine.ops.token_statistics import token_statistics

SMALL: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 256, "vocab_size": 4096}
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "DeltaNet": {"model_type": "delta_net", "num_heads": 2, **SMALL},
        "Gated DeltaNet": {"model_type": "gated_deltanet", "num_heads": 2, "head_dim": 48, "expand_v": 1.0, **SMALL},
        "LaCT": {"model_type": "lact_swiglu", "num_attn_heads": 4, "num_lact_heads": 2, "lact_chunk_size": 512,
                 "window_size": 512, **SMALL},
    },
    "published": {
        "DeltaNet 1.3B": {"model_type": "delta_net", "hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16,
                          "vocab_size": 32000},
        "LaCT 760M": {"model_type": "lact_swiglu", "hidden_size": 1536, "num_hidden_layers": 24, "num_attn_heads": 24,
                      "num_lact_heads": 4, "lact_chunk_size": 2048, "window_size": 2048, "w0_w2_low_rank": 32,
                      "use_momentum": True, "learnable_ttt_scale": True, "rope_theta": 1e6, "vocab_size": 32000},
    },
}  # fmt: skip
ROWS = [  # T, c, k, n; aim and bound of the time over the next-token step's (issue "A REFINE step for the price ...")
    (4096, 8, 5, 1, 1.15, 1.30),
    (4096, 32, 5, 1, 1.25, 1.50),
    (4096, 8, 5, 8, 1.25, 1.50),
    (16384, 8, 5, 1, 1.08, 1.15),
    (16384, 64, 5, 1, 1.30, 1.50),
]
TWIN_BOUND, MEMORY_BOUND = 5.5, 1.1
ON_A_GPU = [
    "On a machine with a CUDA device `python benchmarks/refine_step.py --device cuda` measures the same for the 1.3B",
    "DeltaNet and the 760M LaCT (random weights, bfloat16), with tokens/s and the kernels in use, and writes",
    "refine_step_cuda.md and .png; `pytest -m requires_cuda` compares the kernels with their twins there.",
]
ONE_READ = OneRead()
GROWTH = (1024, 2048, 4096, 8192, 16384)
QUICK = 64  # by so much --quick shortens texts and chunks; its models are two narrow layers of the same kind


def _quick(config: dict[str, Any]) -> dict[str, Any]:
    """The same kind of model, small enough to try the script with."""
    heads = {"num_heads": 2, "num_attn_heads": 2, "num_lact_heads": 2}
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 61, **heads}
    shorter = {name: config[name] // QUICK for name in ("lact_chunk_size", "window_size") if name in config}
    return {name: tiny.get(name, value) for name, value in config.items()} | shorter


@dataclass
class Row:
    """One line of the table; seconds are medians, memory is the peak of a step with the weights [bytes]."""

    model: str
    tokens: int
    positions: int
    length: int
    rollouts: int
    aim: float
    bound: float
    next_token: float
    refine: float
    ratio: float
    memory: float
    memory_ratio: float


class Bench:
    """The steps of one model on one device, and how they are measured."""

    def __init__(self, config: dict[str, Any], options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.now = time.process_time if options.clock == "cpu" else time.perf_counter
        self.shorter = QUICK if options.quick else 1
        config = _quick(config) if options.quick else config
        with self.device:
            model = from_config(config)
        self.model = model.to(torch.bfloat16 if options.shapes == "published" else torch.float32).train()
        if options.gradient_checkpointing:
            self.model.model.gradient_checkpointing = True
        self.parameters = sum(p.numel() for p in model.parameters())
        self.vocabulary = config["vocab_size"]

    def text(self, tokens: int) -> torch.Tensor:
        """[1, T] random tokens; fewer with --quick."""
        seeded = torch.Generator().manual_seed(tokens)
        drawn = torch.randint(0, self.vocabulary, (1, tokens // self.shorter), generator=seeded)
        return drawn.to(self.device)

    def next_token(self, tokens: torch.Tensor) -> None:
        """One next-token step, forward and backward."""
        hidden = self.model.read(tokens).hidden
        token_statistics(hidden[:, :-1], self.model.lm_head.weight, tokens[:, 1:]).loss.backward()

    def refine(self, tokens: torch.Tensor, settings: ObjectiveSettings, read: ReadingStrategy = ONE_READ) -> None:
        """One REFINE step, forward and backward."""
        seeds = torch.tensor([7], device=self.device)
        next_sequence_step(self.model, tokens, settings, seeds, read=read).loss.backward()

    def seconds(self, step: Callable[[], None]) -> float:
        """How long `step` takes, gradients cleared before."""
        self.model.zero_grad(set_to_none=True)
        self._wait()
        start = self.now()
        step()
        self._wait()
        return self.now() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory(self, step: Callable[[], None]) -> float:
        """Peak of weights, gradients and everything else that `step` holds [bytes]."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            step()
            return float(torch.cuda.max_memory_allocated())
        return allocated_on_cpu(step) + sum(p.numel() * p.element_size() for p in self.model.parameters())

    def used(self, tokens: int) -> str:
        """What a REFINE step runs on: the implementations chosen for this device and dtype, and the kernels."""
        dtype, window = self.model.dtype, getattr(self.model.config, "window_size", None)
        rule = "flash-linear-attention's kernels" if fla.chosen(self.device, dtype) else "PyTorch"
        width = self.model.config.hidden_size // getattr(self.model.config, "num_attn_heads", 1)
        method = window and window_attention.chosen(self.device, dtype, width)
        top = kernels(lambda: self.refine(self.text(tokens), ObjectiveSettings()), self.device.type)
        return "; ".join([f"window attention by {method}" if window else f"delta rule by {rule}", *top])


def compare(name: str, bench: Bench, rounds: int) -> list[Row]:
    """The table's rows of one model."""
    rows = []
    for t, c, k, n, aim, bound in ROWS:
        tokens, settings = bench.text(t), ObjectiveSettings(positions=c, rollout_length=k, rollouts=n)
        steps = [lambda x=tokens: bench.next_token(x), lambda x=tokens, s=settings: bench.refine(x, s)]
        try:
            for step in steps:
                bench.seconds(step)  # warm up
            times = [[bench.seconds(step) for step in steps] for _ in range(rounds)]
            memory = [bench.memory(step) for step in steps]
        except torch.OutOfMemoryError:
            print(f"{name}: out of memory at T={t}, c={c}, n={n}; try --gradient-checkpointing", flush=True)
            continue
        plain, refine = (statistics.median(x) for x in zip(*times, strict=True))
        ratio = statistics.median(r / p for p, r in times)
        rows.append(Row(name, t, c, k, n, aim, bound, plain, refine, ratio, memory[1], memory[1] / memory[0]))
        print(_line(rows[-1]), flush=True)
    return rows


def against_twin(bench: Bench, rounds: int) -> float:
    """Median of the twin's time over the one-read step's at T = 4096, c = 8."""
    tokens, settings = bench.text(4096), ObjectiveSettings(positions=8)
    steps = [lambda: bench.refine(tokens, settings), lambda: bench.refine(tokens, settings, Rereading())]
    times = [[bench.seconds(step) for step in steps] for _ in range(rounds)]
    return statistics.median(slow / fast for fast, slow in times)


def growth(bench: Bench, rounds: int) -> list[float]:
    """Seconds of a REFINE step (c = 8) at each length of GROWTH."""
    settings = ObjectiveSettings(positions=8)
    texts = [bench.text(t) for t in GROWTH]
    times = [[bench.seconds(lambda x=x: bench.refine(x, settings)) for x in texts] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


HEADER = (
    "| model | T | c, k, n | next-token step [s] | REFINE step [s] | ratio | aim | at most | tokens/s | peak [MB] "
    "| over next-token |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def _line(row: Row) -> str:
    within = "" if row.ratio <= row.bound else " (over)"
    return (
        f"| {row.model} | {row.tokens} | {row.positions}, {row.length}, {row.rollouts} | {row.next_token:.3f} "
        f"| {row.refine:.3f} | **{row.ratio:.2f}**{within} | {row.aim:.2f} | {row.bound:.2f} "
        f"| {row.tokens / row.refine:.0f} | {row.memory / 2**20:.0f} | {row.memory_ratio:.2f} |"
    )


def report(arguments: argparse.Namespace, rows: list[Row], twins: dict[str, float], grown: dict[str, list[float]],
           notes: list[str]) -> str:  # fmt: skip
    """The whole as Markdown."""
    on_gpu = arguments.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    lines = [
        "# A REFINE step beside a next-token step",
        "",
        f"`python benchmarks/refine_step.py --device {arguments.device}` on {device} ({platform.machine()}), "
        f"torch {torch.__version__}, {arguments.clock} time, {arguments.rounds} rounds, medians of ratios in a round.",
        "",
        HEADER,
        *map(_line, rows),
        "",
    ]
    if twins:
        lines += [f"Re-reading twin over one-read step, T = 4096, c = 8 (at least {TWIN_BOUND}): "
                  + ", ".join(f"{name} **{ratio:.1f}**" for name, ratio in twins.items()) + ".", ""]  # fmt: skip
    lines += [f"Peak memory at most {MEMORY_BOUND} times the next-token step's is asked for at c = 8, n = 1.", ""]
    if grown:
        lines += ["Seconds of a REFINE step, c = 8:", "", "| model | " + " | ".join(map(str, GROWTH)) + " |",
                  "|---|" + "---|" * len(GROWTH)]  # fmt: skip
        lines += [f"| {name} | " + " | ".join(f"{s:.3f}" for s in seconds) + " |" for name, seconds in grown.items()]
        lines += [""]
    return "\n".join([*lines, *notes, "", *([] if on_gpu else ON_A_GPU)])


def draw(rows: list[Row], grown: dict[str, list[float]], path: Path) -> None:
    """Ratios with their bounds, and how a step grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = list(dict.fromkeys(row.model for row in rows))
    labels = [f"{t // 1024}K, c={c}, n={n}" for t, c, _, n, _, _ in ROWS]
    for i, name in enumerate(names):
        own = {(r.tokens, r.positions, r.rollouts): r.ratio for r in rows if r.model == name}
        heights = [own.get((t, c, n), 0) for t, c, _, n, _, _ in ROWS]
        left.bar(
            [x + i * 0.8 / len(names) for x in range(len(ROWS))], heights, 0.8 / len(names), label=name, align="edge"
        )
    for x, (*_, aim, bound) in enumerate(ROWS):
        left.hlines(bound, x, x + 0.8, colors="black", label="at most" if x == 0 else None)
        left.hlines(aim, x, x + 0.8, colors="black", linestyles="dotted", label="aim" if x == 0 else None)
    left.set(xticks=[x + 0.4 for x in range(len(ROWS))], xticklabels=labels, ylim=(0.8, 1.6),
             ylabel="REFINE step / next-token step")  # fmt: skip
    left.tick_params(axis="x", labelsize=8)
    left.legend(fontsize=8)
    for name, seconds in grown.items():
        right.plot(GROWTH, seconds, marker="o", label=name)
    right.set(xlabel="tokens", ylabel="seconds of a REFINE step, c = 8", ylim=(0, None))
    if grown:
        right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="wall time, or the process's own")
    parser.add_argument("--shapes", choices=list(MODELS), help="default: small on a CPU, published on a CUDA device")
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, short texts: tries the script, times nothing"
    )
    parser.add_argument("--models", nargs="*", help="only these (default: all of the shapes)")
    parser.add_argument("--skip", nargs="*", default=[], choices=["twin", "growth"], help="parts to leave out")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, help="path without suffix (default: beside this file)")
    arguments = parser.parse_args()
    arguments.shapes = arguments.shapes or ("published" if arguments.device == "cuda" else "small")
    if arguments.quick and not arguments.output:
        parser.error("--quick measures nothing that should replace the tables: say where it writes, with --output")
    here = Path(__file__).with_suffix("")
    output = arguments.output or (here if arguments.device == "cpu" else here.with_name(f"{here.name}_cuda"))
    rows: list[Row] = []
    twins, grown, notes = {}, {}, []
    print(HEADER)
    for name, config in MODELS[arguments.shapes].items():
        if arguments.models and name not in arguments.models:
            continue
        bench = Bench(config, arguments)
        rows += compare(name, bench, arguments.rounds)
        notes.append(f"- {name}: {bench.parameters:,} parameters.")
        if "twin" not in arguments.skip and arguments.shapes == "small":
            twins[name] = against_twin(bench, max(3, arguments.rounds // 2))
        if "growth" not in arguments.skip:
            grown[name] = growth(bench, max(3, arguments.rounds // 2))
        if arguments.shapes == "published":
            notes.append(f"  A REFINE step at 4096 tokens: {bench.used(4096)}.")
        del bench
    text = report(arguments, rows, twins, grown, notes)
    output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(rows, grown, output.with_suffix(".png"))
    print("\n" + text)


if __name__ == "__main__":
    main()
