"""A reward from outside: imported by name, called with states, tokens and tokenizer, checked, and optimised."""

from __future__ import annotations

import sys

import pytest
import torch

from refine.errors import SettingError
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.objective.external_rewards import check_reward, code_of, external_reward
from refine.objective.rewards import binary, cosine

SOURCE = """
import torch

def same_tokens(hidden, actual, rollouts, text, tokenizer):
    return (rollouts == text[:, None]).to(hidden.dtype).mean(-1)

def as_lists(hidden, actual, rollouts, text, tokenizer):
    return [[float(tokenizer(one.tolist())) for one in start] for start in rollouts]

def nan(hidden, actual, rollouts, text, tokenizer):
    return torch.full(rollouts.shape[:2], float("nan"))

def too_many(hidden, actual, rollouts, text, tokenizer):
    return torch.zeros(rollouts.shape)

def text_back(hidden, actual, rollouts, text, tokenizer):
    return "good"

def raises(hidden, actual, rollouts, text, tokenizer):
    return {}["missing"]

def cosine(hidden, actual, rollouts, text, tokenizer):
    return rollouts.sum(-1)

class Judge:
    def score(self, hidden, actual, rollouts, text, tokenizer):
        return rollouts.float().mean(-1)

judge = Judge()
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module `my_rewards` on the path, imported anew."""
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    yield tmp_path / "my_rewards.py"
    sys.modules.pop("my_rewards", None)


def settings(name: str) -> ObjectiveSettings:
    return ObjectiveSettings(positions=2, rollout_length=3, rollouts=2, min_prefix=4, reward=f"my_rewards:{name}")


def test_a_step_optimises_the_reward_and_still_gives_all_others(build, draw_tokens, module):
    model, tokens, seeds = build("delta_net"), draw_tokens(2, 24), torch.tensor([1, 2])
    own = settings("same_tokens")
    found = next_sequence_step(model, tokens, own, seeds, reward=external_reward(own))
    same = next_sequence_step(model, tokens, own.model_copy(update={"reward": "binary"}), seeds)
    assert set(found.rewards) == {"cosine", "binary", "hybrid", "same_tokens"}
    assert torch.equal(found.rewards["same_tokens"], same.rewards["binary"])
    assert torch.equal(found.loss, same.loss)
    assert torch.equal(found.advantages, same.advantages)


def test_a_step_without_rollouts_has_the_reward_too(build, draw_tokens, module):
    own = settings("same_tokens")
    reward, seeds = external_reward(own), torch.tensor([1])
    found = next_sequence_step(build("delta_net"), draw_tokens(1, 3), own, seeds, reward=reward)
    assert found.rewards["same_tokens"].shape == found.rewards["cosine"].shape


def test_the_tokenizer_is_given_and_lists_are_numbers(module):
    reward = external_reward(settings("as_lists"), tokenizer=sum)
    rollouts = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    hidden = torch.zeros(1, 2, 3, 8, dtype=torch.float64)
    found = reward(hidden, hidden[:, 0], rollouts, rollouts[:, 0])
    assert found.tolist() == [[6.0, 15.0]]
    assert found.dtype == torch.float64


def test_a_method_of_an_object_can_be_named_and_a_function_given(module):
    assert external_reward(settings("judge.score")).kind == "score"

    def mine(hidden, actual, rollouts, text, tokenizer):
        return cosine(hidden, actual, rollouts, text) + binary(hidden, actual, rollouts, text)

    found = external_reward(ObjectiveSettings(), function=mine)
    assert found.kind == "mine"
    check_reward(found, ObjectiveSettings(), 64, 8)
    assert external_reward(ObjectiveSettings(reward="hybrid")) is None


FAULTS = {
    "nan": "my_rewards:nan: returned nan for a rollout; expected finite numbers",
    "too_many": r"my_rewards:too_many: returned numbers of shape \[2, 2, 3\]; expected \[R, n\] = \[2, 2\]",
    "text_back": "my_rewards:text_back: fails with",
    "raises": r"my_rewards:raises: fails with KeyError: 'missing' \(.*my_rewards.py, line 20\)",
    "cosine": "'cosine' is the name of another reward",
    "number": "my_rewards:number: is 3; expected a function",
    "absent": "my_rewards has no 'absent'",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_reward_that_cannot_be_used_is_named_before_any_work(name, module):
    with pytest.raises(SettingError, match=FAULTS[name]) as caught:
        check_reward(external_reward(settings(name)), settings(name), 64, 8)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported_is_named(module):
    with pytest.raises(SettingError, match=r"nowhere cannot be imported \(ModuleNotFoundError.*PYTHONPATH"):
        external_reward(ObjectiveSettings(reward="nowhere:f"))
    module.write_text("1 / 0\n")
    with pytest.raises(SettingError, match=r"my_rewards cannot be imported \(ZeroDivisionError"):
        external_reward(settings("same_tokens"))
    with pytest.raises(SettingError, match=r"expected a function or 'package.module:function', not 3"):
        external_reward(ObjectiveSettings(), function=3)
    with pytest.raises(SettingError, match="'<lambda>' is no name"):
        external_reward(ObjectiveSettings(), function=lambda *_: 0)


@pytest.mark.parametrize("name", ["cosin", "a b:c", "a:", ":b", "a..b:c", "os.system('x'):y", ""])
def test_a_name_that_is_neither_a_reward_nor_a_function_is_refused(name):
    from refine.settings.base import validated

    with pytest.raises(SettingError, match=r"'reward'.*is no reward.*expected 'cosine', 'binary' or 'hybrid', or a"):
        validated(ObjectiveSettings, {"reward": name})


def test_a_reward_that_is_not_loaded_is_never_ignored(build, draw_tokens, module):
    with pytest.raises(SettingError, match="is not loaded: pass reward=external_reward"):
        next_sequence_step(build("delta_net"), draw_tokens(1, 24), settings("same_tokens"), torch.tensor([1]))


def test_the_hash_of_its_code_changes_with_the_file(module):
    first = code_of(settings("judge.score"))
    assert first == code_of(settings("judge.score"))
    module.write_text(SOURCE + "\n# changed\n")
    assert code_of(settings("judge.score")) != first
    assert code_of(ObjectiveSettings()) == {}
