"""What recording costs: a training with every step logged to MLflow, beside the same training without.

    python benchmarks/recording.py          # prints the table; writes recording.md beside this file

Three trainings by turns, in one process: nothing recorded; metrics.jsonl as `refine train` writes it; MlflowCallback
into a SQLite file, which is written by this process itself (a server would do that work elsewhere). The CPU time of
recording is measured where it is spent (the callbacks' own calls, and the thread that sends), so that it does not drown
in the noise of the steps; beside it, the median over rounds of what the whole training took more than the one without.
The once-only work at the end (histograms, checkpoints as logged models) is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from refine.models import from_config
from refine.tracking.connection import connect, experiment_id
from refine.tracking.mlflow_callback import MlflowCallback
from refine.tracking.run import open_run
from refine.training.arguments import RefineArguments
from refine.training.metrics_file import MetricsFile
from refine.training.trainer import RefineTrainer

CONFIG = {"model_type": "delta_net", "hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "vocab_size": 4096}


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
        output_dir=folder, max_steps=steps, sequences_per_step=4, per_device_train_batch_size=4, use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
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
    lines = ["| recorded | CPU ms a step | recording: CPU ms a step | of a step | whole training, beside nothing |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, taken in seconds.items():
        step, own = statistics.median(taken) / steps, statistics.median(spent[name]) / steps
        beside = statistics.median(one / other for one, other in zip(taken, seconds["nothing"], strict=True)) - 1
        lines.append(f"| {name} | {1e3 * step:.0f} | {1e3 * own:.2f} | {own / step:.2%} | {beside:+.1%} |")
    return lines


def main() -> None:
    """Measure, print, write recording.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1024, help="of each of the 4 sequences of a step")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = sum(p.numel() for p in from_config(CONFIG).parameters()) / 1e6
    head = (
        f"`python benchmarks/recording.py --steps {given.steps} --tokens {given.tokens} --rounds {given.rounds}` on "
        f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}: DeltaNet {size:.1f}M, a "
        f"REFINE step on 4 × {given.tokens} tokens, every step recorded (26 metrics)."
    )
    noise = "The last column carries the noise of whole steps: it tells something where the machine was otherwise idle."
    text = "\n".join(["# Recording", "", head, "", *measure(given.steps, given.tokens, given.rounds), "", noise, ""])
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
