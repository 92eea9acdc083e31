"""Gradient checkpointing: the same gradients, with less held between forward and backward."""

import pytest
import torch


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
    model.model.gradient_checkpointing = True
    economical, again = _held(model, lambda: model(text, labels=labels, use_cache=False))
    compare.gradients(gradients_of(model, again.loss), expected)
    assert economical < 0.4 * plain, f"{economical} of {plain} bytes"


def _peak(run):
    """The highest sum of live allocations during `run()` [bytes], whoever holds them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def test_a_whole_step_takes_less_memory(name, configs, build, tokens, with_layers):
    """Forward and backward, four layers: one layer's tensors and the inputs of the others, and not four layers'.

    Attention holds little, so a hybrid shows it with more layers.
    """
    layers = 8 if name.startswith(("qwen3", "olmo_hybrid", "kimi")) else 4
    model, text = build(with_layers(configs[name], layers), torch.float32), tokens(1, 512)

    def step():
        model.zero_grad()
        model.read(text).hidden.square().mean().backward()

    step()  # gradients are there from now on
    plain = _peak(step)
    model.model.gradient_checkpointing = True
    economical = _peak(step)
    assert economical < 0.5 * plain, f"{economical} of {plain} bytes"


def test_a_tappable_read_stays_economical(model, tokens):
    text = tokens(1, 1024)
    plain, _ = _held(model, lambda: model.read(text, tappable=True))
    model.model.gradient_checkpointing = True
    economical, _ = _held(model, lambda: model.read(text, tappable=True))
    assert economical < 0.4 * plain, f"{economical} of {plain} bytes"


# transformers 5.18 renamed the switch; the old name works in all supported releases
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("switch", ["gradient_checkpointing", "activation_checkpointing"])
def test_transformers_switch_turns_it_on_and_off(model, tokens, switch, reentrant):
    if not hasattr(model, f"{switch}_enable"):
        pytest.skip(f"this transformers has no {switch}_enable")
    getattr(model, f"{switch}_enable")({"use_reentrant": reentrant})
    assert model.model.gradient_checkpointing
    model(tokens(1, 5), labels=tokens(1, 5)).loss.backward()
    getattr(model, f"{switch}_disable")()
    assert not model.model.gradient_checkpointing
