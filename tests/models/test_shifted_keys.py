"""Keys that begin as those of the token before: what a model writes is what came after."""

from __future__ import annotations

import pytest
import torch

import refine.models
from refine.errors import SettingError
from refine.models.delta_mixer import shift_keys
from tests.models.conftest import CONFIGS, VOCABULARY


@pytest.mark.parametrize("name", ["delta_net", "gated_deltanet"])
def test_keys_are_of_the_token_before_and_queries_and_values_of_the_token(name):
    model = refine.models.from_config({**CONFIGS[name], "vocab_size": VOCABULARY})
    shift_keys(model)
    mixer = model.model.layers[0].attn
    for convolution, tap in ((mixer.q_conv1d, -1), (mixer.k_conv1d, -2), (mixer.v_conv1d, -1)):
        weight = convolution.weight[:, 0]
        assert torch.equal(weight[:, tap], torch.ones_like(weight[:, tap]))
        assert weight.abs().sum() == len(weight)


def test_a_model_without_short_convolutions_is_refused():
    model = refine.models.from_config({**CONFIGS["lact"], "vocab_size": VOCABULARY})
    with pytest.raises(SettingError, match="no short convolutions"):
        shift_keys(model)
