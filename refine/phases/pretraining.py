"""A small model from a settings file alone: text, tokenizer, packed sequences, next-token training, and a model folder
to ship. The package's own models were made this way.

OUTPUT/data/      raw documents of the settings' sources        OUTPUT/prepared/  tokenizer and sequences
OUTPUT/training/  the run: checkpoints, metrics, record         OUTPUT/model/     bf16 weights, tokenizer, training.json
OUTPUT/drill/     data/, prepared/ and training/ of the drill that comes first, if the settings have one
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refine.data.corpus.fetch import write_splits
from refine.data.token_sequences import prepare_token_sequences
from refine.data.tokenizer import prepare_tokenizer
from refine.errors import TrainingError
from refine.identity import hash_of
from refine.metric_names import METRICS_FILE
from refine.phases import run_folder, start
from refine.phases.card import CARD, card_of
from refine.phases.plan import Plan
from refine.phases.prepared_data import Prepared
from refine.settings import Drill, PretrainingSettings
from refine.system.files import folder_beside, write_json, write_text
from refine.system.readers import in_form, mapping, parsed_json, read_json, read_text

RECORD = "training.json"
POINTS = 200  # of the loss curve in the record


def plan(settings: PretrainingSettings, output: Path, say: Callable[[str], None] = lambda line: None) -> Plan:
    """The training of a new model with `settings` (data, tokenizer, documents, model.config, training.start).

    Makes what the training starts from, unless `output` holds it: the text, the tokenizer, the sequences and the
    drill's model. `say` gets a line on each.
    Raises DataError: a source fails. SettingError: no model.config. TrainingError: OUTPUT/drill holds another run.
    """
    data = _prepared(settings, output, say)
    first = None if settings.drill is None else _drilled(settings, settings.drill, data, output / "drill", say)
    return start.plan(settings, data, first)


def pretrain(settings: PretrainingSettings, training: Plan, output: Path) -> dict[str, Any]:
    """Run `training`, which `plan` returned, in OUTPUT/training; then write OUTPUT/model.

    Returns the record in OUTPUT/model/training.json; a finished pretraining is left as it is.
    Raises TrainingError: OUTPUT/training holds another run, or training failed.
    """
    record = training.run(output / "training")
    exported = output / "model"
    with in_form(
        output / "training" / run_folder.RESULT, run_folder.RECORD, TrainingError, "remove it and start again"
    ):
        run = record["identity_hash"]
    made_from = {"settings": hash_of(settings.model_dump(mode="json")), "run": run}
    known = record_of(exported)
    if known is not None and known.get("made_from") == made_from:
        return known
    return _export(record, output, made_from)


def record_of(exported: Path) -> dict[str, Any] | None:
    """The record in a folder of an exported model; None without one. Raises TrainingError: it is damaged."""
    file = exported / RECORD
    return read_json(file, "the record of a pretraining", TrainingError) if file.exists() else None


def prepared_of(file: Path) -> dict[str, Any] | None:
    """The settings that prepared.json says the data was made with; None without one. Raises TrainingError: damaged."""
    return read_json(file, "the settings of prepared data", TrainingError) if file.exists() else None


def _drilled(
    settings: PretrainingSettings, drill: Drill, data: Prepared, output: Path, say: Callable[[str], None]
) -> Path:
    """The model after the drill: the same tokenizer and validation text, other training text."""
    training = settings.training.model_copy(update={"start": drill.start})
    text = settings.data.model_copy(update={"train": drill.train})
    tokenizer = settings.tokenizer.model_copy(update={"path": str(data.tokenizer), "revision": None})
    of_drill = settings.model_copy(update={"data": text, "tokenizer": tokenizer, "training": training})
    start.plan(of_drill, _prepared(of_drill, output, say)).run(output / "training")
    return output / "training" / run_folder.MODEL


def _prepared(settings: PretrainingSettings, output: Path, say: Callable[[str], None]) -> Prepared:
    """Text, tokenizer and sequences; made again if they are missing or of other settings."""
    wanted = {name: getattr(settings, name).model_dump(mode="json") for name in ("data", "tokenizer", "documents")}
    prepared, file = Prepared(output / "prepared"), output / "prepared.json"
    if prepared_of(file) == json.loads(json.dumps(wanted)):
        return prepared
    output.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with folder_beside(output / "data") as beside:
        write_splits(settings.data, beside, say)
    made = prepare_tokenizer(settings.tokenizer, output / "data" / "train.parquet", prepared.tokenizer)
    say(f"tokenizer: {len(made)} pieces")
    prepare_token_sequences(settings.documents, output / "data", made, prepared.folder / "documents", say)
    write_json(file, wanted)
    return prepared


def _export(record: dict[str, Any], output: Path, made_from: dict[str, str]) -> dict[str, Any]:
    """Write OUTPUT/model: bf16 weights, tokenizer, and the record of the whole training, including the drill."""
    import torch

    from refine.data.tokenizer import load_tokenizer
    from refine.models import from_pretrained
    from refine.system.quiet import no_progress_bars

    runs = [run for run in (output / "drill" / "training", output / "training") if run.is_dir()]
    records = [_finished(run) for run in runs]
    rows = [row for run in runs for row in _rows(run / METRICS_FILE)]
    with in_form(output / "training", "a finished training", TrainingError, "remove it and start again"):
        written = _record(rows, records, record, made_from)
    run = output / "training"
    with folder_beside(output / "model") as beside, no_progress_bars():
        from_pretrained(run / run_folder.MODEL, dtype=torch.bfloat16).save_pretrained(str(beside))
        load_tokenizer(run / run_folder.MODEL).save_pretrained(str(beside))
        (beside / RECORD).write_text(json.dumps(written, indent=1, allow_nan=False), encoding="utf-8")
        write_text(beside / CARD, card_of(record | {name: written[name] for name in ("steps", "tokens")}))
    return written


def _finished(run: Path) -> dict[str, Any]:
    record = run_folder.finished(run)
    if record is None:
        raise TrainingError(f"{run}: no finished training: remove {run.parent} and start again")
    return record


def _record(
    rows: list[dict[str, Any]], records: list[dict[str, Any]], record: dict[str, Any], made_from: dict[str, str]
) -> dict[str, Any]:
    """The record of the whole training. rows: of all its metrics. records: of its runs. record: of the last one."""
    import torch

    return {
        "made_from": made_from,
        **{name: sum(one[name] for one in records) for name in ("steps", "tokens", "seconds")},
        **{name: record[name] for name in ("seed", "parameters", "settings", "data", "metrics")},
        "machine": f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)",
        "curve": _curve([row for row in rows if "train/ntp_loss" in row]),
        "validation": [{"step": row["step"], "loss": round(row["val/loss"], 4)} for row in rows if "val/loss" in row],
    }


def _rows(file: Path) -> list[dict[str, Any]]:
    lines = read_text(file, "the metrics of a run", TrainingError).splitlines()
    places = [(f"{file}: line {number}", line) for number, line in enumerate(lines, 1)]
    what = "a row of metrics"
    return [mapping(parsed_json(line, at, TrainingError), at, what, TrainingError) for at, line in places]


def _curve(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Next-token loss [nats per token] by trained tokens: at most POINTS means, each over the same number of steps.
    Steps count on from the drill into the training."""
    each = -(-len(rows) // POINTS)
    tokens, found = 0.0, []
    for first in range(0, len(rows), each):
        group = rows[first : first + each]
        tokens += sum(row["train/tokens"] for row in group)
        loss = sum(row["train/ntp_loss"] for row in group) / len(group)
        found.append({"step": first + len(group), "tokens": round(tokens), "loss": round(loss, 4)})
    return found
