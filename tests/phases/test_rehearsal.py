"""The profiles are valid, describe the published models, and run end to end in a rehearsal."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from refine import settings
from refine.data.prompts.chat import ChatForm
from refine.errors import SettingError
from refine.phases.rehearsal import WORDS, _tokenizer, rehearse, shrunk
from refine.settings import experiment

PROFILES = Path(settings.__file__).parent / "profiles"
PAPER = ("paper-delta_net-1.3b", "paper-lact-760m")
HYBRIDS = ("olmo-hybrid-7b", "qwen3.5-0.8b")
MIXTURES = ("qwen3.5-35b-a3b", "kimi-linear-48b-a3b", "qwen3-next-80b-a3b")
NAMES = (*PAPER, *HYBRIDS, *MIXTURES)


def profile(name: str) -> experiment.Settings:
    return settings.load(PROFILES / f"{name}.yaml")


def test_every_profile_is_tested():
    assert sorted(path.stem for path in PROFILES.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_holds_the_published_settings(name):
    training = profile(name).training
    mid, post, test_time = training.mid, training.post, training.test_time or profile(PAPER[0]).training.test_time
    assert training.test_time is not None or name in ("olmo-hybrid-7b", *MIXTURES)
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


def counted(name: str, vocabulary: int) -> list[str]:
    """The figures of a hybrid's profile in docs/training.md, counted on a model without numbers."""
    import torch

    from refine.models import from_config
    from refine.models.mixture import Mixture
    from refine.training.freezing import ATTENTION

    one = profile(name)
    objective, length = one.training.mid.objective, one.documents.sequence_length
    with torch.device("meta"):
        model = from_config({**one.model.config, "vocab_size": vocabulary}).bfloat16()
    size = sum(parameter.numel() for parameter in model.parameters())
    attending = [block.mixer for block in model.model.layers if isinstance(block.mixer, ATTENTION)]
    frozen = sum(parameter.numel() for mixer in attending for parameter in mixer.parameters())
    states, table = model.fresh_memory(1).nbytes, model.get_input_embeddings().weight
    keys = sum(numbers_of_a_token(mixer) for mixer in attending) * table.element_size()
    scores = sum(length * mixer.options.heads * widths_of_a_head(mixer) for mixer in attending)
    mixtures = [module for module in model.modules() if isinstance(module, Mixture)]
    idle = sum(sum(map(torch.numel, m.experts.parameters())) * (1 - m.gate.k / m.gate.number) for m in mixtures)
    looked_up = 0 if model.config.tie_word_embeddings else table.numel()
    tokens = one.training.mid.steps * one.training.mid.sequences_per_step * length
    c, k, n = objective.positions, objective.rollout_length, objective.rollouts
    mantissa, exponent = f"{3 * (2 * (size - looked_up - idle) + scores) * tokens:.1e}".split("e+")
    return [
        f"{size / 1e6:.0f}M", f"{frozen / 1e6:.0f}M", f"{16 * size / 2**30:.1f} GiB", f"{states / 2**20:.1f} MiB",
        f"{keys / 2**10:.0f} KiB a token, {keys * length / 2**20:.0f} MiB", f"{c * n * states / 2**20:.0f} MiB",
        f"{1 + c * n * (4 * k - 1) / 3 / length:.3f}", f"{mantissa} · 10^{int(exponent)}",
    ]  # fmt: skip


def numbers_of_a_token(mixer) -> int:
    """What an attention layer remembers of a token: keys and values, or a latent and a key."""
    return mixer.width if hasattr(mixer, "width") else 2 * mixer.options.groups * mixer.options.width


def widths_of_a_head(mixer) -> int:
    """Of a key and a value together."""
    return mixer.query + mixer.options.value if hasattr(mixer, "query") else 2 * mixer.options.width


COUNTED = [
    ("qwen3.5-0.8b", 248320),
    ("olmo-hybrid-7b", 100352),
    ("qwen3.5-35b-a3b", 248320),
    ("kimi-linear-48b-a3b", 163840),
    ("qwen3-next-80b-a3b", 151936),
]


@pytest.mark.parametrize(("name", "vocabulary"), COUNTED)
def test_what_a_hybrid_s_profile_needs_is_counted(name, vocabulary, checkout):
    text = (checkout / "docs" / "training.md").read_text()
    [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == counted(name, vocabulary)


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_rehearsal_keeps_the_kinds_of_layers(name):
    whole, small = profile(name).model.config, shrunk(profile(name)).model.config
    assert small["layer_types"] == ["linear_attention"] * 3 + ["full_attention"] and small["num_hidden_layers"] == 4
    assert small["rope_parameters"] == whole["rope_parameters"]


def test_a_tokenizer_that_the_hub_does_not_give_is_replaced_and_that_is_said(monkeypatch):
    """HF_HUB_OFFLINE is set in tests. The stand-in has a chat template, where the settings ask in one."""
    lines: list[str] = []
    texts = [" ".join(random.Random(1).choices(WORDS, k=400))]
    made = _tokenizer(profile("qwen3.5-0.8b"), texts, lines.append)
    [line] = lines
    assert "tokenizer 'Qwen/Qwen3.5-0.8B': no such folder here" in line and line.endswith("stands in for it here")
    assert "\n" not in line and ChatForm(made)("Where?") == "[user] Where?</s>[assistant] "


def test_settings_that_train_a_tokenizer_get_a_small_one():
    lines: list[str] = []
    values = profile(PAPER[0])
    values = values.model_copy(update={"tokenizer": values.tokenizer.model_copy(update={"path": None})})
    made = _tokenizer(values, [" ".join(random.Random(1).choices(WORDS, k=400))], lines.append)
    assert len(made) == 280 and made.chat_template is None and not lines


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
    assert ("stands in for it" in lines[0]) is (name not in PAPER)
    told = [line.partition(":")[0] for line in lines if "stands in" not in line]
    assert told == [
        "start", "mid none", "mid sft", "mid refine", "post sft", "post nested_sft", "post nested_refine",
        "post nested_marked", "post nested_focus",
        *(f"test time {arm}" for arm in ("none", "sft", "refine") if profile(name).training.test_time is not None),
    ]  # fmt: skip
