"""A rehearsal runs every phase and arm of an experiment's settings on a tiny random model of the same type and on
made-up text. It finds mistakes on any machine, before anyone books a GPU.

It keeps the model's type and options, the tokenizer, batch sizes, objectives, arms, precision and schedules. It
shrinks widths, depth, lengths and the number of steps. One process trains, on the device of this machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refine.errors import ServiceError, SettingError
from refine.phases import mid, post, start
from refine.phases.prepared_data import Prepared
from refine.phases.tiny_config import tiny
from refine.settings import Settings
from refine.settings.base import validated

LENGTH = 192  # tokens of a sequence
CHAT_TEMPLATE = (  # of the tokenizer that stands in for one with a chat template
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PIECES = 280  # of a tokenizer trained on the made-up text: bytes, and a few merges of WORDS
WORDS = ["the", "sea", "and", "old", "wind", "sings", "of", "a", "king", "who", "came", "by", "night", "lost"]


def shrunk(settings: Settings) -> Settings:
    """`settings` with small values for everything that costs time, validated again.

    Raises SettingError: model.config is null, so nothing says which model to rehearse. ModelError: a field of it.
    """
    if settings.model.config is None:
        raise SettingError("model.config is null: a rehearsal needs the config.json fields of the checkpoint's model")
    values: dict[str, Any] = settings.model_dump(mode="json")
    values["model"] = {"config": tiny(values["model"]["config"])}
    values["documents"] |= {"sequence_length": LENGTH, "validation_sequences": 2}
    training = values["training"]
    training |= {"processes": 1, "sharding": "none"}
    for phase in ("start", "mid", "post"):
        if training[phase] is not None:
            training[phase] |= {"steps": 2, "checkpoint_every": 10, "evaluate_every": 10, "warmup_steps": 0}
            training[phase]["sequences_per_pass"] = 8
    training["mid"]["length"] = None if training["mid"]["length"] is None else LENGTH
    if training["post"] is not None:
        training["post"]["length"] = None if training["post"]["length"] is None else LENGTH
    return validated(Settings, values, "the rehearsal's settings")


def rehearse(settings: Settings, output: Path, say: Callable[[str], None]) -> None:
    """Run all phases of the shrunk `settings` into `output`. `say` gets one line when an arm ends."""
    small = shrunk(settings)
    data, prompts = _made_up(small, output / "prepared", say)
    record = start.plan(small, data).run(output / "start")
    say(f"start: {record['parameters']:,} parameters")
    new = str(output / "start" / "model")
    for arm in small.training.mid.arms:
        record = mid.plan(small, arm, new, data).run(output / f"mid-{arm}")
        say(f"mid {arm}: {record['steps']} steps, {record['tokens']:,} tokens")
    model = str(output / f"mid-{small.training.mid.arms[-1]}" / "model")
    if small.training.post is not None:
        for post_arm in small.training.post.arms:
            record = post.plan(small, post_arm, model, data, [prompts], [prompts]).run(output / f"post-{post_arm}")
            say(f"post {post_arm}: {record['steps']} steps, {record['tokens']:,} tokens")
    if small.training.test_time is not None:
        _answer(small, model, data, prompts, say)


def _answer(settings: Settings, name: str, data: Prepared, prompts: Path, say: Callable[[str], None]) -> None:
    """Answer two prompts in each arm of test-time training."""
    from refine.data.prompts.prompt import load_prompts
    from refine.data.tokenizer import load_tokenizer
    from refine.evaluation.answers import answer
    from refine.models import from_pretrained
    from refine.system.quiet import no_progress_bars
    from refine.training.test_time import TestTimeTrainer

    test_time = settings.training.test_time
    assert test_time is not None
    with no_progress_bars():
        model, pieces = from_pretrained(name), load_tokenizer(data.tokenizer)
    for arm in test_time.arms:
        adapter = None if arm == "none" else TestTimeTrainer(test_time, arm, settings.seed)
        answers = answer(model, pieces, load_prompts(prompts)[:2], adapter=adapter)
        say(f"test time {arm}: {len(answers)} prompts answered")


def _tokenizer(settings: Settings, texts: list[str], say: Callable[[str], None]) -> Any:
    """The settings' tokenizer; a small trained one where they name none, or where the hub does not answer, of which
    `say` gets a line."""
    from refine.data.tokenizer import load_tokenizer, train_tokenizer

    named = settings.tokenizer
    if named.path is None:
        return train_tokenizer(texts, PIECES)
    try:
        return load_tokenizer(named.path, named.revision)
    except ServiceError as error:
        say(f"{error}: a small tokenizer trained on the made-up text stands in for it here")
    stands_in = train_tokenizer(texts, PIECES)
    if settings.needles.chat or settings.questions.chat:
        stands_in.chat_template = CHAT_TEMPLATE
    return stands_in


def _made_up(settings: Settings, folder: Path, say: Callable[[str], None]) -> tuple[Prepared, Path]:
    """Prepared data of made-up text, with the settings' tokenizer (or a small trained one), and a file of prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from refine.data.prompts.chat import ChatForm
    from refine.data.prompts.multi_document_qa import ANSWER_BEGINS
    from refine.data.prompts.prompt import Prompt, write_prompts

    chance = random.Random(settings.seed)
    texts = [" ".join(chance.choices(WORDS, k=4 * LENGTH)) for _ in range(8)]
    pieces = _tokenizer(settings, texts, say)
    chat = ChatForm(pieces, "questions.chat: the tokenizer") if settings.questions.chat else None
    pieces.save_pretrained(folder / "tokenizer")
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    for split, part in (("train", texts[:6]), ("validation", texts[6:])):
        rows = [pieces(text)["input_ids"][:LENGTH] for text in part]
        table = {
            "tokens": pa.array(rows, pa.list_(pa.int32())),
            "document": [f"{split}-{number}" for number in range(len(rows))],
            "offset": pa.array([0] * len(rows), pa.int64()),
            "marks": pa.array([[LENGTH // 2, 3 * LENGTH // 4]] * len(rows), pa.list_(pa.int32())),
        }
        pq.write_table(pa.table(table), folder / "documents" / f"{split}.parquet")
    asked = []
    for number, text in enumerate(texts):
        question = f"{' '.join(text.split()[:40])} Where is number {number}? {ANSWER_BEGINS}"
        shown = question if chat is None else chat(question, ANSWER_BEGINS)
        asked.append(Prompt(shown, (f"house {number}",), "factsqa", LENGTH, 4))
    return Prepared(folder), write_prompts(asked, folder / "prompts.parquet")
