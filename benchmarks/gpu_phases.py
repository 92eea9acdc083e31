"""The phases of `python -m benchmarks.on_gpu`, each a process of its own: python -m benchmarks.gpu_phases PHASE OUTPUT
SECONDS [--dry-run]."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import kernels_and_twins
from benchmarks.models import PUBLISHED
from benchmarks.on_gpu import CHECKOUT, Lines
from benchmarks.refine_step import Bench, Options
from refine.models import from_config, from_pretrained
from refine.objective import ObjectiveSettings
from refine.ops.attention import window
from refine.ops.delta_rule import fla

PACKAGES = ("torch", "triton", "transformers", "accelerate", "numpy", "fla-core", "tilelang", "datasets")

TOKENS = 16  # of a continuation whose tokens are timed


class Phase:
    """One phase's process: where it runs, how long it may, and how it says what it found."""

    def __init__(self, name: str, output: Path, seconds: float, dry_run: bool) -> None:
        self.name, self.dry_run, self.lines = name, dry_run, Lines(output)
        self.end = time.monotonic() + seconds
        self.device = torch.device("cpu" if dry_run else "cuda")

    @property
    def left(self) -> float:
        """Seconds until the phase is ended."""
        return self.end - time.monotonic()

    def say(self, what: str, **values: Any) -> None:
        """One line about `what`."""
        self.lines.say(phase=self.name, what=what, **values)

    def attempt(self, what: str, run: Callable[[], dict[str, Any]], **more: Any) -> None:
        """Run and say what it returns. An error is a line, and the phase goes on, unless the device is lost."""
        if self.left < 10:
            self.say(what, **more, skipped="no time left")
            return
        try:
            self.say(what, **more, **run())
        except Exception as error:
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)][-4:]
            self.say(what, **more, error=f"{type(error).__name__}: {str(error)[:400]}", where=where)
            if "CUDA error" in str(error):
                raise  # the context is gone
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def milliseconds(self, run: Callable[[], Any], rounds: int = 5) -> float:
        """Median wall time of `run`, after a warm-up, the device idle before and after."""

        def once() -> float:
            self._wait()
            start = time.perf_counter()
            run()
            self._wait()
            return time.perf_counter() - start

        once()
        return round(statistics.median(once() for _ in range(rounds)) * 1e3, 3)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def environment(p: Phase) -> None:
    """Versions, the device's speed, and which kernels a training step under autocast would take."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    p.say("versions", python=sys.version.split()[0], **versions)
    if not p.dry_run:
        found = torch.cuda.get_device_properties(0)
        memory = round(found.total_memory / 1e9)
        p.say("device", name=found.name, memory_gb=memory, cuda=torch.version.cuda, cpus=os.cpu_count())
    size = 64 if p.dry_run else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(size, size, device=p.device, dtype=dtype)
        ms = p.milliseconds(lambda a=a: a @ a)
        p.say("matrix product", dtype=str(dtype), tflops=round(2 * size**3 / ms / 1e9, 2))
    x = torch.ones(8, device=p.device)
    p.say("launch", microseconds=round(p.milliseconds(lambda: [x.add_(1) for _ in range(1000)]), 2))
    p.attempt("kernels under autocast", lambda: {"asked about": _asked_under_autocast(p)})


def _asked_under_autocast(p: Phase) -> list[str]:
    """The dtypes for which a read under autocast asks whether the kernels can run."""
    asked: set[str] = set()
    original = fla.chosen

    def chosen(device: torch.device, dtype: torch.dtype) -> bool:
        asked.add(str(dtype))
        return False

    config = {"model_type": "delta_net", "hidden_size": 64, "num_hidden_layers": 1, "num_heads": 1, "vocab_size": 50}
    fla.chosen = chosen
    try:
        with torch.autocast(p.device.type, torch.bfloat16):
            from_config(config).to(p.device).read(torch.zeros(1, 8, dtype=torch.int64, device=p.device))
    finally:
        fla.chosen = original
    return sorted(asked)


def warm_up(p: Phase) -> None:
    """Compile the kernels of the 1.3B shapes, in parallel: `refine warm-up`."""
    command = [sys.executable, "-m", "refine.cli.main", "warm-up", "--model", str(_config_folder(p, "DeltaNet 1.3B"))]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=max(10, p.left - 3))
    seconds = round(time.perf_counter() - start, 1)
    p.say("refine warm-up", exit=done.returncode, seconds=seconds, said=(done.stdout or done.stderr).strip()[-300:])


def _config_folder(p: Phase, name: str) -> Path:
    folder = p.lines.file.parent / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]), encoding="utf-8")
    return folder


def tests(p: Phase) -> None:
    """The project's tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "requires_cuda", "-p", "no:cacheprovider", "tests"]
    command += ["--collect-only"] * p.dry_run
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=max(10, p.left - 3))
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    values = {"last": (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]}
    if done.returncode:
        values["error"] = f"exit code {done.returncode}"
    p.say("pytest -m requires_cuda", **values, **({"failed": failed[:20]} if failed else {}))


def steps(p: Phase, name: str, cases: tuple[tuple[int, int], ...] = ((4096, 8), (16384, 8), (16384, 64))) -> None:
    """Next-token and REFINE steps of a published shape side by side, at (tokens, positions)."""
    config = PUBLISHED[name] if not p.dry_run else PUBLISHED[name] | {"num_hidden_layers": 1}
    bench = Bench(config, Options(p.device.type, 3, "wall", "published", p.dry_run, False))
    p.say(name, parameters=bench.parameters, used=bench.used(1024))
    for tokens, positions in cases:
        text, settings = bench.text(tokens), ObjectiveSettings(positions=positions)

        def measured(text: torch.Tensor = text, settings: ObjectiveSettings = settings) -> dict[str, Any]:
            bench.model.zero_grad(set_to_none=True)
            plain = p.milliseconds(lambda: bench.next_token(text), 3)
            refined = p.milliseconds(lambda: bench.refine(text, settings), 3)
            peak = bench.memory(lambda: bench.refine(text, settings)) if not p.dry_run else 0.0
            return {
                "next_token_ms": plain,
                "refine_ms": refined,
                "ratio": round(refined / plain, 3),
                "refine_tokens_a_second": round(text.numel() / refined * 1e3),
                "refine_peak_gb": round(peak / 1e9, 2),
            }

        p.attempt(name, measured, tokens=tokens, positions=positions)


def train(p: Phase) -> None:
    """RefineTrainer on the checkout's own texts, float32 weights under bfloat16 autocast, as the product trains."""
    from transformers import AutoTokenizer

    from refine.training import RefineArguments, RefineTrainer

    tokenizer = AutoTokenizer.from_pretrained(CHECKOUT / "refine/models/sample/delta_net")
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(CHECKOUT.glob("docs/*.md")))
    ids, length, count = tokenizer(text)["input_ids"], *((1024, 60) if not p.dry_run else (128, 2))
    rows = [{"tokens": ids[i : i + length]} for i in range(0, len(ids) - length, length)]

    def run(name: str) -> dict[str, Any]:
        rows_a_step = 8 if not p.dry_run else 1
        args = RefineArguments(
            output_dir=str(p.lines.file.parent / f"train-{name}"),
            max_steps=count,
            sequences_per_step=rows_a_step,
            per_device_train_batch_size=rows_a_step,
            learning_rate=3e-4,
            bf16=not p.dry_run,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=p.dry_run,
            objective={"positions": 8, "rollouts": 4 if not p.dry_run else 1},
        )
        trainer = RefineTrainer(from_pretrained(f"sample/{name}", dtype=torch.float32), args, train_dataset=rows)
        trainer.train()
        log = [row for row in trainer.state.log_history if "train/loss" in row]
        speed = statistics.median(row["train/tokens_per_second"] for row in log[-10:])
        gap = max(row.get("train/log_prob_gap", 0.0) for row in log)
        return {"steps": len(log), "tokens_a_second": round(speed), "last_loss": log[-1]["train/loss"], "gap": gap}

    for name in ("delta_net", "lact"):
        p.attempt("RefineTrainer", functools.partial(run, name), model=name)


def decode(p: Phase) -> None:
    """What a token costs that is written after a context, for several rows at once: read one by one, and recorded as a
    CUDA graph where the model allows it."""
    for name, published in PUBLISHED.items():
        config = published if not p.dry_run else published | {"num_hidden_layers": 1, "vocab_size": 512}
        with p.device:
            model = from_config(config)
        model, length = model.to(torch.bfloat16).eval(), 4096 if not p.dry_run else 32
        with torch.no_grad():
            tokens = torch.zeros(1, length, dtype=torch.int64, device=p.device)
            read = model.read(tokens)
            memory, hidden = read.memory, read.hidden[:, -1]
        for rows in (1, 8, 64) if not p.dry_run else (1,):
            many, state = memory.repeat(rows), hidden.expand(rows, -1)
            seeds = torch.arange(rows, device=p.device)

            run = functools.partial(model.continue_sampled, many, state, TOKENS, seeds)

            for way in ("one_by_one", "auto"):
                os.environ["REFINE_DECODING"] = way
                p.attempt(f"decode {name}", lambda run=run: _a_token(p, run), rows=rows, by=way)
        del model, read, memory


def _a_token(p: Phase, run: Callable[[], Any]) -> dict[str, Any]:
    return {"ms_a_token": round(p.milliseconds(run, 3) / TOKENS, 3)}


PHASES: dict[str, Callable[[Phase], None]] = {
    "environment": environment,
    "warm-up": warm_up,
    "kernels": kernels_and_twins.kernels,
    "tests": tests,
    "delta": lambda p: steps(p, "DeltaNet 1.3B"),
    "lact": lambda p: steps(p, "LaCT 760M"),
    "train": train,
    "decode": decode,
}


def main(name: str, output: str, seconds: str, *more: str) -> None:
    """Run one phase. Exit code 1: it died, and its last line says of what."""
    phase = Phase(name, Path(output), float(seconds), "--dry-run" in more)
    if not phase.dry_run and not torch.cuda.is_available():
        phase.say("phase", error="there is no CUDA device: use --dry-run to try the script")
        sys.exit(1)
    if phase.dry_run:
        torch.set_num_threads(1)
    phase.say("window attention", method=window.chosen(phase.device, torch.bfloat16, 64))
    try:
        PHASES[name](phase)
    except Exception as error:
        phase.say("phase", error=f"{type(error).__name__}: {str(error)[:400]}", where=traceback.format_exc()[-600:])
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
