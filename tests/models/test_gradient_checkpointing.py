"""Gradient checkpointing: the same gradients, with less held between forward and backward."""

import pytest
import torch

# transformers 5.18 renamed the switch; the old name works in all supported releases
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def _held(model, run):
    """Bytes of distinct tensors, other than parameters, held for the backward pass of `run()`; and its result."""
    storages = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(size for size, _ in storages.values()), result


def test_the_gradients_are_the_same_and_less_is_held(model, tokens, compare, gradients_of):
    text, labels = tokens(2, 300), tokens(2, 300, seed=2)
    plain, whole = _held(model, lambda: model(text, labels=labels, use_cache=False))
    expected = gradients_of(model, whole.loss)
    model.gradient_checkpointing_enable()
    economical, again = _held(model, lambda: model(text, labels=labels, use_cache=False))
    compare.gradients(gradients_of(model, again.loss), expected)
    assert economical < 0.4 * plain, f"{economical} of {plain} bytes"


def test_a_tappable_read_stays_economical(model, tokens):
    text = tokens(1, 1024)
    plain, _ = _held(model, lambda: model.read(text, tappable=True))
    model.gradient_checkpointing_enable()
    economical, _ = _held(model, lambda: model.read(text, tappable=True))
    assert economical < 0.4 * plain, f"{economical} of {plain} bytes"


@pytest.mark.parametrize("reentrant", [True, False])
def test_transformers_switch_turns_it_on_and_off(model, tokens, reentrant):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.model.gradient_checkpointing
    model(tokens(1, 5), labels=tokens(1, 5)).loss.backward()
    model.gradient_checkpointing_disable()
    assert not model.model.gradient_checkpointing
