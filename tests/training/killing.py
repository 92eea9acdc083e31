"""Run phases in processes that can be killed at any moment. Imported by name, so that a fork server can run it."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refine.phases.plan import Plan

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["refine.phases.run", "refine.models", "refine.data.token_sequences", "datasets"])


def start(function: Callable[..., Any], *args: Any) -> multiprocessing.process.BaseProcess:
    """Call `function(*args)` in a new process that has torch imported."""
    process = context.Process(target=quietly, args=(function, *args), daemon=True)
    process.start()
    return process


def train(plan: Callable[..., Plan], arguments: tuple[Any, ...], output: Path) -> None:
    """Run `plan(*arguments)` in `output`: a function that a fork server can find by its name."""
    plan(*arguments).run(output)


def quietly(function: Callable[..., Any], *args: Any) -> None:
    """Call with one thread, as the tests run, so that sums have the same order."""
    import torch

    torch.set_num_threads(1)
    function(*args)


def run_with_kills(
    output: Path, rows: int, chance: random.Random, kills: int, function: Callable[..., Any], *args: Any
) -> int:
    """Run into `output` to the end, with SIGKILLs at `kills` moments: each a random time after a share of the `rows` of
    metrics is written. Returns how many processes were killed before their end."""
    killed = 0
    for number in range(kills):
        process = start(function, *args)
        while process.is_alive() and _rows(output / "metrics.jsonl") < rows * (number + 1) // (kills + 1):
            time.sleep(0.002)
        process.join(chance.uniform(0.0, 0.08))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
    finish(function, *args)
    return killed


def finish(function: Callable[..., Any], *args: Any) -> None:
    """Run to the end without a kill."""
    process = start(function, *args)
    process.join()
    assert process.exitcode == 0, f"the run ended with {process.exitcode}"


def _rows(path: Path) -> int:
    try:
        return path.read_text().count("\n")
    except FileNotFoundError:
        return 0
