"""Prompts in Qwen's chat template: the beginning of the answer stays, and the answer ends with <|im_end|>."""

from __future__ import annotations

import pytest

from refine.data.prompts.chat import ChatForm
from refine.data.prompts.encoding import encode_with_answer
from refine.data.prompts.multi_document_qa import Question, QuestionPool, make_questions
from refine.data.prompts.needles import TASKS, make_needles
from refine.data.tokenizer import load_tokenizer
from refine.errors import DataError

USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ESSAY = "It rained. They waited. Nobody spoke of it. " * 20


@pytest.mark.parametrize("task", TASKS)
def test_ruler_s_prompts_keep_the_beginning_of_their_answer(qwen_tokenizer, task):
    length, answer_tokens = 2500, 40
    chat = ChatForm(qwen_tokenizer)
    made = make_needles(task, length, 2, qwen_tokenizer, ESSAY, 7, answer_tokens, chat)
    for prompt in made:
        assert prompt.prompt.startswith(USER) and chat.holds(prompt.prompt)
        asked, answer = prompt.prompt.removeprefix(USER).split(ASSISTANT)
        assert asked.endswith("mentioned in the provided text?"), "RULER's question ends the user's turn"
        assert answer.startswith("The special magic") and answer.endswith((" is", " are"))
        assert len(qwen_tokenizer(prompt.prompt)["input_ids"]) == prompt.prompt_tokens <= length - answer_tokens
    plain = make_needles(task, length, 2, qwen_tokenizer, ESSAY, 7, answer_tokens)
    assert [one.answers for one in plain] == [one.answers for one in made], "the same draws"
    assert not chat.holds(plain[0].prompt)


@pytest.fixture
def asked(qwen_tokenizer):
    pool = QuestionPool(
        ("Ada lives in Rome. Answer: no.", "Bo is old."), (Question("Where?", ("Rome", "in Rome"), (0,)),)
    )
    [prompt] = make_questions(pool, "factsqa", 900, 1, qwen_tokenizer, 1, 8, ChatForm(qwen_tokenizer))
    return prompt


def test_the_loss_is_on_the_answer_alone_with_the_token_that_ends_it(qwen_tokenizer, asked):
    assert asked.prompt.startswith(USER) and asked.prompt.endswith(f"Question: Where?{ASSISTANT}Answer:")
    before, after = encode_with_answer(qwen_tokenizer, asked.prompt, asked.answers, "factsqa")
    assert qwen_tokenizer.decode(after) == " Rome<|im_end|>"
    assert after[-1] == qwen_tokenizer.convert_tokens_to_ids("<|im_end|>") == qwen_tokenizer.eos_token_id
    assert qwen_tokenizer.decode(before) == "<|endoftext|>" + asked.prompt
    turns = [qwen_tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>")]
    assert [before.count(one) for one in turns] == [2, 1], "the template's tokens, not their letters"


def test_a_question_without_a_beginning_is_the_whole_turn(qwen_tokenizer):
    text = ChatForm(qwen_tokenizer)("  Where?\n")
    assert text == f"{USER}Where?{ASSISTANT}"
    _, after = encode_with_answer(qwen_tokenizer, text, "Rome")
    assert qwen_tokenizer.decode(after) == "Rome<|im_end|>"


def test_a_bos_that_a_template_writes_is_not_written_twice(qwen_tokenizer):
    qwen_tokenizer.chat_template = "{{ bos_token }}" + qwen_tokenizer.chat_template
    assert ChatForm(qwen_tokenizer).before == USER


def test_the_template_is_saved_with_the_tokenizer(qwen_tokenizer, tmp_path):
    qwen_tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert ChatForm(again)("Where?") == ChatForm(qwen_tokenizer)("Where?")
    assert again("Where?")["input_ids"] == qwen_tokenizer("Where?")["input_ids"]


FAULTS = {
    "no template": (None, "the tokenizer has no chat template: leave out chat"),
    "no end": ("{{ messages[0].content }}", "ends an answer with '', and its eos_token is '<|im_end|>'"),
    "another end": (
        "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}",
        r"ends an answer with '<\|endoftext\|>', and its eos_token is '<\|im_end\|>': make",
    ),
    "twice": ("{{ messages[0].content * 2 }}", "does not write the user's text once"),
    "a refusal": ("{{ raise_exception('no users here') }}", r"refuses a question and its answer \(no users here\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_template_that_does_not_fit_is_refused_in_one_line(qwen_tokenizer, fault):
    qwen_tokenizer.chat_template, message = FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        ChatForm(qwen_tokenizer)
    assert "\n" not in str(caught.value)


def test_the_last_beginning_counts(asked):
    assert "Answer: no." in asked.prompt.split(ASSISTANT)[0], "of a passage that has the word too"
