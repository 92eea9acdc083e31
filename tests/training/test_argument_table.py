"""Every field of the installed TrainingArguments works here, or is refused by its name."""

from __future__ import annotations

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from refine.errors import SettingError
from refine.training.argument_table import REFUSED, WORKS
from refine.training.arguments import RefineArguments, _defaults
from refine.training.trainer import RefineTrainer

NAMES = {one.name for one in fields(TrainingArguments)}


def test_every_field_is_in_the_table_once():
    assert NAMES - WORKS - set(REFUSED) == set(), "say in refine/training/argument_table.py whether these work"
    assert not WORKS & set(REFUSED)


@pytest.mark.parametrize("name", sorted(set(REFUSED) & NAMES))
def test_a_refused_field_is_refused_by_name(name, tmp_path):
    default = _defaults(RefineArguments)[name]
    other = (not default) if isinstance(default, bool) else 0.5 if default in (None, 0.0) else "other"
    with pytest.raises(SettingError, match=rf"^RefineArguments\.{name} is .* has no effect here: "):
        RefineArguments(output_dir=str(tmp_path), **{name: other})
    RefineArguments(output_dir=str(tmp_path), **{name: default})


def test_grouping_by_length_is_refused(tmp_path):
    with pytest.raises(SettingError, match="train_sampling_strategy is 'group_by_length'"):
        RefineArguments(output_dir=str(tmp_path), train_sampling_strategy="group_by_length")


def test_a_second_training_is_as_the_first_and_predict_is_refused(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(max_steps=2), train_dataset=rows)
    trainer.train()
    trainer.train()
    assert trainer.state.global_step == 2
    assert [row["step"] for row in trainer.state.log_history if "train/loss" in row] == [1, 2]
    with pytest.raises(SettingError, match=r"no predict\(\)"):
        trainer.predict(rows)


def test_every_trainer_of_a_process_has_a_progress_bar(tiny_model, arguments, rows):
    for _ in range(2):
        trainer = RefineTrainer(tiny_model(), arguments(disable_tqdm=None), train_dataset=rows)
        assert "ProgressBar" in {type(one).__name__ for one in trainer.callback_handler.callbacks}
