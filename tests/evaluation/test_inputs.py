"""Inputs are found by the contents of files, or made; every error in them is found without a model."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.prompts.chat import ChatForm
from refine.data.prompts.longbench import TASKS as LONGBENCH
from refine.data.prompts.needles import write_needles
from refine.data.prompts.prompt import Prompt, write_prompts
from refine.errors import DataError, SettingError
from refine.evaluation import Inputs, Sources, load_inputs

SEQUENCE = {"tokens": [1, 2, 3], "document": "a", "offset": 0}


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A folder that `refine prepare` made: documents, tokenizer, needles, questions for training and for tests."""
    (tmp_path / "documents").mkdir()
    for name in ("train", "second_domain", "validation"):
        pq.write_table(pa.Table.from_pylist([SEQUENCE] * 2), tmp_path / "documents" / f"{name}.parquet")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_needles(["niah_single_1"], [512, 600], 3, tokenizer, "", 1, tmp_path / "needles", answer_tokens=16)
    for name in ("factsqa_64", "factsqa_64_train"):
        write_prompts([Prompt("Who?", ("Ann",), "factsqa", 64, 8)] * 4, tmp_path / "questions" / f"{name}.parquet")
    return tmp_path


def test_everything_in_a_folder_is_taken_except_training_data(folder):
    inputs = load_inputs(folder)
    assert list(inputs.documents) == ["val", "second_domain"]
    assert {name: len(prompts) for name, prompts in inputs.prompts.items()} == {
        ("niah_single_1", 512): 3,
        ("niah_single_1", 600): 3,
        ("factsqa", 64): 4,
    }


def test_tasks_families_lengths_and_samples_narrow_it(folder):
    assert list(load_inputs(folder, ["next_token"]).prompts) == []
    assert not load_inputs(folder, ["needles"]).documents
    assert set(load_inputs(folder, ["needles", "questions"], [600, 64]).prompts) == {
        ("niah_single_1", 600),
        ("factsqa", 64),
    }
    inputs = load_inputs(folder, ["factsqa"], samples=2)
    assert len(inputs.prompts["factsqa", 64]) == 2


@pytest.mark.requires_shared
def test_published_files_are_found_as_they_are(shared_data):
    found = load_inputs(shared_data / "longbench", ["longbench"], [16384], 5).prompts
    assert set(found) == {(task, 16384) for task in ("lcc", "qasper", "samsum", "trec")}
    found = load_inputs(shared_data / "ruler", ["questions"]).prompts
    assert {name: len(prompts) for name, prompts in found.items()} == {
        ("ruler_squadqa", 4096): 200,
        ("ruler_hotpotqa", 4096): 200,
    }
    assert found["ruler_squadqa", 4096][0].answer_tokens == 32


def test_needles_are_made_at_any_length_with_the_model_s_tokenizer(folder, tokenizer):
    sources = Sources(tokenizer, lambda: ["It rained. They waited. Nobody spoke of it. " * 9], seed=7, samples=5)
    inputs = load_inputs(folder, ["niah_single_1", "niah_multikey_1"], [512, 900], sources=sources)
    made = inputs.prompts["niah_multikey_1", 900]
    assert len(made) == 5 and len(tokenizer(made[0].prompt)["input_ids"]) + 128 <= 900
    assert [p.answer_tokens for p in inputs.prompts["niah_single_1", 512]] == [16] * 3  # those of the folder


def test_needles_of_another_tokenizer_are_made_anew(folder, tokenizer):
    class Letters:
        def __call__(self, text):
            return {"input_ids": list(text)}

    sources = Sources(Letters(), samples=2)
    [prompt, _] = load_inputs(folder, ["niah_single_1"], [1200], sources=sources).prompts["niah_single_1", 1200]
    assert len(prompt.prompt) + 128 <= 1200
    shutil.rmtree(folder / "documents")
    [prompt, _] = load_inputs(folder, ["niah_single_1"], [600], sources=sources).prompts["niah_single_1", 600]
    assert prompt.prompt_tokens == len(prompt.prompt)


def test_longbench_that_the_folder_lacks_comes_from_its_source(folder, tmp_path_factory):
    own = tmp_path_factory.mktemp("longbench")
    (own / "qasper.jsonl").write_text('{"context": "c", "input": "i?", "answers": ["a"]}\n')
    sources = Sources(longbench=str(own))
    [prompt] = load_inputs(folder, ["qasper"], [2048], sources=sources).prompts["qasper", 2048]
    assert prompt.prompt == LONGBENCH["qasper"].template.format(context="c", input="i?")


def test_chat_puts_what_is_made_into_the_template_and_refuses_what_was_prepared_without(
    folder, qwen_tokenizer, tmp_path_factory
):
    shutil.rmtree(folder / "documents")
    own = tmp_path_factory.mktemp("longbench")
    (own / "qasper.jsonl").write_text('{"context": "c", "input": "i?", "answers": ["a"]}\n')
    sources = Sources(qwen_tokenizer, longbench=str(own), samples=2, chat=True)
    chat = ChatForm(qwen_tokenizer)
    inputs = load_inputs(folder, ["niah_single_1", "qasper"], [2048], sources=sources)
    assert len(inputs.prompts) == 2 and all(chat.holds(one.prompt) for many in inputs.prompts.values() for one in many)
    [prompt] = inputs.prompts["qasper", 2048]
    assert prompt.prompt == chat(LONGBENCH["qasper"].template.format(context="c", input="i?"))
    with pytest.raises(DataError, match="not in the chat template of --chat: prepare it with chat: true"):
        load_inputs(folder, ["factsqa"], sources=sources)


def test_the_fingerprint_tells_inputs_apart(folder):
    everything, less = load_inputs(folder), load_inputs(folder, samples=2)
    assert everything.fingerprint() == load_inputs(folder).fingerprint() != less.fingerprint()
    assert Inputs(documents=everything.documents).fingerprint() not in (everything.fingerprint(), less.fingerprint())


@pytest.mark.parametrize(
    ("tasks", "lengths", "error", "message"),
    [
        (["niah_singel_1"], None, SettingError, r"no task 'niah_singel_1' \(did you mean 'niah_single_1'\?\)"),
        (["needle"], None, SettingError, r"did you mean 'needles'"),
        (["factsqa"], [128], DataError, "no prompts of factsqa at length 128; it has lengths: 64"),
        (["qasper"], None, DataError, "no prompts of qasper; name lengths"),
        (["niah_multivalue"], [512], DataError, "no prompts of niah_multivalue at length 512; it has lengths: none"),
    ],
)
def test_tasks_and_lengths_that_nothing_holds_are_refused_by_name(folder, tasks, lengths, error, message):
    with pytest.raises(error, match=message):
        load_inputs(folder, tasks, lengths)


def test_a_length_below_what_a_task_needs_is_refused(folder, tokenizer):
    with pytest.raises(SettingError, match="niah_multikey_2 does not fit in 200 tokens"):
        load_inputs(folder, ["niah_multikey_2"], [200], sources=Sources(tokenizer))


def test_documents_of_another_tokenizer_are_refused(folder, tokenizer):
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="<end>")
    with pytest.raises(
        DataError, match=r"documents: made with another tokenizer \(320 pieces\) than the model's \(321\)"
    ):
        load_inputs(folder, sources=Sources(other))
    assert load_inputs(folder, ["factsqa"], sources=Sources(other)).prompts


def test_broken_files_are_named(folder):
    with pytest.raises(DataError, match="holds nothing to evaluate on"):
        load_inputs(folder / "nowhere")
    pq.write_table(pa.table({"ids": [[1]]}), folder / "documents" / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet: no column 'tokens'"):
        load_inputs(folder)
    write_prompts([Prompt("Who?", ("Ann",), "factsqa", 64, 8)], folder / "again.parquet")
    with pytest.raises(DataError, match=r"both hold factsqa at 64"):
        load_inputs(folder)
    (folder / "again.parquet").write_text("x")
    with pytest.raises(DataError, match=r"again\.parquet: not a parquet file"):
        load_inputs(folder)
    row = {"prompt": "Who?", "answers": [], "task": "factsqa", "length": 80, "answer_tokens": 8}
    schema = pa.schema(
        [
            ("prompt", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("task", pa.string()),
            ("length", pa.int32()),
            ("answer_tokens", pa.int32()),
        ]
    )
    pq.write_table(pa.Table.from_pylist([row], schema=schema), folder / "again.parquet")
    with pytest.raises(DataError, match=r"again\.parquet: row 0 has no answer"):
        load_inputs(folder, ["questions"])


def test_hidden_files_and_folders_are_no_inputs(folder):
    """What macOS writes, and what a killed `refine prepare` left."""
    before = load_inputs(folder)
    shutil.copytree(folder / "needles", folder / ".needles.0123abcd-1.x.unfinished")
    for name in ("documents/._validation.parquet", "needles/._niah_single_1_512.parquet"):
        (folder / name).write_bytes(b"no parquet")
    assert load_inputs(folder).fingerprint() == before.fingerprint()
