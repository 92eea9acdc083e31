"""The loss of a pass is its share of the step's. What `answer_loss` counts: tests/phases/test_post.py."""

from __future__ import annotations

import pytest
import torch

from refine.objective import next_sequence_step
from refine.settings.objective import ObjectiveSettings
from refine.training.dataset import Row, collate, token_rows
from refine.training.losses import pass_loss
from refine.training.statistics import Counts, counts_of

OBJECTIVE = ObjectiveSettings(positions=3, rollout_length=3, min_prefix=4)


def loss(model, batch, seeds, counts) -> float:
    return float(pass_loss(model, batch, OBJECTIVE, torch.tensor(seeds), counts).loss.detach())


def test_a_pass_on_tokens_is_a_refine_step(tiny_model, rows):
    model, batch = tiny_model(), collate([token_rows(rows)[index] for index in range(2)])
    step = next_sequence_step(model, batch["tokens"], OBJECTIVE, torch.tensor([5, 6]), lengths=batch["lengths"])
    assert loss(model, batch, [5, 6], counts_of(batch, OBJECTIVE)) == pytest.approx(float(step.loss.detach()), rel=1e-6)


@pytest.mark.parametrize("kind", ["prompts", "answers"])
def test_the_losses_of_passes_add_up_to_the_step_s(tiny_model, rows, kind):
    import numpy as np

    model = tiny_model()
    made = [Row(np.array(row["tokens"]), (len(row["tokens"]),), n, ("",), 25 + 3 * n) for n, row in enumerate(rows[:3])]
    together, parts = collate(made, kind), [collate([row], kind) for row in made]
    counts = counts_of(together, OBJECTIVE)
    assert counts == sum((counts_of(part, OBJECTIVE) for part in parts), Counts(0, 0, 0))
    apart = sum(loss(model, part, [seed], counts) for seed, part in enumerate(parts))
    assert apart == pytest.approx(loss(model, together, [0, 1, 2], counts), rel=1e-5)
