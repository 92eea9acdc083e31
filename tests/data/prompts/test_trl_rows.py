"""TRL's rows give the tokens that TRL trains on: texts joined as they are, conversations by the chat template."""

from __future__ import annotations

import copy

import pytest

from refine.data.prompts.trl_rows import encode_completion, encode_messages
from refine.data.tokenizer import load_tokenizer
from refine.errors import DataError

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASK = [{"role": "user", "content": "Who is there?"}]
REPLY = [{"role": "assistant", "content": "The king."}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("sample/delta_net")


@pytest.fixture(scope="module")
def chatting(tokenizer):
    """The tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_completion_follows_its_prompt_directly_and_ends(tokenizer):
    prompt, completion = encode_completion(tokenizer, "Who is there?", " The king.")
    assert tokenizer.decode(prompt, skip_special_tokens=True) == "Who is there?"
    assert tokenizer.decode(completion) == " The king.</s>"
    assert [*prompt, *completion[:-1]] == tokenizer("Who is there? The king.")["input_ids"]


def test_a_completion_that_would_change_the_prompt_s_last_token_is_encoded_alone(tokenizer):
    prompt, completion = encode_completion(tokenizer, "th", "e king")
    assert tokenizer.decode(prompt, skip_special_tokens=True) == "th"
    assert tokenizer.decode(completion, skip_special_tokens=True) == "e king"


def test_conversations_are_what_the_chat_template_writes(chatting):
    assert chatting.decode(encode_messages(chatting, [*ASK, *REPLY])) == "<user>Who is there?\n<assistant>The king.\n"
    prompt, completion = encode_completion(chatting, ASK, REPLY)
    assert chatting.decode(prompt) == "<user>Who is there?\n<assistant>"
    assert chatting.decode(completion) == "The king.\n"


def test_a_long_prompt_loses_its_middle_and_a_long_completion_is_refused(tokenizer):
    prompt, completion = encode_completion(tokenizer, "word " * 50, "end", max_length=20)
    assert len(prompt) + len(completion) == 20
    with pytest.raises(DataError, match=r"the completion alone has .* of max_length 4 tokens"):
        encode_completion(tokenizer, "word", "end " * 9, max_length=4)


FAULTS = {
    "no template": (lambda one, chat: encode_messages(one, ASK), "no chat template: set tokenizer.chat_template"),
    "no messages": (lambda one, chat: encode_messages(chat, []), r"expected messages.*not \[\]"),
    "no roles": (lambda one, chat: encode_messages(chat, [{"text": "x"}]), "with role and content, not {'text'"),
    "a text beside messages": (lambda one, chat: encode_completion(chat, "x", REPLY), "expected messages.*not 'x'"),
    "an empty completion": (lambda one, chat: encode_completion(one, "x", ""), "neither empty"),
    "nothing": (lambda one, chat: encode_completion(one, None, None), "expected messages.*not None"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_rows_that_are_not_in_this_form_are_refused_in_one_line(tokenizer, chatting, what):
    call, message = FAULTS[what]
    with pytest.raises(DataError, match=message) as caught:
        call(tokenizer, chatting)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_a_role_or_rewrites_the_prompt_is_named(tokenizer):
    strict, rewriting = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"chat template refuses the messages \(no system role\)"):
        encode_messages(strict, ASK)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="writes the prompt otherwise"):
        encode_completion(rewriting, ASK, REPLY)
