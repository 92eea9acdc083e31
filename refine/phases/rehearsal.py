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

from refine.errors import SettingError
from refine.phases import mid, post, start
from refine.phases.prepared_data import Prepared
from refine.settings import Settings
from refine.settings.base import validated

LENGTH = 192  # tokens of a sequence
WIDTHS = {  # small values of config.json fields, for the fields that a config has or that its type needs
    "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "num_v_heads": 2, "num_attn_heads": 2,
    "num_lact_heads": 2, "intermediate_size": 64, "lact_chunk_size": 32, "window_size": 32, "w0_w2_low_rank": 4,
}  # fmt: skip
WORDS = ["the", "sea", "and", "old", "wind", "sings", "of", "a", "king", "who", "came", "by", "night", "lost"]


def shrunk(settings: Settings) -> Settings:
    """`settings` with small values for everything that costs time, validated again.

    Raises SettingError: model.config is null, so nothing says which model to rehearse.
    """
    if settings.model.config is None:
        raise SettingError("model.config is null: a rehearsal needs the config.json fields of the checkpoint's model")
    values: dict[str, Any] = settings.model_dump(mode="json")
    config = values["model"]["config"]
    always = {"hidden_size", "num_hidden_layers", "intermediate_size"}
    small = {name: size for name, size in WIDTHS.items() if name in config or name in always}
    values["model"] = {"config": {**config, **small}}
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
    data, prompts = _made_up(small, output / "prepared")
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


def _made_up(settings: Settings, folder: Path) -> tuple[Prepared, Path]:
    """Prepared data of made-up text, with the settings' tokenizer (or a small trained one), and a file of prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from refine.data.prompts.prompt import Prompt, write_prompts
    from refine.data.tokenizer import load_tokenizer, train_tokenizer

    chance = random.Random(settings.seed)
    texts = [" ".join(chance.choices(WORDS, k=4 * LENGTH)) for _ in range(8)]
    named = settings.tokenizer.path
    pieces = train_tokenizer(texts, 300) if named is None else load_tokenizer(named, settings.tokenizer.revision)
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
    asked = [
        Prompt(
            f"{' '.join(text.split()[:40])} Where is number {number}? Answer:",
            (f"house {number}",),
            "factsqa",
            LENGTH,
            4,
        )
        for number, text in enumerate(texts)
    ]
    return Prepared(folder), write_prompts(asked, folder / "prompts.parquet")
