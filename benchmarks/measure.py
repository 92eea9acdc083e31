"""How the benchmarks measure: seconds in rounds, peak memory, the kernels that run, counted matrix products."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter, device: str = "cpu") -> float:
    """How long `run` takes by `clock`, its work on `device` included."""
    _wait_for(device)
    start = clock()
    run()
    _wait_for(device)
    return clock() - start


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measured_rounds(contenders: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """Seconds of every contender in every round, after a warm-up each."""
    for run in contenders.values():
        run()
    return [{name: seconds(run) for name, run in contenders.items()} for _ in range(rounds)]


def median(rounds: list[dict[str, float]], name: str, beside: str | None = None) -> float:
    """Median over the rounds of contender `name`'s seconds, or of their ratio to `beside`'s."""
    return statistics.median(each[name] / (each[beside] if beside else 1) for each in rounds)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a new process, which has loaded the models' code and done nothing else.

    glibc's malloc returns freed tensors of 1 MiB and more to the system there. By default it keeps them, and the
    process's size then says little about what the function needs.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # the fork server below and its processes inherit it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["refine.models", "transformers.models.llama.modeling_llama"])
    with context.Pool(1) as process:
        return process.apply(function, arguments)


def largest_resident_size() -> int:
    """The most memory this process has held so far [bytes]. Linux's getrusage would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def allocated_on_cpu(step: Callable[[], None]) -> float:
    """The highest sum of live allocations made during `step` [bytes], from the profiler's record of each."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints a line at each start and stop
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return float(highest)


def kernels(step: Callable[[], None], device: str, count: int = 6) -> list[str]:
    """The kernels (on a CPU: operations) that take most of `step`'s time on `device`, each with its share."""
    activity = getattr(torch.profiler.ProfilerActivity, device.upper())
    with torch.profiler.profile(activities=[activity]) as profiled:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    took = {
        e.key: getattr(e, f"self_{'device' if device == 'cuda' else device}_time_total")
        for e in profiled.key_averages()
    }
    total = sum(took.values()) or 1
    return [f"{name[:70]} {took[name] / total:.0%}" for name in sorted(took, key=lambda name: -took[name])[:count]]


def matrix_products(run: Callable[[], Any]) -> int:
    """Multiplications and additions of the matrix products of `run`."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward_count(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward_count(d: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_backward_flop_count(d, q, k, v)

    counts = {attention: forward_count, backward: backward_count}
    with FlopCounterMode(display=False, custom_mapping=counts) as counted:
        run()
    return counted.get_total_flops()


def sections(path: Path) -> dict[str, str]:
    """The sections of a Markdown file that an earlier run wrote, by heading."""
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts}
