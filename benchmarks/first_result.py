"""Mid-training from a shipped model in many arms and seeds, at equal tokens and at equal time, each scored on the test
prompts: python -m benchmarks.first_result --output results/first (after `make run`, whose data it reads).

OUTPUT/ARM/SEED/evaluation.json is what `refine report --folder OUTPUT` lays out; OUTPUT/ARM/SEED/series.json keeps the
rewards, entropies, advantages and gradient norms of every step. Started again it goes on with what is missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from refine import paths, settings
from refine.settings import Settings

MODEL = "sample/delta_net"
OBJECTIVE = "training.mid.objective."


def _laid(positions: int = 8, rollouts: int = 1, group: str = "sequence", **others: object) -> tuple[str, ...]:
    """Settings laid over params.yaml: as published, but for what is given."""
    chosen = {"positions": positions, "rollouts": rollouts, "group": group, **others}
    return tuple(f"{OBJECTIVE}{name}={value}" for name, value in chosen.items())


# arm -> settings laid over params.yaml; "sft ..." are SFT arms, which differ in steps alone.
MAIN: dict[str, tuple[str, ...]] = {
    "sft": (),
    "c=8 n=1": _laid(),
    "c=64 n=1": _laid(positions=64),
    "c=8 n=8 by position": _laid(rollouts=8, group="position"),
    "c=32 n=4 by position": _laid(positions=32, rollouts=4, group="position"),
}
ABLATIONS: dict[str, tuple[str, ...]] = {
    **{f"reward {name}": _laid(reward=name) for name in ("binary", "hybrid")},
    **{f"selection {name}": _laid(selection=name) for name in ("uniform", "argmax", "argmin")},
    **{f"k={k}": _laid(rollout_length=k) for k in (1, 3, 7)},
    **{f"c={c}": _laid(positions=c) for c in (2, 4, 16, 32)},
}


@click.command()
@click.option("--output", type=Path, default=paths.results() / "first", show_default=True)
@click.option("--seeds", default="1,2,3,4,5", show_default=True, help="Training seeds.")
@click.option("--part", type=click.Choice(["main", "time", "ablations"]), default="main", show_default=True)
@click.option("--params", type=Path, default=Path("params.yaml"), show_default=True)
@click.option("-S", "overrides", multiple=True, help="Laid over the settings of all arms.")
def main(output: Path, seeds: str, part: str, params: Path, overrides: tuple[str, ...]) -> None:
    """Train and score what is missing of a part: the main arms; SFT for as long as each of them took; the ablations."""
    import torch

    from refine.cli.evaluate import quiet

    quiet()
    torch.set_num_threads(1)  # an arm a core: run a seed in each of several processes
    for seed in map(int, seeds.split(",")):
        arms = {"main": MAIN, "ablations": ABLATIONS}.get(part) or _as_long(output, seed, params, overrides)
        for arm, of_arm in arms.items():
            if not (output / arm / str(seed) / "evaluation.json").exists():
                chosen = (*overrides, *of_arm, f"seed={seed}")
                _one(arm, settings.load(params, chosen), output / arm / str(seed))


def _as_long(output: Path, seed: int, params: Path, overrides: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """SFT with as many steps as fit in the seconds that each REFINE arm took."""
    steps = settings.load(params, overrides).training.mid.steps
    seconds = {arm: _record(output, arm, seed)["seconds"] for arm in MAIN}
    return {
        f"sft for the time of {arm}": (f"training.mid.steps={round(steps * seconds[arm] / seconds['sft'])}",)
        for arm in MAIN
        if arm != "sft"
    }


def _record(output: Path, arm: str, seed: int) -> dict[str, Any]:
    return json.loads((output / arm / str(seed) / "training.json").read_text(encoding="utf-8"))


def _one(arm: str, values: Settings, folder: Path) -> None:
    from refine.data import tokenizer as tokenizers
    from refine.evaluation import Sources, evaluate_model, load_inputs
    from refine.training.mid_training import mid_training
    from refine.training.prepared import Prepared

    data = Prepared(paths.prepared())
    kind = "sft" if arm.startswith("sft") else "refine"
    record = mid_training(values, kind, MODEL, data, folder / "run")
    tokenizer = tokenizers.load(MODEL)
    inputs = load_inputs(data.folder, sources=Sources(tokenizer))
    found = evaluate_model(folder / "run" / "model", inputs, tokenizer, name=arm)
    (folder / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    rows = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "series.json").write_text(json.dumps([json.loads(row) for row in rows]), encoding="utf-8")
    found.save(folder)
    click.echo(f"{arm}, seed {values.seed}: {record['steps']} steps in {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
