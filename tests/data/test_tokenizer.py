"""A trained BPE, a model's own tokenizer, the published models' one: the same in all processes, and lossless."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from refine import paths
from refine.data.raw_documents import Document
from refine.data.token_sequences import cut_into_sequences
from refine.data.tokenizer import by_our_rule, load_tokenizer, mistral_v1, prepare_tokenizer, train_tokenizer
from refine.errors import DataError
from refine.settings.data import TokenizerSettings

ODD = ["", " ", "  two  spaces ", "line\n\n  indented\tend\n", "é 漢字 🙂 \u200b", "<s> as text </s>", "1234567 ★"]


@pytest.fixture(scope="module")
def mistral():
    return mistral_v1()


def _digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_trained_tokenizer_has_the_pieces_asked_for_and_bos_and_eos_in_front(small_tokenizer):
    assert len(small_tokenizer) == 320
    assert (small_tokenizer.bos_token, small_tokenizer.bos_token_id) == ("<s>", 0)
    assert (small_tokenizer.eos_token, small_tokenizer.eos_token_id) == ("</s>", 1)
    assert small_tokenizer.unk_token is None


def test_a_text_is_read_as_bos_and_its_tokens(small_tokenizer, mistral):
    for made in (small_tokenizer, mistral):
        tokens = made("In the beginning")["input_ids"]
        assert tokens[0] == made.bos_token_id and made.eos_token_id not in tokens
        assert made("In the beginning", add_special_tokens=False)["input_ids"] == tokens[1:]


@pytest.mark.parametrize("text", [text for text in ODD if "<s>" not in text])
def test_any_text_decodes_to_itself(small_tokenizer, mistral, text):
    for made in (small_tokenizer, mistral):
        assert made.decode(made(text)["input_ids"], skip_special_tokens=True) == text


def test_the_same_text_gives_the_same_tokenizer_in_another_process(parquet, tmp_path):
    text = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 20
    data = parquet("train", id=["a", "b"], text=[text, text.upper()])
    code = (
        "import sys\nfrom pathlib import Path\nfrom refine.data.tokenizer import prepare_tokenizer\n"
        "from refine.settings.data import TokenizerSettings\n"
        "prepare_tokenizer(TokenizerSettings(vocabulary=330), Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    for name, seed in (("one", "1"), ("two", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true"}
        subprocess.run([sys.executable, "-c", code, data, str(tmp_path / name)], env=environment, check=True)
    assert _digest(tmp_path / "one") == _digest(tmp_path / "two")


def test_too_little_text_for_the_vocabulary_is_an_error(parquet, tmp_path):
    data = parquet("train", id=["a"], text=["to be or not to be"])
    with pytest.raises(DataError, match=r"gives a vocabulary of \d+, less than tokenizer.vocabulary \(4096\)"):
        prepare_tokenizer(TokenizerSettings(), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_s_own_tokenizer_is_not_changed(small_tokenizer, tmp_path):
    small_tokenizer.save_pretrained(tmp_path / "model")
    chosen = TokenizerSettings(path=str(tmp_path / "model"))
    prepare_tokenizer(chosen, tmp_path / "not needed", tmp_path / "out")
    text = "In the beginning God created"
    assert load_tokenizer(tmp_path / "out")(text)["input_ids"] == small_tokenizer(text)["input_ids"]


def test_mistral_v1_survives_saving_and_loading(mistral, tmp_path):
    assert len(mistral) == 32000
    assert (mistral.bos_token_id, mistral.eos_token_id, mistral.unk_token_id) == (1, 2, 0)
    prepare_tokenizer(TokenizerSettings(path="mistral_v1"), tmp_path, tmp_path / "out")
    loaded = load_tokenizer(tmp_path / "out")
    for text in ODD:
        assert loaded(text)["input_ids"] == mistral(text)["input_ids"]


@pytest.mark.parametrize(
    "text", ["Hello world", " leading", "a  b   c", "naïve café\n\nnew\tline", "def f(x):\n    return x\n", "漢字🙂"]
)
def test_mistral_v1_agrees_with_sentencepiece(mistral, text):
    from pathlib import Path

    import mistral_common
    from sentencepiece import SentencePieceProcessor

    file = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    assert mistral(text)["input_ids"][1:] == SentencePieceProcessor(model_file=str(file)).encode(text)


@pytest.mark.requires_shared
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_mistral_v1_agrees_with_the_lengths_stored_in_the_published_files(mistral, shared_data, every):
    """Stored lengths, of prompts and of the longest accepted answer, count the bos."""

    def lengths(texts):
        return [len(encoding.ids) for encoding in mistral.backend_tokenizer.encode_batch_fast(texts)]

    rows = 0
    for path in sorted(shared_data.glob("*/*.parquet")):
        whole = pq.read_table(path)
        table = whole.take(list(range(0, len(whole), every))).to_pydict()
        assert lengths(table["prompt"]) == table["prompt_length"], path.name
        answers = table.get("answers") or table["answer"]
        assert [max(lengths(accepted)) for accepted in answers] == table["max_answer_length"], path.name
        rows += len(answers)
    assert rows * every > 1400


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=f"tokenizer '{tmp_path}'"):
        load_tokenizer(tmp_path)


def test_a_hub_name_that_cannot_be_reached_is_one_line():
    code = "from refine.data.tokenizer import load_tokenizer\nload_tokenizer('owner/model')\n"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert "ServiceError: tokenizer 'owner/model': no such folder here, and the hub cannot be reached" in last


def test_training_text_that_is_missing_or_has_no_text_column_is_named(parquet, tmp_path):
    with pytest.raises(DataError, match="is missing: run `refine data fetch` first"):
        prepare_tokenizer(TokenizerSettings(), tmp_path / "train.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="no column 'text'; it has id, body"):
        prepare_tokenizer(TokenizerSettings(), parquet("train", id=["a"], body=["b"]), tmp_path / "out")


def test_single_digits_are_never_joined_and_nothing_is_lost():
    made = train_tokenizer(["The year 1600 and 1601, 1602, 1600 again. " * 50], 270, single_digits=True)
    pieces = made.tokenize("in 1600.")
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == ["1", "6", "0", "0"]
    for text in ODD:
        assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text


def test_the_tokenizer_beside_a_model_that_transformers_does_not_know_loads_silently():
    code = "from refine.data.tokenizer import load_tokenizer\nassert len(load_tokenizer('sample/delta_net')) == 2048"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout == ""


def _with_eos(value):
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }


PADDING = {
    "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0,
    "pad_token": "</s>",
}  # fmt: skip
TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
BENT = {
    "truncation": lambda value: value.update(truncation=TRUNCATION),
    "padding": lambda value: value.update(padding=PADDING),
    "no bos": lambda value: value.update(post_processor=None),
    "eos": _with_eos,
}


@pytest.mark.parametrize("bent", BENT)
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False, "add_eos_token": True}])
def test_a_tokenizer_that_cuts_pads_or_begins_otherwise_is_brought_to_the_rule(small_tokenizer, tmp_path, bent, flags):
    folder, text = tmp_path / "bent", "In the beginning God created the heaven and the earth. " * 9
    small_tokenizer.save_pretrained(folder)
    for name, change in (("tokenizer.json", BENT[bent]), ("tokenizer_config.json", lambda value: value.update(flags))):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))
    wanted = small_tokenizer(text)["input_ids"]
    made = prepare_tokenizer(TokenizerSettings(path=str(folder)), tmp_path / "none", tmp_path / "saved")
    from transformers import AutoTokenizer

    for one in (made, load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert one(text)["input_ids"] == wanted
        assert one.backend_tokenizer.encode_batch_fast([text, "In"], add_special_tokens=False)[0].ids == wanted[1:]
        assert one.backend_tokenizer.truncation is None and one.backend_tokenizer.padding is None
    document = Document("a", text)
    (sequence, *_), (reference, *_) = ([*cut_into_sequences([document], one, 16)] for one in (made, small_tokenizer))
    assert sequence == reference


@pytest.mark.parametrize(
    ("own", "begins"),
    [({"eos_token": "</s>"}, "</s>"), ({"eos_token": "</s>", "pad_token": "<|endoftext|>"}, "<|endoftext|>")],
)
def test_a_tokenizer_without_a_bos_begins_with_what_stands_between_documents(small_tokenizer, tmp_path, own, begins):
    """Qwen's: the chat's end is its eos, and <|endoftext|> its padding token."""
    bare = type(small_tokenizer)(tokenizer_object=small_tokenizer.backend_tokenizer, **own)
    bare.save_pretrained(tmp_path / "bare")
    assert bare.bos_token is None
    made = prepare_tokenizer(TokenizerSettings(path=str(tmp_path / "bare")), tmp_path / "none", tmp_path / "saved")
    for one in (made, load_tokenizer(tmp_path / "saved"), by_our_rule(bare, "mine")):
        assert one.bos_token == begins
        assert one("the grass")["input_ids"] == [one.bos_token_id, *small_tokenizer("the grass")["input_ids"][1:]]
    assert bare.bos_token is None, "the user's own tokenizer was changed"


def test_a_tokenizer_without_any_special_token_is_refused(small_tokenizer):
    bare = type(small_tokenizer)(tokenizer_object=small_tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match=r"^mine: has no bos, <\|endoftext\|> or eos token"):
        by_our_rule(bare, "mine")


def test_a_bos_that_no_template_can_name_is_refused(small_tokenizer):
    bent = type(small_tokenizer)(tokenizer_object=small_tokenizer.backend_tokenizer, bos_token=" ")
    with pytest.raises(DataError, match="mine: its bos ' ' cannot stand before a text"):
        by_our_rule(bent, "mine")


def test_the_user_s_own_tokenizer_stays_as_it_was(small_tokenizer):
    bent = type(small_tokenizer)(tokenizer_object=small_tokenizer.backend_tokenizer, bos_token="<s>")
    bent.backend_tokenizer.enable_truncation(4)
    ruled = by_our_rule(bent, "mine")
    assert ruled is not bent and bent.backend_tokenizer.truncation["max_length"] == 4
    assert by_our_rule(ruled, "mine") is ruled


@pytest.mark.parametrize("kept", [None, "<pad>"])
def test_a_loaded_tokenizer_has_a_padding_token_and_keeps_its_own(small_tokenizer, tmp_path, kept):
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(_saved_without_padding(small_tokenizer, tmp_path, kept))
    assert saved.pad_token == kept
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == (kept or "</s>")
    assert loaded.padding_side == ("left" if kept is None else saved.padding_side)
    assert len(loaded) == len(saved)
    assert loaded("a text")["input_ids"] == small_tokenizer("a text")["input_ids"]


def _saved_without_padding(tokenizer, folder, pad):
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    values.pop("pad_token"), values.pop("padding_side", None)
    file.write_text(json.dumps(values | ({"pad_token": pad} if pad else {})))
    return folder


def test_a_prepared_or_shipped_tokenizer_is_autotokenizers_and_is_loaded_without_torch(tmp_path):
    from transformers import AutoTokenizer

    prepare_tokenizer(TokenizerSettings(path="sample/delta_net"), tmp_path / "none", tmp_path / "prepared")
    for place in (tmp_path / "prepared", *(paths.SHIPPED / name for name in paths.shipped_models())):
        ours, theirs = load_tokenizer(place), AutoTokenizer.from_pretrained(str(place), local_files_only=True)
        assert type(ours) is type(theirs) and ours.init_kwargs == {**theirs.init_kwargs, "local_files_only": True}
        assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    code = (
        "import sys; from refine.data.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]); "
        "sys.exit('torch' in sys.modules)"
    )
    for place in (str(tmp_path / "prepared"), "sample/delta_net"):
        subprocess.run([sys.executable, "-c", code, place], check=True)
