"""Keys that begin as those of the token before: what a model writes is what came after."""

from __future__ import annotations

import pytest
import torch

import refine.models
from refine.errors import SettingError
from refine.models.delta_mixer import shift_keys
from tests.models.conftest import CONFIGS, VOCABULARY


@pytest.mark.parametrize("name", ["delta_net", "gated_deltanet"])
def test_a_key_is_of_the_tokens_before_those_of_its_query(name):
    model = refine.models.from_config({**CONFIGS[name], "vocab_size": VOCABULARY})
    shift_keys(model)
    mixer = model.model.layers[0].attn
    q, k, v = (getattr(mixer, f"{one}_conv1d").weight[:, 0] for one in "qkv")
    for weight in (q, k, v):
        assert torch.equal(weight.sum(1), torch.ones(len(weight))) and weight.abs().sum() == len(weight)
    assert torch.equal(k[:, :-1], q[:, 1:]), "each key channel lies one token before its query's"
    assert set(q.argmax(1).tolist()) == {1, 2, 3}, "of the last three tokens"
    assert set(v.argmax(1).tolist()) == {3}, "the token itself"


def test_a_model_without_short_convolutions_is_refused():
    model = refine.models.from_config({**CONFIGS["lact"], "vocab_size": VOCABULARY})
    with pytest.raises(SettingError, match="no short convolutions"):
        shift_keys(model)
