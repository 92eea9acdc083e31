"""What a REFINE step of LaCT gives a device to do: launches, counted on the pretended device. 48 positions add next to
none to those of 6."""

import pytest
import torch

from refine.models import from_config
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.ops.attention import stretches
from tests.fixtures.launches import Launches
from tests.fixtures.pretended_device import Watch, elsewhere, move_model

CHUNK, CHUNKS, LAYERS = 64, 6, 3
CONFIG = {
    "model_type": "lact_swiglu",
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attn_heads": 4,
    "num_lact_heads": 2,
    "lact_chunk_size": CHUNK,
    "window_size": CHUNK,
    "vocab_size": 61,
}
MANY = [j * CHUNK + 6 + 7 * i for j in range(CHUNKS) for i in range(8)]  # no rollout of 3 tokens ends a chunk
FEW = [j * CHUNK + 6 + 7 * (j * j % 5) for j in range(CHUNKS)]


@pytest.fixture
def step_launches():
    """The launches of one step with rollouts at `positions` of a document, and the step."""

    def run(positions, layers=LAYERS):
        torch.manual_seed(0)
        model = from_config({**CONFIG, "num_hidden_layers": layers})
        move_model(model)
        tokens = elsewhere(torch.arange(CHUNK * CHUNKS)[None].square() % 59)
        settings = ObjectiveSettings(positions=len(positions), rollout_length=3, min_prefix=4)
        with Watch(), Launches() as launches:
            step = next_sequence_step(
                model, tokens, settings, elsewhere(torch.tensor([3])), positions=elsewhere(torch.tensor([positions]))
            )
            step.loss.backward()
        return launches.total, step, model

    return run


def test_eight_times_as_many_positions_add_next_to_no_launch(step_launches):
    (few, *_), (many, step, _) = step_launches(FEW), step_launches(MANY)
    assert bool(step.valid.all()) and step.rewards["binary"].shape[1] == 48
    assert many <= few + 6 * LAYERS, "rows of one chunk share its state, and are laid side by side in each read"


def test_windows_one_by_one_take_more_launches_and_give_the_same_step(step_launches, monkeypatch):
    together, step, model = step_launches(MANY)
    monkeypatch.setitem(stretches.SCORES, "cuda", 0)
    alone, expected, twin = step_launches(MANY)
    assert alone - together > 3 * LAYERS * len(MANY) * 3  # three products or more a window, in each of three reads
    for name in ("loss", "log_probs", "entropy"):
        torch.testing.assert_close(getattr(step, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm(), name
