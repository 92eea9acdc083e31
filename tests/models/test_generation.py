"""Continuations from a memory: greedy, sampled, and through transformers' generate."""

import pytest
import torch

from refine.errors import ModelError


def _by_rereading(model, prompt, steps):
    for _ in range(steps):
        token = model.logits(model.read(prompt).hidden[:, -1]).argmax(-1)
        prompt = torch.cat([prompt, token[:, None]], 1)
    return prompt[:, -steps:]


def test_greedy_continuation_is_that_of_reading_everything_again(model, tokens):
    prompt = tokens(3, 60)
    reading = model.read(prompt)
    written = model.continue_greedily(reading.memory, reading.hidden[:, -1], 9)
    assert torch.equal(written.tokens, _by_rereading(model, prompt, 9))
    assert written.lengths.tolist() == [9, 9, 9]
    assert written.memory.positions.tolist() == [68] * 3


def test_a_row_stops_at_its_own_stop_token(model, tokens):
    reading = model.read(tokens(3, 20))
    free = model.continue_greedily(reading.memory, reading.hidden[:, -1], 6)
    stop = int(free.tokens[0, 2])
    ended = model.continue_greedily(reading.memory, reading.hidden[:, -1], 6, stop=[stop])
    for row in range(3):
        hits = (free.tokens[row] == stop).nonzero()
        length = int(hits[0]) + 1 if len(hits) else 6
        assert int(ended.lengths[row]) == length
        assert torch.equal(ended.tokens[row, :length], free.tokens[row, :length])
        assert (ended.tokens[row, length:] == stop).all()


def test_log_probs_and_states_are_those_of_reading_the_same_tokens(model, tokens, compare):
    reading = model.read(tokens(4, 30))
    seeds = torch.tensor([5, 6, 7, 8])
    written = model.continue_sampled(reading.memory, reading.hidden[:, -1], 5, seeds, temperature=0.7)
    again = model.read(written.tokens, reading.memory)
    states = torch.cat([reading.hidden[:, -1:], again.hidden[:, :-1]], 1)
    compare.tensors(written.hidden, states)
    scores = torch.log_softmax(model.logits(states) / 0.7, -1)
    compare.tensors(written.log_probs, scores.gather(-1, written.tokens[..., None])[..., 0])


def test_a_rows_draws_depend_on_its_seed_alone(model, tokens):
    reading = model.read(tokens(4, 30))
    seeds = torch.tensor([5, 6, 7, 8])
    together = model.continue_sampled(reading.memory, reading.hidden[:, -1], 6, seeds).tokens
    order = [2, 0]
    alone = model.continue_sampled(reading.memory.select(order), reading.hidden[order, -1], 6, seeds[order]).tokens
    assert torch.equal(alone, together[order])
    others = model.continue_sampled(reading.memory, reading.hidden[:, -1], 6, seeds + 100).tokens
    assert not torch.equal(others, together)


def test_samples_follow_the_models_distribution(name, configs, build, tokens):
    model = build(configs[name], torch.float32)
    reading = model.read(tokens(1, 30))
    rows = 20000
    hidden = reading.hidden[:, -1].expand(rows, -1)
    written = model.continue_sampled(reading.memory.repeat(rows), hidden, 1, torch.arange(rows), temperature=2.0)
    expected = torch.softmax(model.logits(reading.hidden[0, -1]) / 2.0, -1)
    counts = torch.bincount(written.tokens[:, 0], minlength=expected.shape[0]).double()
    spread = (rows * expected * (1 - expected)).sqrt().clamp(min=1)
    assert ((counts - rows * expected).abs() < 5 * spread).all()


def test_sampling_refuses_a_temperature_or_seeds_that_make_no_sense(name, configs, build, tokens):
    model = build(configs[name])
    reading = model.read(tokens(2, 3))
    with pytest.raises(ModelError, match="temperature is 0"):
        model.continue_sampled(reading.memory, reading.hidden[:, -1], 2, torch.arange(2), temperature=0)
    with pytest.raises(ModelError, match=r"seeds must be int64 of shape \[2\]"):
        model.continue_sampled(reading.memory, reading.hidden[:, -1], 2, torch.arange(3))
    with pytest.raises(ModelError, match="at least 1 token"):
        model.continue_greedily(reading.memory, reading.hidden[:, -1], 0)


def test_generate_is_the_greedy_continuation(model, tokens):
    prompt = tokens(2, 20)
    generated = model.generate(prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated[:, :20], prompt)
    assert torch.equal(generated[:, 20:], _by_rereading(model, prompt, 6))


def test_generate_with_padding_on_the_left_is_each_row_alone(model, tokens):
    lengths = [4, 66, 1]
    text, mask = torch.zeros(3, 66, dtype=torch.int64), torch.zeros(3, 66, dtype=torch.int64)
    for row, n in enumerate(lengths):
        text[row, 66 - n :], mask[row, 66 - n :] = tokens(1, n, seed=row)[0], 1
    generated = model.generate(text, attention_mask=mask, max_new_tokens=5, do_sample=False)
    for row, n in enumerate(lengths):
        assert torch.equal(generated[row : row + 1, 66:], _by_rereading(model, tokens(1, n, seed=row), 5))


@torch.no_grad()
def test_generate_searches_beams(model, tokens):
    """As a search that reads every beam again; greedy decoding may well find a likelier text."""
    prompt = tokens(2, 10)
    found = model.generate(prompt, max_new_tokens=4, num_beams=3, do_sample=False)
    for row, beams in zip(prompt, found, strict=True):
        texts, scores = row[None], torch.zeros(1, dtype=torch.float64)
        for _ in range(4):
            log_probs = model.logits(model.read(texts).hidden[:, -1]).double().log_softmax(-1)
            scores, best = (scores[:, None] + log_probs).flatten().topk(3)
            texts = torch.cat([texts[best // log_probs.shape[1]], best[:, None] % log_probs.shape[1]], 1)
        assert torch.equal(beams, texts[0])


def test_generate_continues_from_a_cache(model, tokens):
    prompt = tokens(2, 20)
    first = model(prompt[:, :15], use_cache=True)
    generated = model.generate(prompt, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated[:, 20:], _by_rereading(model, prompt, 3))


def test_each_step_is_told_as_soon_as_its_tokens_are_chosen(model, tokens):
    reading = model.read(tokens(3, 20))
    told = []
    written = model.continue_greedily(reading.memory, reading.hidden[:, -1], 5, each=told.append)
    assert torch.equal(torch.stack(told, 1), written.tokens)
    told.clear()
    seeds = torch.tensor([5, 6, 7])
    written = model.continue_sampled(reading.memory, reading.hidden[:, -1], 5, seeds, each=told.append)
    assert torch.equal(torch.stack(told, 1), written.tokens)
