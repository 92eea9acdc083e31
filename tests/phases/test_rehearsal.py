"""The paper's profiles are valid, describe the published models, and run end to end in a rehearsal."""

from __future__ import annotations

from pathlib import Path

import pytest

from refine import settings
from refine.errors import SettingError
from refine.phases.rehearsal import rehearse, shrunk
from refine.settings import experiment

PROFILES = Path(settings.__file__).parent / "profiles"
NAMES = ("paper-delta_net-1.3b", "paper-lact-760m")


def profile(name: str) -> experiment.Settings:
    return settings.load(PROFILES / f"{name}.yaml")


def test_every_profile_is_tested():
    assert sorted(path.stem for path in PROFILES.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_holds_the_published_settings(name):
    training = profile(name).training
    mid, post, test_time = training.mid, training.post, training.test_time
    assert (mid.learning_rate, mid.sequences_per_step, mid.schedule, mid.adam_betas) == (
        1e-6,
        32,
        "constant",
        (0.9, 0.999),
    )
    assert mid.steps * mid.sequences_per_step * profile(name).documents.sequence_length == pytest.approx(
        200e6, rel=0.01
    )
    assert (post.sequences_per_step, post.prompt_steps, post.objective.reward) == (64, 4, "hybrid")
    assert (test_time.objective.reward, test_time.objective.nsp_weight, test_time.carry_over) == ("binary", 0.4, False)
    for objective in (mid.objective, post.objective):
        assert (objective.positions, objective.rollout_length, objective.rollouts, objective.nsp_weight) == (
            8,
            5,
            1,
            0.2,
        )


@pytest.mark.parametrize(("name", "millions"), [("paper-delta_net-1.3b", 1365.68), ("paper-lact-760m", 798)])
def test_a_profile_s_config_is_the_published_model_s(name, millions):
    import torch

    from refine.models import from_config

    config = profile(name).model.config
    with torch.device("meta"):
        model = from_config({**config, "vocab_size": 32000})
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_rehearsal_keeps_all_that_could_be_wrong(name):
    """Objectives, arms, batches, precision and the model's options are those of the profile."""
    whole, small = profile(name), shrunk(profile(name))
    for phase in ("mid", "post"):
        before, after = getattr(whole.training, phase), getattr(small.training, phase)
        for kept in ("objective", "arms", "sequences_per_step", "precision", "gradient_checkpointing", "learning_rate"):
            assert getattr(before, kept) == getattr(after, kept), kept
    assert small.training.test_time == whole.training.test_time and small.tokenizer == whole.tokenizer
    assert set(whole.model.config) <= set(small.model.config)
    assert small.model.config["model_type"] == whole.model.config["model_type"]


def test_without_a_config_there_is_nothing_to_rehearse():
    values = profile(NAMES[0])
    with pytest.raises(SettingError, match=r"model\.config is null"):
        shrunk(values.model_copy(update={"model": values.model.model_copy(update={"config": None})}))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_profile_runs_end_to_end_in_a_rehearsal(name, tmp_path):
    lines: list[str] = []
    rehearse(profile(name), tmp_path, lines.append)
    assert [line.partition(":")[0] for line in lines] == [
        "start", "mid none", "mid sft", "mid refine", "post sft", "post nested_sft", "post nested_refine",
        "post nested_marked", "post nested_focus", "test time none", "test time sft", "test time refine",
    ]  # fmt: skip
