"""Mid-training from a shipped model in many arms and seeds, at equal tokens and at equal time, each scored on the same
test prompts: `python -m benchmarks.studies.first_result` (after `refine data fetch`).

`refine report --folder OUTPUT` makes tables of OUTPUT/ARM/SEED/evaluation.json. OUTPUT/ARM/SEED/series.json keeps the
rewards, entropies, advantages and gradient norms of every step. OUTPUT/prepared holds the prompts, more than the sample
has. A second start trains only what is missing; several processes may each take some of the seeds.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from refine import paths, settings
from refine.phases.prepared_data import Prepared
from refine.settings import Settings
from refine.system.files import folder_beside
from refine.training.metrics_file import METRICS_FILE

MODEL = "sample/delta_net"
OBJECTIVE = "training.mid.objective."
EXPERIMENT = (
    "training.mid.steps=60",
    "training.mid.checkpoint_every=60",
    "training.mid.evaluate_every=60",
    "needles.tasks=[niah_single_1,niah_single_2,niah_multikey_1]",
    "needles.samples=40",
    "questions.test_samples=100",
)


def _objective(positions: int = 8, rollouts: int = 1, group: str = "sequence", **others: object) -> tuple[str, ...]:
    """Overrides of params.yaml: the published objective with the given changes."""
    chosen = {"positions": positions, "rollouts": rollouts, "group": group, **others}
    return tuple(f"{OBJECTIVE}{name}={value}" for name, value in chosen.items())


# arm -> overrides of params.yaml. "sft ..." are SFT arms, which differ only in their steps; "none" is the start.
MAIN: dict[str, tuple[str, ...]] = {
    "none": (),
    "sft": (),
    "c=8 n=1": _objective(),
    "c=64 n=1": _objective(positions=64),
    "c=8 n=8 by position": _objective(rollouts=8, group="position"),
    "c=32 n=4 by position": _objective(positions=32, rollouts=4, group="position"),
}
ABLATIONS: dict[str, tuple[str, ...]] = {
    **{f"reward {name}": _objective(reward=name) for name in ("binary", "hybrid")},
    **{f"selection {name}": _objective(selection=name) for name in ("uniform", "argmax", "argmin")},
    **{f"k={k}": _objective(rollout_length=k) for k in (1, 3, 7)},
    **{f"c={c}": _objective(positions=c) for c in (2, 4, 16, 32)},
}


@click.command()
@click.option("--output", type=Path, default=paths.results() / "first", show_default=True)
@click.option("--model", default=MODEL, show_default=True, help="Shipped model, folder or hub name to start from.")
@click.option("--seeds", default="1,2,3,4,5", show_default=True, help="Training seeds.")
@click.option("--part", type=click.Choice(["main", "time", "ablations"]), default="main", show_default=True)
@click.option("--params", type=Path, default=Path("params.yaml"), show_default=True)
@click.option("-S", "overrides", multiple=True, help="Override a setting of all arms.")
def main(output: Path, model: str, seeds: str, part: str, params: Path, overrides: tuple[str, ...]) -> None:
    """Train and score what a part lacks: the main arms; SFT for the time of each of them; ablations."""
    import torch

    from refine.system.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)  # one process a core: give each process some of the seeds
    common = (f"tokenizer.path={model}", f"model.checkpoint={model}", *EXPERIMENT, *overrides)
    data = _prepared(settings.load(params, common), output / "prepared")
    arms = {"main": MAIN, "ablations": ABLATIONS}.get(part)
    if arms is None:
        values = {arm: settings.load(params, (*common, *of_arm)) for arm, of_arm in MAIN.items() if arm != "none"}
        arms = _as_long(values, model, data)
    for seed in map(int, seeds.split(",")):
        for arm, of_arm in arms.items():
            folder = output / arm / str(seed)
            if not (folder / "evaluation.json").exists():
                _one(arm, settings.load(params, (*common, *of_arm, f"seed={seed}")), model, data, folder)


def _prepared(values: Settings, folder: Path) -> Prepared:
    """Sequences and prompts of data/, made if missing, with the seed of the settings: the same for all arms."""
    from refine.data.prompts.needles import write_needles
    from refine.data.prompts.questions import write_questions
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
            (beside / "questions").mkdir()
            write_questions(values.questions, text, tokenizer, values.seed, beside / "questions")
    return Prepared(folder)


def _as_long(values: dict[str, Settings], model: str, data: Prepared) -> dict[str, tuple[str, ...]]:
    """SFT arms with as many steps as fit in the time of each REFINE arm (times are kept in cost.json). values: settings
    by arm."""
    kept = data.folder.parent / "cost.json"
    if not kept.exists():
        costs = step_costs(model, data, values)
        kept.write_text(json.dumps(costs, indent=1, allow_nan=False), encoding="utf-8")
    costs, steps = json.loads(kept.read_text(encoding="utf-8")), values["sft"].training.mid.steps
    return {
        f"sft for the time of {arm}": (f"training.mid.steps={round(steps * ratio)}",)
        for arm, ratio in costs.items()
        if arm != "sft"
    }


def step_costs(model: str, data: Prepared, values: dict[str, Settings], rounds: int = 5) -> dict[str, float]:
    """What a step of each arm costs in SFT steps: medians over rounds of ratios of CPU time, one thread."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from refine.models import from_pretrained
    from refine.objective import next_sequence_step
    from refine.phases.mid import objective_of

    trained = from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.0)
    rows = pq.read_table(data.documents("train"))["tokens"]
    sequences = values["sft"].training.mid.sequences_per_step
    tokens = torch.tensor([rows[i].as_py() for i in range(sequences)])
    objectives = {
        arm: objective_of("sft" if arm == "sft" else "refine", one.training.mid.objective)
        for arm, one in values.items()
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in objectives}
    for round_ in range(rounds + 1):
        for arm, objective in objectives.items():
            began = time.process_time()
            next_sequence_step(trained, tokens, objective, torch.arange(sequences) + round_).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[arm].append(time.process_time() - began)
    taken = {arm: np.array(found[1:]) for arm, found in seconds.items()}  # the first round warms up
    return {arm: float(np.median(found / taken["sft"])) for arm, found in taken.items()}


def _one(arm: str, values: Settings, model: str, data: Prepared, folder: Path) -> None:
    from refine.data.tokenizer import load_tokenizer
    from refine.evaluation import Sources, evaluate_model, load_inputs
    from refine.phases import mid

    kind = arm if arm == "none" else "sft" if arm.startswith("sft") else "refine"
    record = mid.plan(values, kind, model, data).run(folder / "run")
    tokenizer = load_tokenizer(model)
    inputs = load_inputs(data.folder, sources=Sources(tokenizer))
    found = evaluate_model(folder / "run" / "model", inputs, tokenizer, name=arm)
    (folder / "training.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
    rows = (folder / "run" / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    (folder / "series.json").write_text(
        json.dumps([json.loads(row) for row in rows], allow_nan=False), encoding="utf-8"
    )
    found.save(folder)
    click.echo(f"{arm}, seed {values.seed}: {record['steps']} steps in {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
