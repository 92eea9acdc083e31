"""A model, a tokenizer and prepared data so small that a training run takes a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

VOCABULARY = 64
CONFIG = {
    "model_type": "delta_net",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "intermediate_size": 32,
}
OBJECTIVE = {"positions": 3, "rollout_length": 3, "min_prefix": 4}


def tokens(row: int, length: int = 48) -> list[int]:
    """Tokens with something to learn: each follows from the one before it, with some noise."""
    made, state = [], row + 1
    for place in range(length):
        state = (state * 5 + 3) % VOCABULARY if (place * 7 + row) % 11 else (state + row) % VOCABULARY
        made.append(state)
    return made


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Rows of a data set, of different lengths."""
    return [{"tokens": tokens(row, 40 + 4 * (row % 3)), "document": f"play-{row}", "offset": 0} for row in range(10)]


@pytest.fixture
def tiny_model() -> Callable[[], Any]:
    """Builds the same tiny DeltaNet each time."""

    def build() -> Any:
        import torch

        from refine.models import from_config

        torch.manual_seed(0)
        return from_config({**CONFIG, "vocab_size": VOCABULARY})

    return build


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., Any]:
    """RefineArguments for the tiny model; keyword arguments override."""

    def build(**more: Any) -> Any:
        from refine.training.arguments import RefineArguments

        values = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 6,
            "sequences_per_step": 4,
            "per_device_train_batch_size": 4,
            "objective": OBJECTIVE,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return RefineArguments(**{**values, **more})

    return build


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `refine prepare` makes it: tokenizer and sequences of 48 tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("prepared")
    vocabulary = {"<unk>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder / "tokenizer")
    (folder / "documents").mkdir()
    for split, start, count in (("train", 0, 12), ("validation", 100, 4)):
        table = {
            "tokens": pa.array([tokens(row) for row in range(start, start + count)], pa.list_(pa.int32())),
            "document": pa.array([f"{split}-{row}" for row in range(count)]),
            "offset": pa.array([0] * count, pa.int64()),
        }
        pq.write_table(pa.table(table), folder / "documents" / f"{split}.parquet")
    return folder


@pytest.fixture
def params(tmp_path: Path, checkout: Path) -> Path:
    """The sample's params.yaml with the tiny model and short phases."""
    values = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    values["model"] = {"config": CONFIG}
    short = {"steps": 6, "sequences_per_step": 4, "sequences_per_pass": 4, "checkpoint_every": 2, "evaluate_every": 3}
    values["training"]["start"] = {**short, "learning_rate": 1e-2}
    values["training"]["mid"] = {**short, "learning_rate": 1e-2, "objective": OBJECTIVE}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def weights() -> Callable[[Path], bytes]:
    """The bytes of a saved model's weights."""
    return lambda folder: (folder / "model.safetensors").read_bytes()


@pytest.fixture
def series() -> Callable[[Path], list[dict[str, float]]]:
    """The rows of a run's metrics, without what the clock decides."""

    def read(output: Path) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if "second" not in key} for row in rows]

    return read


@pytest.fixture(scope="module")
def start_model(prepared_folder, tmp_path_factory, checkout) -> Path:
    """A starting model, trained once for all tests of a file."""
    from refine import settings
    from refine.phases.prepared_data import Prepared
    from refine.phases.start import start_training

    output = tmp_path_factory.mktemp("start")
    values = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    values["model"] = {"config": CONFIG}
    values["training"]["start"] = {
        "steps": 4, "sequences_per_step": 4, "sequences_per_pass": 4, "learning_rate": 1e-2, "checkpoint_every": 2,
        "evaluate_every": 2,
    }  # fmt: skip
    path = output / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    start_training(settings.load(path), Prepared(prepared_folder), output / "run")
    return output / "run" / "model"


@pytest.fixture
def mid(params, prepared_folder, start_model, tmp_path):
    """Runs an arm of mid-training into tmp_path/NAME; overrides as on the command line."""
    from refine import settings
    from refine.phases.mid import mid_training
    from refine.phases.prepared_data import Prepared

    def run(name: str, arm: str = "refine", *overrides: str, callbacks=(), model: Path = start_model) -> dict:
        values = settings.load(params, overrides)
        return mid_training(values, arm, str(model), Prepared(prepared_folder), tmp_path / name, callbacks=callbacks)

    return run


@pytest.fixture
def stop_at() -> Callable[..., Any]:
    """Callbacks that end training with an error after a step, as a crash would."""
    from transformers import TrainerCallback

    def build(step: int, event: str = "on_step_end") -> TrainerCallback:
        def stop(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise RuntimeError("crash")

        return type("StopAt", (TrainerCallback,), {event: stop})()

    return build
