"""fla's field `attn`: which layers attend and how; what is wrong in it is named."""

import pytest

from refine.errors import ModelError
from refine.models.attention.fla import attention_layers
from refine.models.delta.delta_net import DeltaNetConfig


def read(attn):
    return attention_layers(DeltaNetConfig(hidden_size=48, num_hidden_layers=4, num_heads=2, attn=attn))


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_without_specifications_no_layer_attends(nothing):
    assert read(nothing) == {}


def test_layers_take_the_options_of_their_specification():
    found = read([
        {"layers": [0, 2], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window_size": 5},
        {"layers": [3], "num_heads": 3, "rope_theta": 7.0},
    ])  # fmt: skip
    assert sorted(found) == [0, 2, 3] and found[0] == found[2]
    first, last = found[0], found[3]
    assert (first.heads, first.groups, first.width, first.turned, first.window) == (4, 2, 12, 12, 5)
    assert (first.bias, first.output_bias, first.theta) == (True, False, 10000.0)
    assert (last.heads, last.groups, last.width, last.window, last.theta) == (3, 3, 16, None, 7.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": None}, "attn.num_heads is None: expected a whole number"),
        ({"num_heads": 5}, r"attn.num_heads is 5: expected a divisor of 48"),
        ({"num_heads": 48}, r"attn.num_heads is 48: .* even width"),
        ({"num_kv_heads": 3}, r"attn.num_kv_heads is 3: expected a divisor of 4"),
        ({"window_size": 0}, "attn.window_size is 0"),
        ({"rope_theta": -1.0}, "attn.rope_theta"),
        ({"rope_theta": None}, "attn.rope_theta"),
        ({"qkv_bias": 1}, "attn.qkv_bias"),
        ({"layers": [4]}, r"attn.layers is \[4\]: expected a list of layers, 0 \.\. 3"),
        ({"layers": [1, 1]}, "layer 1 is named twice"),
        ({"layers": None}, "attn.layers"),
        ({"windowsize": 3}, r"attn.windowsize is 3: unknown.*'window_size'"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ModelError, match=message) as caught:
        read({"layers": [1], "num_heads": 4, **change})
    assert "\n" not in str(caught.value)


def test_specifications_that_are_no_fields_are_refused():
    with pytest.raises(ModelError, match="attn is 'all'"):
        read("all")
