"""Our needles and those of lm-eval's generator: the same form, the same bounds, the same score."""

from __future__ import annotations

import random
import re

import pytest

from refine.data.prompts import needles
from refine.data.prompts.needles import TASKS, make_needles
from refine.evaluation.scorers import share_found

pytest.importorskip("lm_eval")
LENGTH = 1500
ESSAY = (
    'It was late. "Who goes there?" he asked; nobody answered! The 3 ships had left (so it seemed) at dawn. '
    "Rain fell on the harbour, on the roofs, and on the men who waited. They said nothing more about it. "
) * 60
HAYSTACKS = {"noise": "repeat", "essay": "essay", "needles": "needle"}


class Tokens:
    """Pieces of words, as the attribute that lm-eval reads and the key that we read."""

    def __init__(self, text: str) -> None:
        self.input_ids = re.findall(r"\w{1,4}|[^\w\s]|\n", text)

    def __getitem__(self, name: str) -> list[str]:
        return getattr(self, name)


@pytest.fixture
def theirs(monkeypatch):
    """lm-eval's generator, with our sentences in place of nltk's, whose model is a download."""
    import nltk
    import wonderwords

    words = wonderwords.RandomWord()
    few = {name: found[:60] for name, found in words._categories.items()}  # it sorts every pair when it is imported
    monkeypatch.setattr(wonderwords, "RandomWord", lambda: type("Words", (), {"_categories": few})())
    monkeypatch.setattr(nltk, "download", lambda *a, **k: False)
    from lm_eval.tasks.ruler import niah_utils, prepare_niah

    monkeypatch.setattr(wonderwords, "RandomWord", type(words))
    monkeypatch.setattr(prepare_niah, "cached_sent_tokenize", lambda text: needles._sentences(text.split()))
    monkeypatch.setattr(prepare_niah, "tqdm", lambda rows, **k: rows)

    def generate(task: str) -> list[dict]:
        kind = TASKS[task]
        haystack = ESSAY.split() if kind.haystack == "essay" else prepare_niah.get_haystack(HAYSTACKS[kind.haystack])
        random.seed(0)
        return prepare_niah.generate_samples(
            haystack,
            Tokens,
            max_seq_length=LENGTH,
            type_haystack=HAYSTACKS[kind.haystack],
            type_needle_k=kind.key,
            type_needle_v=kind.value,
            template=niah_utils.TEMPLATE,
            num_samples=4,
            num_needle_v=kind.values,
            num_needle_k=kind.keys,
            num_needle_q=kind.queries,
        )

    return generate


NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for ([^:]+?) is: ([0-9a-f-]+)\.")


def form(prompt: str) -> tuple[str, str, str]:
    """(head, context, question) of a prompt, with keys replaced and needles taken out."""
    head, *context, question = prompt.split("\n")
    keys = {key for _, key, _ in NEEDLE.findall(prompt)}
    for key in sorted(keys, key=len, reverse=True):
        question = question.replace(key, "KEY")
    filled = " ".join(NEEDLE.sub(" ", "\n".join(context)).split())
    return head, filled, question


@pytest.mark.parametrize("task", TASKS)
def test_prompts_have_the_form_of_lm_eval_s_generator(task, theirs):
    for ours, other in zip(make_needles(task, LENGTH, 4, Tokens, ESSAY), theirs(task), strict=True):
        full = f"{other['input']} {other['gen_prefix']}"
        (head, filled, question), (their_head, their_filled, their_question) = form(ours.prompt), form(full)
        assert (head, question) == (their_head, their_question)
        assert filled.startswith(their_filled)  # the same prose or noise, and not less of it
        found, their_found = NEEDLE.findall(ours.prompt), NEEDLE.findall(full)
        assert {kind for kind, _, _ in found} == {kind for kind, _, _ in their_found} == {TASKS[task].value}
        if TASKS[task].haystack != "needles":
            assert len(found) == len(their_found)
        assert len(ours.answers) == len(other["outputs"])
        assert [len(value) for value in ours.answers] == [len(value) for value in other["outputs"]]
        assert len(Tokens(ours.prompt).input_ids) + 128 <= LENGTH


def test_our_prompts_come_nearer_to_the_length_than_lm_eval_s(theirs):
    for task in TASKS:
        ours = [len(Tokens(one.prompt).input_ids) for one in make_needles(task, LENGTH, 4, Tokens, ESSAY)]
        others = [len(Tokens(f"{one['input']} {one['gen_prefix']}").input_ids) for one in theirs(task)]
        assert min(ours) >= min(others)


def test_scores_are_those_of_lm_eval_s_ruler(theirs):
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    chance = random.Random(0)
    answers = [
        one.answers
        for task in ("niah_multivalue", "niah_single_3")
        for one in make_needles(task, LENGTH, 4, Tokens, ESSAY)
    ]
    for accepted in answers:
        for text in (
            "",
            " ".join(accepted).upper(),
            f"\n\n{accepted[0]}\x07, and",
            "".join(chance.choices("0123456789 ", k=200)),
        ):
            assert share_found(text, accepted) == string_match_all(postprocess_pred([text]), [list(accepted)])
