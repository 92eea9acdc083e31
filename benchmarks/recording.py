"""What recording costs: a training that logs every step to MLflow, beside the same training without.

    python -m benchmarks.recording          # prints the table; writes recording.md beside this file

Three trainings take turns in one process: nothing recorded; metrics.jsonl as `refine train` writes it; MlflowCallback
into a SQLite file, which this process writes itself (with a server, the server does that work). The CPU time of
recording is measured in the callbacks' own calls and in the thread that sends, so that the noise of the steps does not
hide it. Beside it stands how much longer the whole training took than the one without, as a median over rounds. The
work done once at the end (histograms, checkpoints as logged models) is left out.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.models import SMALL, with_default_mlp
from refine.models import from_config
from refine.tracking.connection import connect, experiment_id
from refine.tracking.mlflow_callback import MlflowCallback
from refine.tracking.run import open_run
from refine.training.arguments import RefineArguments
from refine.training.metrics_file import MetricsFile
from refine.training.trainer import RefineTrainer

CONFIG = with_default_mlp(SMALL["DeltaNet"])


def timed(callback: Any, *methods: str) -> list[float]:
    """CPU seconds of each call of these methods of `callback`, in the thread that called."""
    spent: list[float] = []

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*arguments, **keywords)
            finally:
                spent.append(time.thread_time() - start)

        return call

    for name in methods:
        setattr(callback, name, watched(getattr(callback, name)))
    return spent


def train(callbacks: list[Any], steps: int, tokens: int, folder: str) -> float:
    """Train `steps` steps of 4 sequences; returns the CPU time of the process [s]."""
    torch.manual_seed(0)
    rows = [{"tokens": torch.randint(0, 4096, (tokens,)).tolist()} for _ in range(8)]
    args = RefineArguments(
        output_dir=folder,
        max_steps=steps,
        sequences_per_step=4,
        per_device_train_batch_size=4,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RefineTrainer(from_config(CONFIG), args, rows, callbacks=callbacks)
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def measure(steps: int, tokens: int, rounds: int) -> list[str]:
    """The table."""
    seconds: dict[str, list[float]] = {"nothing": [], "metrics.jsonl": [], "MlflowCallback": []}
    spent: dict[str, list[float]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REFINE_HOME"] = folder
        client = connect(f"sqlite:///{folder}/mlflow.db")
        train([], 1, tokens, folder)
        for _ in range(rounds):
            series = MetricsFile(Path(folder))
            with open_run(client, experiment_id(client, "recording"), "recording") as run:
                callback = MlflowCallback(run, checkpoints=False)
                calls = {
                    "nothing": ([], []),
                    "metrics.jsonl": ([series], timed(series, "on_log")),
                    "MlflowCallback": ([callback], timed(callback, "on_log", "_send")),
                }
                for name, (callbacks, recorded) in calls.items():
                    seconds[name].append(train(callbacks, steps, tokens, folder))
                    spent[name].append(sum(recorded))
    lines = [
        "| recorded | CPU ms a step | recording: CPU ms a step | of a step | whole training, beside nothing |",
        "|---|---|---|---|---|",
    ]
    for name, taken in seconds.items():
        step, own = statistics.median(taken) / steps, statistics.median(spent[name]) / steps
        beside = statistics.median(one / other for one, other in zip(taken, seconds["nothing"], strict=True)) - 1
        lines.append(f"| {name} | {1e3 * step:.0f} | {1e3 * own:.2f} | {own / step:.2%} | {beside:+.1%} |")
    return lines


@click.command()
@click.option("--steps", default=20, show_default=True, help="Optimizer steps of a training.")
@click.option("--tokens", default=1024, show_default=True, help="Tokens of each of a step's 4 sequences.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--output", type=Path, default=Path(__file__).with_suffix(".md"), help="Default: recording.md, here.")
def main(steps: int, tokens: int, rounds: int, output: Path) -> None:
    """Measure what recording costs, print the table and write it."""
    torch.set_num_threads(1)
    size = sum(p.numel() for p in from_config(CONFIG).parameters()) / 1e6
    head = (
        f"`python -m benchmarks.recording --steps {steps} --tokens {tokens} --rounds {rounds}` on "
        f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}: DeltaNet {size:.1f}M, a "
        f"REFINE step on 4 × {tokens} tokens, every step recorded (26 metrics)."
    )
    noise = "The last column carries the noise of whole steps. Read it only if the machine was otherwise idle."
    text = "\n".join(["# Recording", "", head, "", *measure(steps, tokens, rounds), "", noise, ""])
    click.echo(text)
    output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
