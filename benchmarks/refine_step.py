"""What a REFINE step costs beside a next-token step, and beside the twin that reads every prefix again.

    python -m benchmarks.refine_step                  # prints the tables; writes refine_step.md and .png beside this
    python -m benchmarks.refine_step --device cuda    # the same as refine_step_cuda.md and .png
    python -m benchmarks.refine_step --shapes hybrids # two hybrids, as refine_step_hybrids.md and .png
    python -m benchmarks.refine_step --device cpu --shapes published --quick --output /tmp/x    # tries what a GPU runs

On a CPU: three models of 1.7M to 1.8M parameters with a vocabulary of 4096, float32. On a CUDA device the same table
for the 1.3B DeltaNet and the 760M LaCT (random weights, bfloat16) at 4096 and 16384 tokens, with tokens/s, the chosen
implementations and the kernels that take most of the time.

Every ratio is the median over rounds of the ratio within a round. The steps follow each other in a round, so that other
load on the machine slows both. `--clock cpu` counts the CPU time of the process, for a busy machine (use it with one
thread: OMP_NUM_THREADS=1). Both steps are forward and backward over the same sequence with the same cross-entropy in
pieces. T tokens · c positions · k tokens of a rollout · n rollouts.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from benchmarks.measure import allocated_on_cpu, kernels, seconds
from benchmarks.models import SHAPES, Config, shortened
from refine.models import from_config
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.objective.rereading import Rereading
from refine.objective.rollouts import OneRead, ReadingStrategy
from refine.ops.attention import window as window_attention
from refine.ops.delta_rule import fla
from refine.ops.token_statistics import token_statistics

ROWS = [  # T, c, k, n; aim and bound of the time over the next-token step's
    (4096, 8, 5, 1, 1.06, 1.08),
    (4096, 32, 5, 1, 1.10, 1.16),
    (4096, 8, 5, 8, 1.13, 1.18),
    (1024, 8, 5, 4, 1.25, 1.40),
    (16384, 64, 5, 8, 1.30, 1.50),
]
TWIN_BOUND, MEMORY_BOUND = 5.5, 1.1
ON_A_GPU = [
    "On a machine with a CUDA device `python -m benchmarks.refine_step --device cuda` measures the same for the 1.3B",
    "DeltaNet and the 760M LaCT (random weights, bfloat16), with tokens/s and the kernels in use, and writes",
    "refine_step_cuda.md and .png; `pytest -m requires_cuda` compares the kernels with their twins there.",
]
ONE_READ = OneRead()
GROWTH = (1024, 2048, 4096, 8192, 16384)
QUICK = 64  # --quick divides texts and chunks by this; its models are two narrow layers of the same kind


@dataclass(frozen=True)
class Options:
    """What is measured, and how; the fields are the command's options."""

    device: str
    rounds: int
    clock: str
    shapes: str
    quick: bool
    gradient_checkpointing: bool


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

    def __init__(self, config: Config, options: Options) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.clock = time.process_time if options.clock == "cpu" else time.perf_counter
        self.shorter = QUICK if options.quick else 1
        config = shortened(config, QUICK) if options.quick else config
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
        """How long `step` takes; gradients are cleared first."""
        self.model.zero_grad(set_to_none=True)
        return seconds(step, self.clock, self.device.type)

    def memory(self, step: Callable[[], None]) -> float:
        """Peak of the weights, gradients and other tensors that `step` holds [bytes]."""
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
            click.echo(f"{name}: out of memory at T={t}, c={c}, n={n}; try --gradient-checkpointing")
            continue
        plain, refine = (statistics.median(x) for x in zip(*times, strict=True))
        ratio = statistics.median(r / p for p, r in times)
        rows.append(Row(name, t, c, k, n, aim, bound, plain, refine, ratio, memory[1], memory[1] / memory[0]))
        click.echo(_line(rows[-1]))
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


def report(
    options: Options, rows: list[Row], twins: dict[str, float], grown: dict[str, list[float]], notes: list[str]
) -> str:
    """All tables as Markdown."""
    on_gpu = options.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    lines = [
        "# A REFINE step beside a next-token step",
        "",
        f"`python -m benchmarks.refine_step --device {options.device}` on {device} ({platform.machine()}), "
        f"torch {torch.__version__}, {options.clock} time, {options.rounds} rounds, medians of ratios in a round.",
        "",
        HEADER,
        *map(_line, rows),
        "",
    ]
    if twins:
        ratios = ", ".join(f"{name} **{ratio:.1f}**" for name, ratio in twins.items())
        lines += [f"Re-reading twin over one-read step, T = 4096, c = 8 (at least {TWIN_BOUND}): {ratios}.", ""]
    lines += [f"Bound on peak memory at c = 8, n = 1: {MEMORY_BOUND} times the next-token step's.", ""]
    if grown:
        lines += ["Seconds of a REFINE step, c = 8:", "", "| model | " + " | ".join(map(str, GROWTH)) + " |"]
        lines += ["|---|" + "---|" * len(GROWTH)]
        lines += [f"| {name} | " + " | ".join(f"{s:.3f}" for s in times) + " |" for name, times in grown.items()]
        lines += [""]
    return "\n".join([*lines, *notes, "", *([] if on_gpu else ON_A_GPU)])


def draw(rows: list[Row], grown: dict[str, list[float]], path: Path) -> None:
    """A picture: the ratios with their bounds, and how a step's time grows with the text."""
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
    left.set(xticks=[x + 0.4 for x in range(len(ROWS))], xticklabels=labels)
    left.set(ylim=(0.8, 1.6), ylabel="REFINE step / next-token step")
    left.tick_params(axis="x", labelsize=8)
    left.legend(fontsize=8)
    for name, times in grown.items():
        right.plot(GROWTH, times, marker="o", label=name)
    right.set(xlabel="tokens", ylabel="seconds of a REFINE step, c = 8", ylim=(0, None))
    if grown:
        right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _default_output(device: str, shapes: str) -> Path:
    here = Path(__file__).with_suffix("")
    parts = [here.name, *(["hybrids"] if shapes == "hybrids" else []), *([] if device == "cpu" else ["cuda"])]
    return here.with_name("_".join(parts))


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is a device.")
@click.option("--rounds", default=7, show_default=True)
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help="The time counted."
)
@click.option("--shapes", type=click.Choice(list(SHAPES)), help="Default: small on a CPU, published on a CUDA device.")
@click.option("--quick", is_flag=True, help="Tiny models, short texts: tries the script, its times mean nothing.")
@click.option("--models", multiple=True, help="Only these (default: all of the shapes).")
@click.option("--skip", type=click.Choice(["twin", "growth"]), multiple=True, help="Parts to leave out.")
@click.option("--gradient-checkpointing", is_flag=True)
@click.option("--output", type=Path, help="Path without suffix (default: beside this file).")
def main(
    device: str | None,
    rounds: int,
    clock: str,
    shapes: str | None,
    quick: bool,
    models: tuple[str, ...],
    skip: tuple[str, ...],
    gradient_checkpointing: bool,
    output: Path | None,
) -> None:
    """Measure a REFINE step, print the tables, and write them with a picture."""
    if quick and not output:
        raise click.UsageError("--quick measures nothing that may replace the tables: give --output")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    shapes = shapes or ("published" if device == "cuda" else "small")
    options = Options(device, rounds, clock, shapes, quick, gradient_checkpointing)
    output = output or _default_output(device, shapes)
    rows: list[Row] = []
    twins, grown, notes = {}, {}, []
    click.echo(HEADER)
    for name, config in SHAPES[shapes].items():
        if models and name not in models:
            continue
        bench = Bench(config, options)
        rows += compare(name, bench, rounds)
        notes.append(f"- {name}: {bench.parameters:,} parameters.")
        if "twin" not in skip and shapes == "small":
            twins[name] = against_twin(bench, max(3, rounds // 2))
        if "growth" not in skip:
            grown[name] = growth(bench, max(3, rounds // 2))
        if shapes == "published":
            notes.append(f"  A REFINE step at 4096 tokens: {bench.used(4096)}.")
        del bench
    text = report(options, rows, twins, grown, notes)
    output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(rows, grown, output.with_suffix(".png"))
    click.echo("\n" + text)


if __name__ == "__main__":
    main()
