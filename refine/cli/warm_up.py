"""`refine warm-up`: compile the GPU kernels of a model's layers before a training needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from refine.ops.delta_rule.compile_ahead import Shape


@click.command()
@click.option("--model", required=True, help="Folder, name on the hub, or sample/delta_net.")
@click.option("--processes", type=click.IntRange(1), help="That compile at once (default: the cores, 16 at most).")
def warm_up(model: str, processes: int | None) -> None:
    """Compile the GPU kernels that a model's layers with the delta rule use, in parallel, and keep them.

    Without it the first training on a GPU machine compiles them one after the other: minutes for each shape of a layer.
    They are kept in $TRITON_CACHE_DIR (default: ~/.triton/cache), which can be copied to machines with the same GPU and
    the same versions of torch, triton and fla-core. On a machine without a GPU there is nothing to do.

    At most eight configurations of each kernel are compiled. REFINE_TUNING=all, here and in the training, takes all
    that flash-linear-attention offers.
    """
    import torch

    from refine.ops.delta_rule import fla, tuning

    few = tuning.tries_few()
    shapes = layer_shapes(model)
    if not shapes:
        click.echo("this model has no layers with the delta rule: there are no kernels to compile")
    elif not torch.cuda.is_available():
        click.echo("no CUDA device: its layers run in PyTorch on this machine, and there are no kernels to compile")
    elif not fla.chosen(torch.device("cuda"), torch.bfloat16):
        why = fla.lacking() or "REFINE_KERNELS is torch"
        click.echo(f"the layers run in PyTorch ({why}): there are no kernels to compile")
    else:
        click.echo(
            f"at most {tuning.FEW} configurations of each kernel (REFINE_TUNING=all: every one)"
            if few
            else "every configuration of each kernel (REFINE_TUNING is all)"
        )
        _compile(shapes, processes or min(16, os.cpu_count() or 1))


def layer_shapes(model: str) -> list[Shape]:
    """The distinct shapes of the layers of a model with this config; its
    weights are not read. Raises ModelError: no such model, or a config that is not implemented."""
    import torch

    from refine.models import from_config
    from refine.models.delta.mixer import DeltaRuleMixer
    from refine.models.weights import resolve
    from refine.ops.delta_rule.compile_ahead import Shape
    from refine.ops.delta_rule.fla import CHANNELS

    with torch.device("meta"):
        built = from_config(resolve(model, None))
    mixers = [module for module in built.modules() if isinstance(module, DeltaRuleMixer) and module.uses_kernels]
    return sorted(
        {
            Shape(one.heads, one.value_heads, one.key, one.value, hasattr(one, "A_log"), one.decays_by_channel)
            for one in mixers
            if not (one.decays_by_channel and one.key > CHANNELS)
        }
    )


def _compile(shapes: list[Shape], processes: int) -> None:
    command = [sys.executable, "-m", "refine.ops.delta_rule.compile_ahead", json.dumps(shapes)]
    start = time.monotonic()
    children = [
        subprocess.Popen(
            [*command, str(rank), str(processes)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(processes)
    ]
    compiled, failed = 0, []
    for child in children:
        out, err = child.communicate()
        if child.returncode:
            failed.append(err.strip().splitlines()[-1] if err.strip() else f"exit code {child.returncode}")
            continue
        found = json.loads(out.strip().splitlines()[-1])
        compiled, failed = compiled + found["compiled"], failed + found["failed"]
    click.echo(f"compiled {compiled} kernels for {len(shapes)} shapes in {time.monotonic() - start:.0f} seconds")
    if failed:
        click.echo(f"{len(failed)} did not compile, for example: {failed[0]}")
    if not compiled:
        sys.exit(1)
