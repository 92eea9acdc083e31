"""The models behave as transformers' users expect: loss, labels, caches, embeddings, inputs; wrong input is named."""

import pytest
import torch
from torch.nn import functional as F

from refine.errors import ModelError


def test_the_loss_is_that_of_the_next_token_over_labelled_places(model, tokens, compare):
    text = tokens(3, 20)
    labels = text.clone()
    labels[0, :7] = -100
    output = model(text, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
    assert torch.allclose(output.loss.float(), expected, rtol=1e-5)
    counted = model(text, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    places = int((labels[:, 1:] != -100).sum())
    assert torch.allclose(counted.float() * 100 / places, expected, rtol=1e-5)


def test_a_cache_continues_where_the_last_call_ended(model, tokens, compare):
    text = tokens(2, 70)
    whole = model(text, use_cache=True)
    first = model(text[:, :66], use_cache=True)
    second = model(text[:, 66:], past_key_values=first.past_key_values, use_cache=True)
    compare.tensors(second.logits, whole.logits[:, 66:])
    compare.memories(second.past_key_values.memory, whole.past_key_values.memory)
    assert second.past_key_values.get_seq_length() == 70
    assert model(text, use_cache=False).past_key_values is None


def test_only_the_logits_asked_for_are_computed(model, tokens, compare):
    text = tokens(2, 20)
    whole = model(text).logits
    compare.tensors(model(text, logits_to_keep=3).logits, whole[:, -3:])
    compare.tensors(model(text, logits_to_keep=torch.tensor([0, 5])).logits, whole[:, [0, 5]])


def test_embeddings_may_be_given_in_place_of_tokens(model, tokens, compare):
    text = tokens(2, 20)
    compare.tensors(model(inputs_embeds=model.get_input_embeddings()(text)).logits, model(text).logits)
    with pytest.raises(ModelError, match="either input_ids or inputs_embeds"):
        model()


def test_a_tuple_comes_back_where_one_is_asked_for(model, tokens):
    text = tokens(2, 5)
    loss, logits = model(text, labels=text, return_dict=False, use_cache=False)
    assert loss.ndim == 0 and logits.shape[:2] == (2, 5)


def test_the_head_can_be_found_and_resized(name, configs, build, tokens):
    model = build(configs[name])
    assert model.get_output_embeddings() is model.lm_head
    model.resize_token_embeddings(70)
    assert model.lm_head.weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 70
    assert model(torch.tensor([[69, 3]])).logits.shape == (1, 2, 70)


BAD = {
    "a token outside the vocabulary": (
        lambda m, t: m.read(t.index_fill(1, torch.tensor([4]), 61)),
        r"token 61 at row 0, place 4.*0 \.\. 60",
    ),
    "a negative token": (lambda m, t: m(t - 100), "token -.* at row 0, place 0"),
    "an empty sequence": (lambda m, t: m.read(t[:, :0]), "2 x 0; expected at least one token"),
    "an empty batch": (lambda m, t: m.read(t[:0]), "0 x 9"),
    "a flat sequence": (lambda m, t: m.read(t[0]), "int64 of shape"),
    "32-bit tokens": (lambda m, t: m.read(t.int()), r"must be int64.*torch\.int32"),
    "lengths of too few rows": (lambda m, t: m.read(t, lengths=[[9]]), "1 rows, but tokens has 2"),
    "lengths beyond the row": (lambda m, t: m.read(t, lengths=[[9], [4, 6]]), r"lengths\[1\] is \[4, 6\].*at most 9"),
    "a document of no tokens": (lambda m, t: m.read(t, lengths=[[0], [9]]), r"lengths\[0\]"),
    "taps of another shape": (lambda m, t: m.read(t, taps=torch.tensor([1, 2])), r"shape \[2, c\]"),
    "a tap in the padding": (
        lambda m, t: m.read(t, taps=torch.tensor([[9], [4]]), lengths=[[5], [9]]),
        r"tap 9 at \[0, 0\]",
    ),
    "a mask of another shape": (lambda m, t: m(t, attention_mask=torch.ones(2, 3)), "attention_mask has shape"),
    "a mask that leaves nothing": (lambda m, t: m(t, attention_mask=torch.zeros(2, 9)), "leaves no token"),
    "attention weights": (lambda m, t: m(t, output_attentions=True), "output_attentions"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_wrong_input_is_refused_with_what_and_where(name, configs, build, tokens, what):
    call, message = BAD[what]
    with pytest.raises(ModelError, match=message) as caught:
        call(build(configs[name]), tokens(2, 9))
    assert "\n" not in str(caught.value)
