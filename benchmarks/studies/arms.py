"""Mid-training from a shipped model in many arms and seeds, each scored on the same test prompts: where rollouts start,
and what the tokens after these places are worth. `python -m benchmarks.studies.arms` (after `refine data fetch`).

Every arm reads the same rows in the same order: those of params.yaml. `refine report --folder OUTPUT` makes tables of
OUTPUT/ARM/SEED/evaluation.json. OUTPUT/prepared holds rows and prompts, with more prompts than the sample has. A second
start trains only what is missing; several processes may each take some of the seeds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refine import paths, settings
from refine.phases.prepared_data import Prepared
from refine.settings import Settings
from refine.settings.objective import ObjectiveSettings
from refine.system.files import folder_beside

MODEL = "sample/delta_net"
EXPERIMENT = (
    "needles.tasks=[niah_single_1,niah_single_2,niah_multikey_1]",
    "needles.samples=25",
    "training.mid.checkpoint_every=1000",
    "training.mid.evaluate_every=1000",
    "training.mid.continue_with=refine",
)
MARKED: dict[str, Any] = {"selection": "marked", "rollouts": 16, "group": "position", "rollout_length": 7}
FOCUS: dict[str, Any] = {"selection": "marked", "rollout_length": 7, "nsp_weight": 0.0, "focus_weight": 0.2}

# arm -> how its objective differs from the paper's (c 8, k 5, n 1, cosine, by entropy, λ 0.2). "none" does not train.
MAIN: dict[str, Mapping[str, Any]] = {
    "none": {},
    "sft": {"nsp_weight": 0.0},
    "sft at 1e-3": {"nsp_weight": 0.0, "learning_rate": 1e-3},  # the best of its rates on validation prompts
    "refine": {},
    "refine c=32 n=4": {"positions": 32, "rollouts": 4, "group": "position"},
    "refine marked": MARKED,
    "focus": FOCUS,
    "both": MARKED | {"focus_weight": 0.2},
}
ABLATIONS: dict[str, Mapping[str, Any]] = {
    "marked, binary": MARKED | {"reward": "binary"},
    "marked, n=4": MARKED | {"rollouts": 4},
    "marked, n=1 by sequence": MARKED | {"rollouts": 1, "group": "sequence"},
    "marked, k=3": MARKED | {"rollout_length": 3},
    "marked, λ=1": MARKED | {"nsp_weight": 1.0},
    "uniform, n=16": MARKED | {"selection": "uniform"},
    "entropy, n=16": MARKED | {"selection": "entropy"},
    "recall, n=16": MARKED | {"selection": "recall"},
    "focus at recall": FOCUS | {"selection": "recall"},
    "focus by entropy": FOCUS | {"selection": "entropy"},
    "focus 0.05": FOCUS | {"focus_weight": 0.05},
    "focus 1": FOCUS | {"focus_weight": 1.0},
}
PARTS = {"main": MAIN, "ablations": ABLATIONS}


@click.command()
@click.option("--output", type=Path, default=None, help="Folder of the results (default: results/arms-MODEL).")
@click.option("--model", default=MODEL, show_default=True, help="Shipped model, folder or hub name to start from.")
@click.option("--seeds", default="1,2,3,4,5", show_default=True, help="Training seeds.")
@click.option("--part", type=click.Choice([*PARTS, "time"]), default="main", show_default=True)
@click.option("--arms", default=None, help="Only these arms of the part, with ; between them.")
@click.option("--plain", type=click.FloatRange(0, 1), help="Share of training rows without marks (default: as it is).")
@click.option("--params", type=Path, default=Path("params.yaml"), show_default=True)
@click.option("-S", "overrides", multiple=True, help="Override a setting of all arms.")
def main(
    output: Path | None,
    model: str,
    seeds: str,
    part: str,
    arms: str | None,
    plain: float | None,
    params: Path,
    overrides: tuple[str, ...],
) -> None:
    """Train and score what a part lacks: the main arms; SFT for the time of each of them; ablations."""
    import torch

    from refine.system.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)  # one process a core: give each process some of the seeds
    output = output or paths.results() / f"arms-{Path(model).name}"
    common = (f"tokenizer.path={model}", f"model.checkpoint={model}", *EXPERIMENT, *overrides)
    values = settings.load(params, common)
    data = _prepared(values, output / "prepared")
    mix = "" if plain is None else f", {plain:.0%} plain"
    if plain is not None:
        data = with_share_of_plain_rows(data, plain, output / f"prepared{mix}")
    chosen = _as_long(values, model, data) if part == "time" else PARTS[part]
    wanted = [one.strip() for one in arms.split(";")] if arms else list(chosen)
    for seed in map(int, seeds.split(",")):
        for arm in wanted:
            folder = output / f"{arm}{mix}" / str(seed)
            if not (folder / "evaluation.json").exists():
                _one(arm, _settings(values, arm, chosen[arm], seed), model, data, folder)


def _settings(values: Settings, arm: str, changes: Mapping[str, Any], seed: int) -> Settings:
    """The settings of one run: the paper's objective with `changes`."""
    phase, own = _parted(changes)
    mid = values.training.mid.model_copy(update={"objective": own, "variants": {}, "arms": ("none", "refine"), **phase})
    training = values.training.model_copy(update={"mid": mid})
    return values.model_copy(update={"training": training, "seed": seed})


def _parted(changes: Mapping[str, Any]) -> tuple[dict[str, Any], ObjectiveSettings]:
    """Of an arm's changes those of the phase (`steps`, `learning_rate`), and the objective."""
    phase = {name: value for name, value in changes.items() if name in ("steps", "learning_rate")}
    return phase, ObjectiveSettings(**{name: value for name, value in changes.items() if name not in phase})


def _prepared(values: Settings, folder: Path) -> Prepared:
    """Rows of data/ and prompts, made if missing, with the seed of the settings: the same for all arms."""
    from refine.data.prompts.needles import write_needles
    from refine.data.raw_documents import read_texts
    from refine.data.token_sequences import prepare_token_sequences
    from refine.data.tokenizer import prepare_tokenizer

    if not folder.is_dir():
        text, of = Path("data"), values.needles
        with folder_beside(folder) as beside:
            tokenizer = prepare_tokenizer(values.tokenizer, text / "train.parquet", beside / "tokenizer")
            prepare_token_sequences(values.documents, text, tokenizer, beside / "documents")
            (beside / "needles").mkdir()
            essay = list(read_texts(text / "validation.parquet"))
            write_needles(
                of.tasks, of.lengths, of.samples, tokenizer, essay, values.seed, beside / "needles", of.answer_tokens
            )
    return Prepared(folder)


def with_share_of_plain_rows(data: Prepared, share: float, folder: Path) -> Prepared:
    """`data` with fewer training rows: the first of those with marks, or of those without, so that `share` is plain."""
    if not folder.is_dir():
        with folder_beside(folder) as beside:
            shutil.copytree(data.folder, beside, dirs_exist_ok=True)
            rows = pq.read_table(data.documents("train"))
            marked = pc.greater(pc.list_value_length(rows["marks"]), 0)
            kinds = {True: rows.filter(marked), False: rows.filter(pc.invert(marked))}
            wanted = {True: 1 - share, False: share}
            total = min(len(kinds[kind]) / part for kind, part in wanted.items() if part)
            kept = [kinds[kind].slice(0, round(total * part)) for kind, part in wanted.items()]
            pq.write_table(pa.concat_tables(kept), Prepared(beside).documents("train"))
    return Prepared(folder)


def _as_long(values: Settings, model: str, data: Prepared) -> dict[str, dict[str, Any]]:
    """SFT arms with as many steps as fit in the time of each other arm (the costs are kept in cost.json)."""
    kept = data.folder.parent / "cost.json"
    if not kept.exists():
        costs = step_costs(values, model, data)
        kept.write_text(json.dumps(costs, indent=1, allow_nan=False), encoding="utf-8")
    costs, steps = json.loads(kept.read_text(encoding="utf-8")), values.training.mid.steps
    return {
        f"sft for the time of {arm}": {"nsp_weight": 0.0, "steps": round(steps * ratio)}
        for arm, ratio in costs.items()
        if arm != "sft"
    }


def step_costs(values: Settings, model: str, data: Prepared, rounds: int = 5) -> dict[str, float]:
    """What a step of each main arm costs in SFT steps: medians over rounds of ratios of CPU time, one thread."""
    import numpy as np
    import torch

    from refine.data.token_sequences import load_token_sequences
    from refine.models import from_pretrained
    from refine.objective import next_sequence_step
    from refine.training.dataset import collate, token_rows

    trained = from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.0)
    rows = token_rows(load_token_sequences(data.documents("train")))
    marked = next(n for n in range(len(rows)) if rows[n].marks)
    batch = collate([rows[marked]])
    parted = {arm: _parted(changes) for arm, changes in MAIN.items() if arm != "none"}
    arms = {arm: objective for arm, (phase, objective) in parted.items() if not phase}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for round_ in range(rounds + 1):
        for arm, objective in arms.items():
            began, seeds = time.process_time(), torch.tensor([round_])
            next_sequence_step(
                trained, batch["tokens"], objective, seeds, lengths=batch["lengths"], marks=batch["marks"]
            ).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[arm].append(time.process_time() - began)
    taken = {arm: np.array(found[1:]) for arm, found in seconds.items()}  # the first round warms up
    return {arm: float(np.median(found / taken["sft"])) for arm, found in taken.items()}


def _one(arm: str, values: Settings, model: str, data: Prepared, folder: Path) -> None:
    from refine.data.tokenizer import load_tokenizer
    from refine.evaluation import Sources, evaluate_model, load_inputs
    from refine.phases import mid

    record = mid.plan(values, "none" if arm == "none" else "refine", model, data).run(folder / "run")
    tokenizer = load_tokenizer(model)
    inputs = load_inputs(data.folder, sources=Sources(tokenizer))
    found = evaluate_model(folder / "run" / "model", inputs, tokenizer, name=arm)
    (folder / "training.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
    found.save(folder)
    click.echo(f"{arm}, seed {values.seed}: {record['steps']} steps in {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
