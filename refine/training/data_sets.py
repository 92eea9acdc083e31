"""From a data set to its rows and the order they are trained in, by the trainer's arguments."""

from __future__ import annotations

import math
from typing import Any

from refine.errors import SettingError
from refine.training.arguments import RefineArguments
from refine.training.exchanges import Exchanges
from refine.training.order import NestedStream, Stream
from refine.training.sequences import Sequences, sequences_of


def rows_of(data: Any, tokenizer: Any, args: RefineArguments) -> Sequences:
    """Rows of `data`: prompts with answers, or tokens, or text. Raises DataError where it is none of these."""
    if isinstance(data, Sequences):
        return data
    columns = getattr(data, "column_names", None) or (data[0] if hasattr(data, "__getitem__") and len(data) else ())
    if "prompt" in columns and "answers" in columns:
        return Exchanges(data, tokenizer, args.max_length)
    return sequences_of(data, tokenizer, args.max_length, args.packing)


def stream_of(rows: Sequences, args: RefineArguments) -> Stream | NestedStream:
    """The order for max_steps steps, or for num_train_epochs epochs where max_steps is not given.

    Nested post-training counts max_steps in batches: each has prompt_steps steps on prompts and one on answers.
    """
    processes = max(args.world_size, 1)
    per_step = args.sequences_per_step or (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    )
    if args.max_steps >= 0:
        sequences = args.max_steps * per_step
    else:
        sequences = math.ceil(len(rows) * args.num_train_epochs)
    seed = args.data_seed if args.data_seed is not None else args.seed
    order = None if args.train_sampling_strategy == "sequential" else seed
    stream = Stream(len(rows), sequences, per_step, order, "answers" if rows.exchanges else "tokens")
    if not args.prompt_steps:
        return stream
    if not rows.exchanges:
        raise SettingError("prompt_steps is for data with the columns prompt and answers")
    if args.prompt_steps > per_step:
        raise SettingError(
            f"prompt_steps {args.prompt_steps} share out a batch of {per_step} samples: at most that many"
        )
    return NestedStream(stream, args.prompt_steps)
