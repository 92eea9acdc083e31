"""A training in a test: run it, and read a metric of its steps."""

from __future__ import annotations

import datasets

from refine.training.trainer import RefineTrainer


def trained(model, args, rows, **more) -> RefineTrainer:
    trainer = RefineTrainer(model, args, train_dataset=datasets.Dataset.from_list(rows), **more)
    trainer.train()
    return trainer


def logged(trainer: RefineTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]
