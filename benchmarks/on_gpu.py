"""Everything that a machine with a GPU should say about REFINE, in at most 8 minutes and without a network.

    python -m benchmarks.on_gpu --output DIR [--minutes 8] [--phases environment kernels ...]
    python -m benchmarks.on_gpu --output DIR --dry-run     # tiny shapes on the CPU: tries the script

Each phase (benchmarks/gpu_phases.py) is a process of its own with its own time limit, so that a hang, an illegal
memory access or an out-of-memory ends that phase alone. What a phase finds is a line of JSON, on stdout and in
DIR/lines.jsonl; DIR/cuda.md is the summary. Compiled kernels stay in the caches that TRITON_CACHE_DIR and
TORCHINDUCTOR_CACHE_DIR name (default: DIR/triton, DIR/inductor); a second run compiles nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

LIMITS = {  # seconds of each phase, in the order in which they run
    "environment": 60,
    "warm-up": 90,
    "kernels": 75,
    "tests": 100,
    "delta": 90,
    "lact": 80,
    "train": 60,
    "decode": 50,
}
SHORTEST = 15  # seconds with which a phase is not worth starting
CHECKOUT = Path(__file__).resolve().parent.parent


class Lines:
    """What was found: a line of JSON for each thing, on stdout and in `folder`/lines.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "lines.jsonl"

    def say(self, **values: Any) -> None:
        """One line. Survives what the process does next: a killed phase keeps its lines."""
        line = json.dumps(values)
        print(line, flush=True)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def run_phase(phase: str, output: Path, limit: float, dry_run: bool) -> int | str:
    """Run one phase for at most `limit` seconds: its exit code, or "time limit". Nothing that it started survives."""
    command = [sys.executable, "-m", "benchmarks.gpu_phases", phase, str(output), f"{limit:.0f}"]
    child = subprocess.Popen([*command, *["--dry-run"] * dry_run], cwd=CHECKOUT, start_new_session=True)
    try:
        return child.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return "time limit"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the phase's own process group
        child.wait()


def summary(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown: a heading for each phase, a list entry for each thing that was found."""
    text = ["# What a GPU says about REFINE", "", "Written by `python -m benchmarks.on_gpu`.", ""]
    for phase in dict.fromkeys(line["phase"] for line in lines):
        text += [f"## {phase}", ""]
        for line in lines:
            if line["phase"] == phase:
                values = {name: value for name, value in line.items() if name not in ("phase", "what")}
                shown = ", ".join(f"{name} {value}" for name, value in values.items())
                text.append(f"- {line.get('what', 'phase')}: {shown}")
        text.append("")
    return "\n".join(text)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the lines and the summary.")
@click.option("--minutes", default=8.0, show_default=True, help="For all phases together.")
@click.option("--phases", multiple=True, type=click.Choice(list(LIMITS)), help="Only these (default: all).")
@click.option("--dry-run", is_flag=True, help="Tiny shapes on the CPU: tries the script, its times mean nothing.")
def main(output: Path, minutes: float, phases: tuple[str, ...], dry_run: bool) -> None:
    """Run the phases, print what they find, and write lines.jsonl and cuda.md. Exit code 1: a phase died, or something
    in it failed."""
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    (output / "lines.jsonl").unlink(missing_ok=True)
    for name, folder in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        os.environ.setdefault(name, str(output / folder))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    lines, deadline = Lines(output), time.monotonic() + 60 * minutes
    for phase in phases or LIMITS:
        limit = min(LIMITS[phase] * (10 if dry_run else 1), deadline - time.monotonic() - 3)
        if limit < SHORTEST:
            lines.say(phase=phase, skipped="no time left")
            continue
        began = time.monotonic()
        ended = run_phase(phase, output, limit, dry_run)
        lines.say(phase=phase, ended=ended, seconds=round(time.monotonic() - began, 1))
    found = lines.read()
    (output / "cuda.md").write_text(summary(found), encoding="utf-8")
    if any("error" in line or line.get("ended", 0) != 0 for line in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
