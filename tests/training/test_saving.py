"""Checkpoints of a run: which are kept, what they hold, where a run resumes. With kills: test_kills.py."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from refine.errors import ModelError, TrainingError
from refine.training import checkpoints, saving
from refine.training.saving import TRAINING_ARGS
from refine.training.trainer import RefineTrainer

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}


def names(trainer: RefineTrainer) -> list[str]:
    return sorted(path.name for path in trainer.output.iterdir())


def test_checkpoints_are_complete_and_hold_no_pickle_of_arguments(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(max_steps=3, **EVERY_STEP), train_dataset=rows)
    trainer.train()
    assert names(trainer) == ["checkpoint-2", "checkpoint-3"], "save_total_limit is 2"
    assert all(checkpoints.is_complete(folder) for folder in trainer.output.iterdir())
    assert (trainer.output / "checkpoint-3" / "optimizer.pt").is_file()
    assert not list(trainer.output.rglob(TRAINING_ARGS))


def test_the_best_checkpoint_is_kept(tiny_model, arguments, rows):
    more = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss", "load_best_model_at_end": True}
    args = arguments(max_steps=5, learning_rate=3.0, **EVERY_STEP, **more)
    trainer = RefineTrainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows[:2])
    trainer.train()
    losses = [row["val/loss"] for row in trainer.state.log_history if "val/loss" in row]
    best = 1 + losses.index(min(losses))
    assert best < 4, "the learning rate is too high on purpose"
    assert names(trainer) == [f"checkpoint-{best}", "checkpoint-4", "checkpoint-5"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_resuming_without_a_checkpoint_starts(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(max_steps=1), train_dataset=rows)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 1


def test_a_run_resumes_from_its_last_complete_checkpoint_to_the_same_weights(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(max_steps=3, **EVERY_STEP), train_dataset=rows)
    trainer.train()
    (trainer.output / "checkpoint-3" / "model.safetensors").unlink()
    again = RefineTrainer(tiny_model(), arguments(max_steps=3, **EVERY_STEP), train_dataset=rows)
    again.train(resume_from_checkpoint=True)
    assert len([row for row in again.state.log_history if "train/loss" in row]) == 3
    for one, other in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Counting(TrainerCallback, ExportableState):
    """Remembers a number across a resume."""

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen

    def state(self) -> dict:
        return {"args": {"seen": self.seen}, "attributes": {}}


def test_states_of_callbacks_are_saved_in_trainer_s_format(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(), train_dataset=rows, callbacks=[Counting(1)])
    trainer._export_callbacks()
    assert trainer.state.stateful_callbacks["Counting"] == Counting(1).state()
    trainer.add_callback(Counting(2))
    trainer._export_callbacks()
    assert trainer.state.stateful_callbacks["Counting"] == [Counting(1).state(), Counting(2).state()]
    assert "TrainerControl" in trainer.state.stateful_callbacks


def test_weights_that_are_not_finite_are_never_saved(tiny_model, arguments, rows):
    args = arguments(max_steps=3, learning_rate=1e38, **EVERY_STEP)
    trainer = RefineTrainer(tiny_model(), args, train_dataset=rows)
    with pytest.raises(TrainingError, match=r"step [12]: .*(weight holds|learning_rate)") as error:
        trainer.train()
    assert "\n" not in str(error.value)
    kept = [load_file(file) for file in trainer.output.rglob("*.safetensors")]
    assert all(tensor.isfinite().all() for tensors in kept for tensor in tensors.values())
    assert not list(trainer.output.glob(".*"))


@pytest.mark.parametrize("save", ["save_model", "save_complete"])
def test_a_weight_or_buffer_that_is_not_finite_is_named_before_anything_is_written(
    tiny_model, arguments, rows, tmp_path, save
):
    trainer = RefineTrainer(tiny_model(), arguments(), train_dataset=rows)
    trainer.model.register_buffer("mean", torch.tensor([1.0, float("nan")]))
    with pytest.raises(TrainingError, match="step 0: mean holds 1 values that are NaN or infinite"):
        getattr(trainer, save)(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_resuming_with_more_steps_trains_on_as_one_run_would(tiny_model, arguments, rows, tmp_path):
    short = RefineTrainer(tiny_model(), arguments(max_steps=2, **EVERY_STEP), train_dataset=rows)
    short.train()
    longer = RefineTrainer(tiny_model(), arguments(max_steps=4, **EVERY_STEP), train_dataset=rows)
    longer.train(resume_from_checkpoint=True)
    args = arguments(max_steps=4, output_dir=str(tmp_path / "whole"), **EVERY_STEP)
    whole = RefineTrainer(tiny_model(), args, train_dataset=rows)
    whole.train()
    assert longer.state.global_step == 4
    for one, other in zip(whole.model.parameters(), longer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_resuming_with_fewer_steps_than_were_trained_is_refused(tiny_model, arguments, rows):
    RefineTrainer(tiny_model(), arguments(max_steps=2, **EVERY_STEP), train_dataset=rows).train()
    fewer = RefineTrainer(tiny_model(), arguments(max_steps=1, **EVERY_STEP), train_dataset=rows)
    with pytest.raises(TrainingError, match="the checkpoint is of step 2, and max_steps is 1"):
        fewer.train(resume_from_checkpoint=True)


EPOCHS = {"max_steps": -1, "save_total_limit": 9, **EVERY_STEP}


@pytest.mark.parametrize(("short", "long", "refused"), [(1, 2, True), (2, 3, False), (0.5, 1, True), (0.4, 1, False)])
def test_resuming_with_more_epochs_skips_no_row(tiny_model, arguments, rows, tmp_path, short, long, refused):
    """Ten rows in steps of four: one epoch ends with a step of two rows, which a longer run does not have."""
    RefineTrainer(tiny_model(), arguments(num_train_epochs=short, **EPOCHS), train_dataset=rows).train()
    longer = RefineTrainer(tiny_model(), arguments(num_train_epochs=long, **EPOCHS), train_dataset=rows)
    if refused:
        with pytest.raises(TrainingError, match=rf"after {short} epochs, but this run ends it after .* rows would be"):
            longer.train(resume_from_checkpoint=True)
        last = checkpoints.last_complete(longer.output)
        longer.train(str(last.with_name(f"checkpoint-{int(last.name[11:]) - 1}")))
    else:
        longer.train(resume_from_checkpoint=True)
    args = arguments(num_train_epochs=long, output_dir=str(tmp_path / "whole"), **EPOCHS)
    whole = RefineTrainer(tiny_model(), args, train_dataset=rows)
    whole.train()
    assert longer.state.epoch == whole.state.epoch == long
    for one, other in zip(whole.model.parameters(), longer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_resuming_with_other_data_or_another_size_of_a_step_is_refused(tiny_model, arguments, rows):
    RefineTrainer(tiny_model(), arguments(max_steps=2, **EVERY_STEP), train_dataset=rows).train()
    for more, data in (({"sequences_per_step": 5}, rows), ({}, rows[:7])):
        other = RefineTrainer(tiny_model(), arguments(max_steps=4, **EVERY_STEP, **more), train_dataset=data)
        with pytest.raises(TrainingError, match=r"ended step 2 after 0\.8 epochs"):
            other.train(resume_from_checkpoint=True)


def test_a_named_checkpoint_that_is_damaged_is_refused(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(max_steps=1, **EVERY_STEP), train_dataset=rows)
    trainer.train()
    folder = trainer.output / "checkpoint-1"
    state = folder / "trainer_state.json"
    state.write_text(state.read_text().replace('"max_steps": 1', '"max_steps": 2'))
    with pytest.raises(TrainingError, match=r"damaged \(.*trainer_state\.json has other bytes than"):
        trainer.train(str(folder))
    (folder / checkpoints.MANIFEST).unlink()
    for text, said in (("{", "not valid JSON"), ("{}", "global_step is None"), ("[]", "mapping of names")):
        state.write_text(text)
        with pytest.raises(TrainingError, match=rf"trainer_state\.json: .*{said}"):
            trainer.train(str(folder))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_a_checkpoint_with_pickles_is_refused_and_never_unpickled(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(max_steps=2, **EVERY_STEP), train_dataset=rows)
    trainer.train()
    folder = trainer.output / "checkpoint-1"
    (folder / checkpoints.MANIFEST).unlink()
    torch.save({"state": Bomb()}, folder / "optimizer.pt")
    with pytest.raises(TrainingError, match="checkpoint-1: holds pickled objects, which are never loaded"):
        trainer.train(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, .* but only safetensors are read"):
        trainer.train(str(folder))


def test_all_processes_resume_where_the_first_one_does(tiny_model, arguments, rows, monkeypatch):
    """This process sees checkpoint-3, the first one does not yet: on a slow shared file system."""
    trainer = RefineTrainer(tiny_model(), arguments(max_steps=3, **EVERY_STEP), train_dataset=rows)
    trainer.train()
    first = str(trainer.output / "checkpoint-2"), 3, True
    monkeypatch.setattr(saving, "decided_by_first", lambda decide: first)
    again = RefineTrainer(tiny_model(), arguments(max_steps=3, **EVERY_STEP), train_dataset=rows)
    seen = []
    monkeypatch.setattr(Trainer, "train", lambda self, checkpoint, *args, **kwargs: seen.append(checkpoint))
    again.train(resume_from_checkpoint=True)
    assert seen == [first[0]] and again._ended_at == 3


def test_optimizers_load_in_several_processes_on_the_cpu(tiny_model, arguments, rows, monkeypatch, tmp_path):
    """transformers before 5.23 hands torch.load the device of the process, which is cpu:0 there."""
    trainer, loaded = RefineTrainer(tiny_model(), arguments(max_steps=1), train_dataset=rows), []
    torch.save({"state": torch.ones(2)}, tmp_path / "optimizer.pt")

    def load(self: Trainer, checkpoint: str) -> None:
        loaded.append(torch.load(f"{checkpoint}/optimizer.pt", map_location=self.args.device, weights_only=True))

    trainer.args.__dict__["_setup_devices"] = torch.device("cpu", 0)
    with pytest.raises(RuntimeError, match="cpu:0"):
        load(trainer, str(tmp_path))
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", load)
    trainer._load_optimizer_and_scheduler(str(tmp_path))
    assert loaded[0]["state"].tolist() == [1, 1] and trainer.args.device == torch.device("cpu", 0)


def test_a_checkpoint_of_the_other_kind_of_sharding_is_refused_in_one_line(tmp_path):
    """Else process 0 would fail to open a file, and the others wait for it."""
    with pytest.raises(TrainingError, match=r"has no pytorch_model_fsdp\.bin, .*training\.sharding: none"):
        saving._refuse_other_sharding(tmp_path, fsdp=True)
    saving._refuse_other_sharding(tmp_path, fsdp=False)
    (tmp_path / "pytorch_model_fsdp.bin").touch()
    saving._refuse_other_sharding(tmp_path, fsdp=True)
    with pytest.raises(TrainingError, match="was written with FSDP"):
        saving._refuse_other_sharding(tmp_path, fsdp=False)
