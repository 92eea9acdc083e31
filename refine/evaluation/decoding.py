"""Reads contexts of unequal lengths into a memory, scores continuations, and generates greedily.

Shape legend: R rows of a memory · T tokens of the longest row · D hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refine.ops.token_statistics import token_statistics

if TYPE_CHECKING:
    from refine.models import FastWeightLanguageModel, Memory

TOKENS_OF_A_PASS = defaultdict(lambda: 2**18, cpu=2**12)
"""By device. On a CPU, whose caches are small, four times as many take a quarter more time; on a GPU more only takes
memory."""
PIECE = 16  # tokens to generate before finished rows leave the batch


def passes(lengths: Sequence[int], rows: int, device: str) -> Iterator[list[int]]:
    """Group sequence indices into forward passes of at most `rows` sequences and a bounded number of tokens.

    Similar lengths go together, to reduce padding. A longer sequence than the bound is a pass alone.
    """
    order = sorted(range(len(lengths)), key=lambda n: lengths[n])
    taken: list[int] = []
    for n in order:
        if taken and (len(taken) == rows or (len(taken) + 1) * lengths[n] > TOKENS_OF_A_PASS[device]):
            yield taken
            taken = []
        taken.append(n)
    if taken:
        yield taken


def read_contexts(model: FastWeightLanguageModel, contexts: Sequence[Sequence[int] | Tensor]) -> tuple[Memory, Tensor]:
    """(memory of R rows, hidden state of the last token [R, D]) after reading each context."""
    from refine.models import Memory

    memories, states, order = [], [], []
    lengths = [len(context) for context in contexts]
    for numbers in passes(lengths, len(contexts), model.device.type):
        tokens = pad_sequence([torch.as_tensor(contexts[n]) for n in numbers], batch_first=True).to(model.device)
        reading = model.read(tokens, lengths=[[lengths[n]] for n in numbers])
        memories.append(reading.memory)
        states.append(torch.stack([reading.hidden[r, lengths[n] - 1] for r, n in enumerate(numbers)]))
        order += numbers
    if len(memories) == 1 and order == list(range(len(order))):
        return memories[0], states[0]
    place = sorted(range(len(order)), key=order.__getitem__)
    return Memory.cat(memories).select(place), torch.cat(states)[place]


def score_after(
    model: FastWeightLanguageModel, memory: Memory, last: Tensor, texts: Sequence[Sequence[int] | Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """(log-probability of each token [nats], whether it was the likeliest) of each row's text.

    memory: of R rows, each after its context. last [R, D]: hidden state of the last token of each context.
    """
    counts = [len(text) for text in texts]
    tokens = pad_sequence([torch.as_tensor(text) for text in texts], batch_first=True).to(model.device)  # [R, T]
    hidden = model.read(tokens, memory, lengths=[[count] for count in counts]).hidden
    before = torch.cat([torch.cat([last[r, None], hidden[r, : count - 1]]) for r, count in enumerate(counts)])
    targets = torch.cat([tokens[r, :count] for r, count in enumerate(counts)])
    found = token_statistics(before, model.get_output_embeddings().weight, targets)
    log_probs = -found.cross_entropy.double()
    return list(zip(log_probs.split(counts), found.correct.split(counts), strict=True))


def write_greedily(
    model: FastWeightLanguageModel,
    tokenizer: Any,
    memory: Memory,
    last: Tensor,
    limits: Sequence[int],
    ended: Callable[[int, str], bool],
) -> list[list[int]]:
    """The tokens that the model generates in each row; `memory` and `last` as in `score_after`.

    A row ends at the tokenizer's end token (which is left out), at its limit [tokens], or when ended(row, text so far)
    is true. `ended` is asked every 16 tokens, so up to 15 tokens may follow. Rows leave the batch as they end.
    """
    stop = [token for token in (getattr(tokenizer, "eos_token_id", None),) if token is not None]
    written: list[list[int]] = [[] for _ in limits]
    rows = list(range(len(limits)))
    while True:
        wanted = min(PIECE, max(limits[row] - len(written[row]) for row in rows))
        piece = model.continue_greedily(memory, last, wanted, stop)
        going = []
        for i, row in enumerate(rows):
            ids = piece.tokens[i, : int(piece.lengths[i])].tolist()
            stopped = ids[-1] in stop
            written[row] = (written[row] + (ids[:-1] if stopped else ids))[: limits[row]]
            if stopped or len(written[row]) >= limits[row]:
                continue
            if not ended(row, tokenizer.decode(written[row], skip_special_tokens=True)):
                going.append(i)
        if not going:
            return written
        rows = [rows[i] for i in going]
        reading = model.read(piece.tokens[going, -1:], piece.memory.select(going))
        last, memory = reading.hidden[:, 0], reading.memory
