"""The folder of a stage depends on what decides its result, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from refine.phases import stages
from refine.phases.prepared_data import Prepared
from refine.phases.stages import EVALUATION_CODE, TRAINING_CODE, Stages, Trained
from refine.settings import load


@pytest.fixture
def keys(settings_with, workplace):
    """The keys of all stages, for settings with changes."""

    def found(changes: dict | None = None) -> dict[str, str]:
        stages = Stages(settings_with(changes), Prepared(workplace / "prepared"))
        mid = {arm: stages.mid(arm, "hub/model").key for arm in ("none", "sft", "refine")}
        model = Trained(stages.mid("refine", "hub/model"), "hub/model", "the same weights")
        return {"start": stages.start().key, **mid, "evaluation": stages.evaluation(model).stage.key}

    return found


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_a_setting_changes_the_keys_of_its_stages(keys):
    before = keys()
    assert keys() == before and len(set(before.values())) == 5
    assert changed(before, keys({"training": {"start": {"steps": 151}}})) == {"start"}
    assert changed(before, keys({"training": {"mid": {"steps": 31}}})) == {"none", "sft", "refine"}
    assert changed(before, keys({"seed": 2})) == {"start", "none", "sft", "refine"}


def test_settings_that_decide_no_result_change_no_key(keys):
    before = keys()
    assert keys({"registry": {"model_name": "other"}, "evaluation": {"batch_size": 3}}) == before
    assert keys({"training": {"mid": {"arms": ["refine"]}}}) == before


def test_changed_data_or_code_changes_the_stages_that_use_it(keys, workplace, monkeypatch):
    before = keys()
    for split, decided in (("second_domain", {"evaluation"}), ("train", {"start", "none", "sft", "refine"})):
        file = workplace / "prepared" / "documents" / f"{split}.parquet"
        as_it_was = file.read_bytes()
        file.write_text("other text")
        assert changed(before, keys()) == decided
        file.write_bytes(as_it_was)
    monkeypatch.setattr(stages, "code_hash", lambda *rooms: "new " + " ".join(rooms))
    assert changed(before, keys()) == set(before)


def test_the_settings_of_a_running_experiment_do_not_change_with_the_file(settings_with, workplace):
    settings = settings_with({"training": {"mid": {"steps": 33}}})
    stages = Stages(settings, Prepared(Path("prepared")))
    frozen = stages.frozen()
    (workplace / "params.yaml").write_text("seed: 7")
    assert load(frozen) == settings and stages.frozen() == frozen


APART = ("settings", "system", "errors", "paths", "identity", "__init__")  # these decide no result


def _covered(file: str, code: tuple[str, ...]) -> bool:
    return any(file == f"refine/{one}.py" or file.startswith(f"refine/{one}/") for one in code)


@pytest.mark.parametrize(
    "start, code",
    [
        ("refine.phases.start", TRAINING_CODE),
        ("refine.phases.mid", TRAINING_CODE),
        ("refine.phases.post", TRAINING_CODE),
        ("refine.training.test_time", TRAINING_CODE),
        ("refine.evaluation", EVALUATION_CODE),
    ],
)
def test_a_key_covers_every_file_that_its_stage_imports(start, code, imported_files):
    used = {file for file in imported_files(start) if file.split("/")[1].removesuffix(".py") not in APART}
    assert used and {file for file in used if not _covered(file, code)} == set()


def test_a_key_names_no_code_that_its_stages_do_not_import(imported_files):
    training = set().union(*(imported_files(f"refine.phases.{phase}") for phase in ("start", "mid", "post")))
    for files, code in ((training, TRAINING_CODE), (imported_files("refine.phases.evaluation"), EVALUATION_CODE)):
        assert [one for one in code if not any(_covered(file, (one,)) for file in files)] == []


def test_hidden_files_change_no_key(keys, workplace):
    before = keys()
    for name in ("tokenizer/.DS_Store", "documents/._train.parquet", "needles/._niah_single_1_256.parquet"):
        (workplace / "prepared" / name).write_bytes(b"1")
    assert keys() == before
