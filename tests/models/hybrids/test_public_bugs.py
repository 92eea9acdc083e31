"""What public trainers and servers of hybrids got wrong, each once, for every family (the threads are named)."""

import pytest
import torch

from refine.errors import ModelError
from refine.models.mixture import routers

HYBRIDS = ["qwen3_5", "qwen3_5_moe", "qwen3_next", "olmo_hybrid", "kimi_linear"]


@pytest.fixture(params=HYBRIDS)
def hybrid(request, build, configs):
    """A hybrid of each family in float64."""
    return build(configs[request.param])


def unchanged(hybrid, one, other):
    """To the last bit. In a mixture an expert's product has as many rows as tokens go to it, those of other documents
    too, and the number of rows decides how a CPU rounds; `test_no_gradient_passes...` is exact for them."""
    if routers(hybrid):
        assert float((one - other).abs().max()) < 1e-12
    else:
        assert torch.equal(one, other)


@pytest.mark.parametrize("lengths", [[13, 37], [50]], ids=str)
def test_no_gradient_passes_between_documents_or_to_later_tokens(hybrid, tokens, lengths):
    """The states of a document, or of the tokens before the 13th, do not depend on the other tokens: exactly."""
    text = tokens(1, 50) % 30
    text[:, 13:] += 30  # the second part has tokens of its own
    states = hybrid.read(text, lengths=[lengths]).hidden[0]
    parts = [(states[:13], slice(30, 61))]
    if len(lengths) == 2:
        parts.append((states[13:], slice(0, 30)))
    for part, foreign in parts:
        gradient = torch.autograd.grad(part.sum(), hybrid.get_input_embeddings().weight, retain_graph=True)[0]
        assert gradient.any() and not gradient[foreign].any()


@pytest.mark.parametrize("sizes", [(20, 30), (2, 1, 47)], ids=str)
def test_a_read_of_several_tokens_continues_states_and_convolutions(
    hybrid, tokens, compare, gradients_of, weigh, sizes
):
    """huggingface/transformers#45513; fla-org/flash-linear-attention#1140 (gradients through short pieces)."""
    text, memory, parts = tokens(2, 50), None, []
    for part in text.split(sizes, 1):
        reading = hybrid.read(part, memory)
        memory = reading.memory
        parts.append(reading.hidden)
    whole = hybrid.read(text)
    compare.tensors(torch.cat(parts, 1), whole.hidden)
    one, other = weigh(torch.cat(parts, 1)), weigh(whole.hidden)
    compare.gradients(gradients_of(hybrid, one), gradients_of(hybrid, other))


@torch.no_grad()
@pytest.mark.parametrize("name", HYBRIDS)
def test_decoding_in_bfloat16_stays_within_the_rounding_of_one_read(name, build, configs, tokens, compare):
    """huggingface/transformers#46190, #46873."""
    model, exact, text = build(configs[name], torch.bfloat16), build(configs[name]), tokens(2, 60)
    exact.load_state_dict({key: x.double() for key, x in model.state_dict().items()})
    memory, states = None, []
    for token in text.split(1, 1):
        reading = model.read(token, memory)
        memory = reading.memory
        states.append(reading.hidden)
    expected = exact.read(text).hidden
    whole = compare.distance(model.read(text).hidden, expected)
    assert compare.distance(torch.cat(states, 1), expected) < 1.5 * whole


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_padded_row_is_the_row_alone(hybrid, tokens, compare, side):
    """huggingface/transformers#46773."""
    text = tokens(1, 20)
    pad, zeros = torch.full((1, 9), 3), torch.zeros(1, 9, dtype=torch.int64)
    parts = [(pad, zeros), (text, torch.ones_like(text))]
    given, mask = (torch.cat(x, 1) for x in zip(*(parts if side == "left" else parts[::-1]), strict=True))
    padded = hybrid(given, attention_mask=mask, use_cache=True)
    where = slice(9, None) if side == "left" else slice(0, 20)
    compare.tensors(padded.logits[:, where], hybrid(text).logits)
    following = tokens(1, 1, seed=9)
    after = hybrid(following, past_key_values=padded.past_key_values).logits
    compare.tensors(after, hybrid(torch.cat([text, following], 1)).logits[:, -1:])


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 1, 12])
def test_packing_leaks_not_one_bit(hybrid, tokens, changed):
    """huggingface/transformers#46093, #44717, #44867; modelscope/ms-swift#9618, #9565."""
    text = tokens(1, 50)
    other = text.clone()
    other[0, changed] = (other[0, changed] + 1) % 61
    one, two = (hybrid.read(x, lengths=[[13, 37]]).hidden[0] for x in (text, other))
    unchanged(hybrid, one[13:], two[13:])
    assert not torch.equal(one[:13], two[:13])


@torch.no_grad()
def test_boundaries_reach_convolution_and_rule(hybrid, tokens, compare):
    """THUDM/slime#1686, verl-project/verl#6660, hiyouga/LlamaFactory#10436."""
    text = tokens(1, 90)
    packed, alone = hybrid.read(text, lengths=[[13, 77]]).hidden[0, 13:], hybrid.read(text[:, 13:]).hidden[0]
    compare.tensors(packed[:3], alone[:3], "where the convolution looks back")
    compare.tensors(packed[3:], alone[3:], "after it")


def test_gradients_of_padded_rows_are_those_of_rows_alone(hybrid, tokens, compare, gradients_of, weigh):
    """AI-Hypercomputer/maxtext#5295."""
    text, mask = tokens(2, 30), torch.ones(2, 30, dtype=torch.int64)
    mask[0, :17] = 0
    padded = hybrid(text, attention_mask=mask).logits
    one = weigh(padded[0, 17:], padded[1])
    other = weigh(hybrid(text[:1, 17:]).logits[0], hybrid(text[1:]).logits[0])
    compare.gradients(gradients_of(hybrid, one), gradients_of(hybrid, other))


@pytest.mark.parametrize("name", HYBRIDS)
def test_keys_of_zero_and_strong_decay_have_finite_gradients(name, build, configs, tokens):
    """AI-Hypercomputer/maxtext#5295; huggingface/transformers#48455."""
    model = build(configs[name], torch.float32)
    with torch.no_grad():
        mixer = model.model.layers[0].mixer
        for key, parameter in mixer.named_parameters():
            if "conv1d" in key:
                parameter.zero_()  # so that q, k and v are 0
        mixer.A_log.fill_(4)
        mixer.dt_bias.fill_(3)
    model(tokens(2, 70), labels=tokens(2, 70)).loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("place", [1, 40, 63, 64, 69])
def test_no_token_sees_a_later_one(hybrid, tokens, place):
    """fla-org/flash-linear-attention#1240, #1242."""
    text = tokens(1, 70)
    other = text.clone()
    other[0, place] = (other[0, place] + 1) % 61
    one, two = hybrid.read(text).hidden[0], hybrid.read(other).hidden[0]
    unchanged(hybrid, one[:place], two[:place])
    assert not torch.equal(one[place:], two[place:])


def test_a_cache_is_not_cropped_and_a_tap_is_the_way_back(hybrid, tokens, compare):
    """huggingface/transformers#49036."""
    text = tokens(1, 30)
    cache = hybrid(text, use_cache=True).past_key_values
    with pytest.raises(ModelError, match=r"cannot be cropped.*tap"):
        cache.crop(20)
    back = hybrid.read(text, tappable=True).tap(torch.tensor([[20]]))
    compare.tensors(hybrid.read(text[:, 20:], back).hidden, hybrid.read(text).hidden[:, 20:])


def test_gradients_pass_through_a_memory_that_several_rows_continue(hybrid, tokens, compare, gradients_of, weigh):
    """HYBRIDS: transformers' caches are overwritten in place, so a fork of one with a graph raises."""
    text, following = tokens(1, 30), tokens(3, 4, seed=8)
    forked = hybrid.read(following, hybrid.read(text).memory.repeat(3)).hidden
    expected = hybrid.read(torch.cat([text.repeat(3, 1), following], 1)).hidden[:, 30:]
    compare.gradients(gradients_of(hybrid, weigh(forked)), gradients_of(hybrid, weigh(expected)))


@pytest.mark.parametrize("name", ["qwen3_5", "olmo_hybrid with positions"])
def test_a_text_longer_than_rotary_positions_allow_is_refused(name, build, configs, tokens):
    positions = {"max_position_embeddings": 20}
    if name != "qwen3_5":
        positions["rope_parameters"] = None
    model = build({**configs[name.split()[0]], **positions}, torch.float32)
    memory = model.read(tokens(2, 15)).memory
    for read in (
        lambda: model.read(tokens(2, 21)),
        lambda: model.read(tokens(2, 6), memory),
        lambda: model(tokens(2, 21)),
    ):
        with pytest.raises(ModelError, match=r"of 21 tokens is longer than the 20 that this model's rotary"):
            read()
    assert model.read(tokens(2, 21), lengths=[[10, 11], [20]]).hidden.shape[1] == 21, "of each document alone"


def test_attention_without_positions_reads_any_length(build, configs, tokens):
    """ml-explore/mlx-lm#1023: rope_theta null is no rotation."""
    model = build({**configs["olmo_hybrid"], "max_position_embeddings": 20}, torch.float32)
    assert model.read(tokens(1, 30)).hidden.isfinite().all()
    assert build({**configs["olmo_hybrid"], "rope_parameters": None}).config.theta == 10000.0


@pytest.mark.parametrize("given", ["pixel_values", "image_grid_thw", "pixel_values_videos"])
def test_images_are_refused(hybrid, tokens, given):
    with pytest.raises(ModelError, match=f"{given} is not possible: only text"):
        hybrid(tokens(1, 5), **{given: torch.ones(1)})
