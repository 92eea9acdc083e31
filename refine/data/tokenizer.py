"""Text into token ids: a BPE trained on the training text, a model's own tokenizer, or the published models' one.

Every tokenizer here is a `transformers` fast tokenizer. Each puts the bos ``<s>`` before a text, unless the caller sets
add_special_tokens=False. ``</s>`` ends an answer and is never added automatically. Any text can be encoded, and decodes
to itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refine import paths
from refine.data import hub
from refine.data.raw_documents import read_texts
from refine.errors import DataError, reason
from refine.settings.data import TokenizerSettings
from refine.system.files import folder_beside
from refine.system.quiet import quiet_logger
from refine.system.readers import read_json

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
END_OF_TEXT = "<|endoftext|>"  # between documents in the training of Qwen, OLMo and GPT
MISTRAL_V1 = "mistral_v1"
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # what transformers calls a tokenizer of no model of its own


def train_tokenizer(texts: Iterable[str], vocabulary: int, single_digits: bool = False) -> Any:
    """Train a byte-level BPE with `vocabulary` pieces: <s> is 0, </s> is 1, the 256 bytes follow, then the merges.

    single_digits: each digit is a piece, so that a model reads and recalls numbers digit by digit.

    The same texts in the same order give the same tokenizer. Its base is bytes, so no piece is unknown. Raises
    DataError if the texts have too few pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, of_bytes]) if digits else of_bytes
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise DataError(
            f"the training text gives a vocabulary of {tokenizer.get_vocab_size()}, less than tokenizer.vocabulary "
            f"({vocabulary}): ask for fewer pieces, or give more text"
        )
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Any, unknown: str | None = None) -> Any:
    """A transformers tokenizer that puts the bos before each text."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=unknown,
        pad_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def mistral_v1() -> Any:
    """The 32000-piece tokenizer of the published DeltaNet-1.3B and LaCT-760M, from the file in mistral-common.

    transformers builds it wrongly from that SentencePiece file (three tokens, or other merges and no bos), so this
    function builds it: the merges are each piece's splits into two known pieces, ranked by the piece's score.
    """
    import mistral_common
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    file = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    pieces = SentencePieceProcessor(model_file=str(file))
    names = [pieces.id_to_piece(i) for i in range(len(pieces))]
    ids = {name: i for i, name in enumerate(names)}
    merges = _merges(names, ids, [pieces.get_score(i) for i in range(len(pieces))])
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (UNKNOWN, BOS, EOS)])
    return _wrapped(tokenizer, unknown=UNKNOWN)


def _merges(names: list[str], ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The pairs that a SentencePiece BPE merges, best first: higher score, then lower ids of the parts."""
    ranked = []
    for name, score in zip(names, scores, strict=True):
        splits = ((name[:cut], name[cut:]) for cut in range(1, len(name)))
        known = sorted(((ids[left], ids[right]) for left, right in splits if left in ids and right in ids))
        ranked += [(score, pair) for pair in known]
    ranked.sort(key=lambda item: item[0], reverse=True)  # stable: pieces of one score keep their order
    return [(names[left], names[right]) for _, (left, right) in ranked]


def load_tokenizer(place: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a folder, of a model that comes with the package, of a hub model, or "mistral_v1".

    It follows `by_our_rule`. If the hub does not answer, it comes from its cache. Raises DataError: no tokenizer there,
    or not a fast one with a bos; ServiceError: the hub does not answer and the cache does not have it.
    """
    if str(place) == MISTRAL_V1:
        return mistral_v1()
    place = paths.model(place)
    local = place.is_dir()
    refused = None if local else hub.access_error("tokenizer", str(place), revision)
    try:
        with quiet_logger("transformers.configuration_utils"):  # it warns of model types that it does not know
            tokenizer = _class_of(place).from_pretrained(
                str(place), revision=revision, local_files_only=local or refused is not None, trust_remote_code=False
            )
            tokenizer("a")  # a setting of another type shows only here
    except Exception as error:
        raise refused or hub.one_line_error(error, "tokenizer", str(place), revision) from None
    return with_padding(by_our_rule(tokenizer, f"tokenizer {str(place)!r}"))


def _class_of(place: Path) -> Any:
    """The class of transformers that loads the tokenizer of a folder or hub model. AutoTokenizer finds it for any, but
    imports torch and the configurations of all models. Where they have no say, the class is in the folder."""
    import transformers

    named = place / "tokenizer_config.json"
    if named.is_file() and not ((place / "config.json").exists() and place.parent != paths.SHIPPED):
        with contextlib.suppress(DataError):
            if read_json(named, "the settings of a tokenizer").get("tokenizer_class") in GENERIC:
                return transformers.PreTrainedTokenizerFast
    return transformers.AutoTokenizer


def with_padding(tokenizer: Any) -> Any:
    """`tokenizer`, which gets a padding token if it has none, and pads on the left, where a prompt's end stays last.

    transformers' pipeline and `tokenizer(..., padding=True)` need one for prompts of different lengths. It is the end
    token, or without one the bos: the vocabulary stays, and the attention mask says what is padding.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token if tokenizer.eos_token is not None else tokenizer.bos_token
        tokenizer.padding_side = "left"
    return tokenizer


def by_our_rule(tokenizer: Any, name: str) -> Any:
    """`tokenizer` if it reads every text as its bos and all of the text's tokens; otherwise a copy that does: without
    truncation or padding (a tokenizer.json can hold both), and with the bos in front and nothing at the end.

    Everything that turns text into tokens relies on it: documents, prompts, answers, `text` rows. A tokenizer without a
    bos (Qwen's) gets the token that stands between documents in its family's training: END_OF_TEXT if it has that, else
    its eos. `name` is for messages. Raises DataError: not a fast tokenizer, or one without any of these tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{name}: expected a fast tokenizer")
    if tokenizer.bos_token_id is None:
        tokenizer = _with_bos(tokenizer, name)
    backend = tokenizer.backend_tokenizer
    if backend.truncation is None and backend.padding is None and _begins_with_bos(tokenizer):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if not _begins_with_bos(tokenizer):
        try:
            _set_post_processor(tokenizer)
        except ValueError as error:  # a bos such as " " is no piece that a template can name
            raise DataError(
                f"{name}: its bos {tokenizer.bos_token!r} cannot stand before a text ({reason(error)}): use another "
                "tokenizer"
            ) from None
    if not _begins_with_bos(tokenizer):
        raise DataError(f"{name}: reads a text as other tokens than its bos and the text's own: use another tokenizer")
    return tokenizer


def _with_bos(tokenizer: Any, name: str) -> Any:
    """A copy of a tokenizer without a bos, with the token between documents as its bos."""
    between = END_OF_TEXT if END_OF_TEXT in tokenizer.get_added_vocab() else tokenizer.eos_token
    if between is None:
        raise DataError(f"{name}: has no bos, {END_OF_TEXT} or eos token, one of which must begin every text")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = between
    return tokenizer


def _begins_with_bos(tokenizer: Any) -> bool:
    own = tokenizer("a b", add_special_tokens=False)["input_ids"]
    return tokenizer("a b")["input_ids"] == [tokenizer.bos_token_id, *own]


def _set_post_processor(tokenizer: Any) -> None:
    from tokenizers import processors

    if hasattr(tokenizer, "add_bos_token"):  # saved with the tokenizer, and obeyed when it is loaded again
        tokenizer.add_bos_token, tokenizer.add_eos_token = True, False
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, tokenizer.bos_token_id)]
    )


def prepare_tokenizer(settings: TokenizerSettings, train_documents: Path, folder: Path) -> Any:
    """Train or load the tokenizer of `settings` and save it in `folder`, whole or not at all.

    train_documents: parquet with columns id and text, read only to train. Raises as `load_tokenizer` and
    `train_tokenizer`.
    """
    if settings.path is not None:
        tokenizer = load_tokenizer(settings.path, settings.revision)
    else:
        tokenizer = train_tokenizer(read_texts(train_documents), settings.vocabulary, settings.single_digits)
    with folder_beside(folder) as beside:
        tokenizer.save_pretrained(beside)
    return tokenizer
