"""Rewards from outside are loaded and called before an experiment starts; one that cannot be used stops it."""

from __future__ import annotations

import sys
import types

import pytest

from flows.preflight import check_freeze, check_metrics, check_rewards, validated
from refine import settings
from refine.errors import SettingError
from refine.phases import mid
from refine.phases.prepared_data import Prepared
from tests.fixtures.flows import write_rows


@pytest.fixture
def training(checkout, monkeypatch):
    """The settings' training with a reward of a module in memory: name -> settings."""
    module = types.ModuleType("rewards_of_a_user")
    module.good = lambda hidden, actual, rollouts, text, tokenizer: rollouts.float().mean(-1) + 0 * len(tokenizer)
    module.good.__module__ = "rewards_of_a_user"
    module.bad = lambda hidden, actual, rollouts, text, tokenizer: rollouts
    monkeypatch.setitem(sys.modules, "rewards_of_a_user", module)

    def load(name: str):
        override = f"training.test_time.objective.reward=rewards_of_a_user:{name}"
        also = f"training.mid.objective.reward=rewards_of_a_user:{name}"
        return settings.load(checkout / "params.yaml", (override, also)).training

    return load


def test_a_good_reward_passes_and_its_metrics_are_known(training, prepared_folder):
    check_rewards(training("good"), Prepared(prepared_folder))
    assert {"val/reward/good/mean", "val/reward/good/q50", "val/reward/cosine/mean"} <= validated(
        training("good"), False
    )


def test_a_bad_one_is_named_before_anything_runs(training, prepared_folder):
    with pytest.raises(SettingError, match="rewards_of_a_user:bad: returned numbers of shape"):
        check_rewards(training("bad"), Prepared(prepared_folder))
    with pytest.raises(SettingError, match="has no 'absent'"):
        check_rewards(training("absent"), Prepared(prepared_folder))


def test_the_champion_s_metric_is_known_before_anything_runs(workplace, settings_with):
    data, by_recall = Prepared(workplace / "prepared"), {"registry": {"metric": "recall/marked_loss"}}
    with pytest.raises(SettingError, match=r"registry\.metric: no version will have a metric 'recall/marked_loss'"):
        check_metrics(settings_with(by_recall), data)
    write_rows(data.documents("recall"), {"tokens": [[1, 2, 3]]})
    with pytest.raises(SettingError, match=r"\(did you mean 'recall/loss'\?\); .* recall/loss"):
        check_metrics(settings_with(by_recall), data)
    write_rows(data.documents("recall"), {"tokens": [[1, 2, 3]], "marks": [[1]]})
    check_metrics(settings_with(by_recall), data)


@pytest.mark.parametrize("phase", ["mid", "post", "test_time"])
def test_attention_that_is_not_there_cannot_be_frozen(checkout, phase):
    def load(config):
        return settings.load(checkout / "params.yaml", (f"training.{phase}.freeze=attention", *config))

    with pytest.raises(SettingError, match=rf"training\.{phase}\.freeze is 'attention', and this delta_net has no"):
        check_freeze(load(()))
    fields = "model_type: delta_net, hidden_size: 16, num_hidden_layers: 2, num_heads: 2"
    attn = f"model.config={{{fields}, attn: {{layers: [1], num_heads: 2}}}}"
    check_freeze(load(("model.checkpoint=null", attn)))
    check_freeze(load(("model.checkpoint=someone/on-the-hub",)))


def test_the_code_of_a_reward_is_part_of_a_stage_s_identity(training):
    assert set(mid.reward_code(training("good").mid.objective)) == {"reward_code"}
    assert mid.reward_code(training("good").mid.objective.model_copy(update={"reward": "cosine"})) == {}
