"""`refine generate`: streams, reads a long text once, asks it many times, and refuses what cannot be done."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from refine.cli.generate import generate
from refine.data.tokenizer import load_tokenizer
from refine.errors import RefineError
from refine.models import Memory, from_pretrained

MODEL = "sample/delta_net"
BOOK = "Enter the KING and his lords. The harbour is quiet, and the ships are gone. " * 40
QUESTION = "Where are the ships?"


def run(*arguments: object, **options: object):
    return CliRunner().invoke(generate, [str(one) for one in (MODEL, *arguments)], catch_exceptions=False, **options)


def test_what_is_printed_is_the_greedy_continuation():
    model, tokenizer = from_pretrained(MODEL, dtype=torch.float32).eval(), load_tokenizer(MODEL)
    reading = model.read(torch.tensor([tokenizer(QUESTION)["input_ids"]]))
    stop = [tokenizer.eos_token_id]
    written = model.continue_greedily(reading.memory.detach(), reading.hidden[:, -1].detach(), 20, stop)
    expected = tokenizer.decode(written.tokens[0, : int(written.lengths[0])], skip_special_tokens=True)
    ran = run("--prompt", QUESTION, "--tokens", 20)
    assert ran.stdout == expected + "\n"
    assert ran.stderr == ""


def test_a_saved_memory_answers_as_the_text_that_was_just_read(tmp_path):
    book, saved = tmp_path / "book.txt", tmp_path / "book.memory"
    book.write_text(BOOK)
    at_once = run("--file", book, "--prompt", QUESTION, "--prompt", "O", "--tokens", 12)
    read = run("--file", book, "--save-memory", saved, "--tokens", 0)
    asked = run("--memory", saved, "--prompt", QUESTION, "--prompt", "O", "--tokens", 12)
    tokens = len(load_tokenizer(MODEL)(BOOK)["input_ids"])
    assert f"read {tokens:,} tokens in" in at_once.stderr
    assert f"the memory of {tokens:,} tokens" in read.stderr and read.stdout == ""
    assert asked.stdout == at_once.stdout != ""
    assert run("--prompt", QUESTION, "--tokens", 12).stdout not in asked.stdout
    on = run("--memory", saved, "--file", book, "--save-memory", saved, "--tokens", 0)
    assert f"after {tokens:,} in" in on.stderr
    assert int(Memory.load(saved).positions[0]) == tokens + len(
        load_tokenizer(MODEL)(BOOK, add_special_tokens=False)["input_ids"]
    )


def test_without_a_file_the_memory_after_the_prompt_is_saved(tmp_path):
    saved = tmp_path / "m"
    run("--prompt", BOOK[:60], "--save-memory", saved, "--tokens", 1)
    assert int(Memory.load(saved).positions[0]) == len(load_tokenizer(MODEL)(BOOK[:60])["input_ids"])


def test_samples_depend_on_the_seed_and_standard_input_is_a_file():
    first = run("--file", "-", "--temperature", 1, "--tokens", 15, input=BOOK)
    assert first.stdout == run("--file", "-", "--temperature", 1, "--tokens", 15, input=BOOK).stdout
    assert first.stdout != run("--file", "-", "--temperature", 1, "--tokens", 15, "--seed", 2, input=BOOK).stdout


def test_tokens_are_printed_before_the_last_one_is_chosen(monkeypatch):
    import click

    printed: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text="", nl=True, err=False: printed.append(text))
    chosen = []

    def one_by_one(model, memory, hidden, tokens, stop=(), each=None):
        for token in load_tokenizer(MODEL)("good morning to you", add_special_tokens=False)["input_ids"]:
            each(torch.tensor([token]))
            chosen.append("".join(printed))

    monkeypatch.setattr("refine.models.language_model.continue_greedily", one_by_one)
    run("--prompt", QUESTION, "--tokens", 5)
    assert chosen[-1] == "good morning to you"
    assert chosen == sorted(set(chosen), key=len)


def test_characters_of_several_tokens_are_printed_whole():
    from refine.cli.generate import _printer

    tokenizer, text = load_tokenizer(MODEL), "né 漢字 🙂 <s> ok"
    runner = CliRunner()
    with runner.isolation() as (out, *_):
        show = _printer(tokenizer, tokenizer("before")["input_ids"])
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            show(torch.tensor([token]))
        assert out.getvalue().decode() == "né 漢字 🙂  ok"


def test_words_of_a_sentencepiece_tokenizer_keep_their_spaces(capsys):
    from refine.cli.generate import _printer

    tokenizer = load_tokenizer("mistral_v1")
    prompt, text = "The grass is", "The grass is green and the sky blue"
    ids, before = tokenizer(text)["input_ids"], tokenizer(prompt)["input_ids"]
    show = _printer(tokenizer, before)
    for token in ids[len(before) :]:
        show(torch.tensor([token]))
    assert capsys.readouterr().out == " green and the sky blue"


BAD = {
    "nothing to read": ("", "nothing to read: give the text that comes first"),
    "a memory alone": ("--memory {memory}", "holds no last token to go on from.*--prompt or --file"),
    "an empty prompt": ("--prompt=", "--prompt is empty"),
    "no such file": ("--file nowhere.txt", "nowhere.txt: no such file"),
    "an empty file": ("--file {empty}", "empty.txt: is empty"),
    "not text": ("--file {binary}", "binary.txt: not UTF-8"),
    "no such memory": ("--prompt x --memory nowhere.mem", "nowhere.mem: no such memory file"),
    "no memory": ("--prompt x --memory {binary}", "binary.txt: damaged memory file"),
    "other weights": ("--prompt x --memory {memory}", "is what a model with other weights read"),
    "no temperature": ("--prompt x --temperature nan", "--temperature nan: expected 0"),
    "a negative temperature": ("--prompt x --temperature=-1", "--temperature -1.0: expected 0"),
    "reads for nothing": ("--prompt x --tokens 0", "--tokens 0 only reads"),
    "which of two": ("--prompt x --prompt y --save-memory {new}", "--save-memory with several --prompt"),
    "a folder": ("--prompt x --save-memory {folder}", "is a folder; expected the name of a file"),
    "no such device": ("--prompt x --device cuda:99", "--device cuda:99: no such device"),
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--chat", "--file", "-"), "--chat asks each --prompt as the user's turn, and there is none"),
        (("--chat", "--prompt", "Who?"), "--chat: the tokenizer has no chat template: leave out chat"),
    ],
)
def test_chat_needs_a_prompt_and_a_template(line, message):
    with pytest.raises(RefineError, match=message):
        run(*line, input=BOOK)


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_done_is_refused_in_one_line(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"memory": "of_others.memory", "empty": "empty.txt", "binary": "binary.txt", "new": "new", "folder": "."}
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    from_pretrained(MODEL, dtype=torch.float32).fresh_memory(1).save("of_others.memory", weights="0123")
    line, message = BAD[what]
    with pytest.raises(RefineError, match=message) as caught:
        run(*line.format(**names).split())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
