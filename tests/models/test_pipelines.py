"""transformers' pipeline with a batch: prompts of different lengths are padded, and each gets its own text."""

from __future__ import annotations

import pytest
import torch
from transformers import pipeline

from refine import paths
from refine.data.tokenizer import load_tokenizer
from refine.models import from_pretrained

PROMPTS = ["But soft, what light through yonder window breaks?", "O", "The king is", "Enter ROMEO and JULIET, " * 9]


@pytest.mark.parametrize("name", paths.shipped_models())
def test_a_batch_of_prompts_of_different_lengths_gives_what_each_gives_alone(name):
    model = from_pretrained(f"sample/{name}", dtype=torch.float32).eval()
    writer = pipeline("text-generation", model, tokenizer=load_tokenizer(f"sample/{name}"), device="cpu")
    options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    alone = [writer(prompt, **options)[0]["generated_text"] for prompt in PROMPTS]
    assert [one[0]["generated_text"] for one in writer(PROMPTS, batch_size=4, **options)] == alone
    assert len(set(alone)) > 1


def test_transformers_finds_the_padding_token_of_a_shipped_model():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(paths.model("sample/delta_net")))
    padded = tokenizer(PROMPTS[:2], padding=True)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("</s>", "left")
    assert padded["attention_mask"][1][-2:] == [1, 1]
    assert padded["attention_mask"][1][0] == 0
