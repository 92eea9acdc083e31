"""A small byte-level tokenizer and tiny models, shared by the tests of evaluation."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import refine.models

TEXT = [
    "Some special magic numbers are hidden within the following text. Make sure to memorize it.",
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "What is the special magic number for old-ship mentioned in the provided text? It is 1234567.",
    "Answer the question based on the given passages.\n\nQuestion: Who ruled?\nAnswer: the king\n",
]


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE of 320 pieces with `<s>` and `</s>`, of which only `</s>` is ever used."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def make_model(tokenizer):
    """make_model(seed): a random DeltaNet with tokens of the tokenizer's vocabulary."""

    def make(seed: int = 0, **config):
        torch.manual_seed(seed)
        fields = {"model_type": "delta_net", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2}
        model = refine.models.from_config(fields | {"vocab_size": len(tokenizer)} | config)
        with torch.no_grad():
            model.lm_head.weight.mul_(40)  # decided answers: no ties for rounding to break
        return model.eval()

    return make


@pytest.fixture
def model(make_model):
    return make_model()
