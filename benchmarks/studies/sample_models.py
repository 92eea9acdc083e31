"""Scores a pretrained model beside an n-gram and installs it as a shipped model: `python -m
benchmarks.studies.sample_models NAME FOLDER`, where `refine pretrain` wrote FOLDER. The model, its tokenizer,
training.json and a model card go to refine/models/sample/NAME, the loss curve to docs/sample-NAME.png.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.ngram import KneserNey
from refine import paths
from refine.data.prompts.invented_people import invented_facts
from refine.data.prompts.multi_document_qa import make_questions
from refine.data.prompts.needles import make_needles
from refine.data.raw_documents import read_documents, read_texts
from refine.data.token_sequences import load_token_sequences
from refine.data.tokenizer import load_tokenizer

NEEDLES = ("niah_single_1", "niah_single_2", "niah_multikey_1")
LENGTHS = (256, 512, 1024)
SEED, ANSWER_TOKENS = 20, 12
CARD = """---
license: apache-2.0
library_name: refine
tags: [fast-weights, {kind}]
---
# sample/{name}

A {kind} of {parameters:,} parameters that comes with REFINE for the sample experiment, the demo and the tests. Load it:
`refine.models.from_pretrained("sample/{name}")`. It shows on a laptop what {shown}. It is of no other use.

**Made by** `refine pretrain --params refine/settings/recipes/{name}.yaml --output FOLDER` (a file of the repository):
{steps:,} optimizer steps, {tokens:,} tokens, {hours:.2f} hours on {machine}.
The loss curve is in docs/sample-{name}.png and training.json.

**Data.** Shakespeare's plays without Twelfth Night, King John, Coriolanus and The Tempest (public domain), and recall
exercises made from them: needle prompts in RULER's form and questions about invented people. No test uses their keys,
values or names (`refine.data.prompts.prompt.kept_for_exercises`). **Licence**: Apache-2.0, like the project.

**Limits.** It knows the English of 1600 and the templates that it was trained on. Its context in training was 1024
tokens. Do not take its answers for knowledge.

{growth}**Scores** ({samples} prompts of each kind and length, with a seed that no experiment here uses; essays and
passages are from the four held-out plays; 95 % intervals):

{table}

**Next-token loss** on 32 held-out sequences of 1024 tokens: **{loss:.3f}** nats per token. Interpolated
Kneser-Ney n-grams of the same tokens, trained on the same plays: {ngrams}.
"""

GROWTH = """\
**Memory.** After 1,024 tokens it takes {first} KiB, after 4,096 tokens {last} KiB. The fast weights have a fixed
size; attention remembers keys and values of every token: {each:,} bytes a token in bf16.

"""


@click.command()
@click.argument("name")
@click.argument("folder", type=Path)
@click.option("--samples", default=50, show_default=True, help="Prompts of each kind and length.")
def main(name: str, folder: Path, samples: int) -> None:
    """Score FOLDER/model and install it as sample/NAME."""
    from refine.evaluation import Inputs, evaluate_model
    from refine.system.quiet import quiet_libraries

    quiet_libraries()
    tokenizer = load_tokenizer(folder / "model")
    documents = load_token_sequences(folder / "prepared" / "documents" / "validation.parquet")
    inputs = Inputs({"val": documents}, _prompts(folder, tokenizer, samples))
    found = evaluate_model(folder / "model", inputs, tokenizer, name=f"sample/{name}")
    training = json.loads((folder / "model" / "training.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    growth = _growth(folder / "model")
    ngrams = ", ".join(f"{n}-gram {loss:.3f}" for n, loss in _ngrams(folder, tokenizer, documents).items())
    card = CARD.format(
        name=name,
        kind=config["model_type"],
        hours=training["seconds"] / 3600,
        samples=samples,
        table=found.table(),
        loss=found.next_token["val"].loss,
        ngrams=ngrams,
        growth=growth,
        shown="a hybrid recalls" if growth else "fast weights recall",
        **{key: training[key] for key in ("parameters", "steps", "tokens", "machine")},
    )
    (folder / "model" / "README.md").write_text(card, encoding="utf-8")
    place = paths.SHIPPED / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "model", place)
    _draw(training, name, Path("docs") / f"sample-{name}.png")
    click.echo(card)


def _prompts(folder: Path, tokenizer: Any, samples: int) -> dict[tuple[str, int], Any]:
    held_out = list(read_texts(folder / "data" / "validation.parquet"))
    made = {
        (task, length): make_needles(task, length, samples, tokenizer, held_out, SEED, ANSWER_TOKENS)
        for task in NEEDLES
        for length in LENGTHS
    }
    people = invented_facts(held_out, samples, SEED)
    made["factsqa", 512] = make_questions(people, "factsqa", 512, samples, tokenizer, SEED, ANSWER_TOKENS)
    return made


def _growth(folder: Path) -> str:
    """What the card says on a memory that grows with the text; nothing where it has a limit."""
    import torch

    from refine.models import from_pretrained

    model = from_pretrained(folder)
    with torch.no_grad():
        first, half, last = (model.read(torch.zeros(1, n, dtype=torch.long)).memory.nbytes for n in (1024, 2048, 4096))
    if half == last:
        return ""
    return GROWTH.format(first=round(first / 1024), last=round(last / 1024), each=(last - half) // 2048)


def _ngrams(folder: Path, tokenizer: Any, documents: Any) -> dict[int, float]:
    """Loss of n-grams of the training plays on the validation sequences [nats per token]."""
    plays = [one.text for one in read_documents(folder / "data" / "train.parquet") if one.id.startswith("plays/")]
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(plays, add_special_tokens=False)
    training = [[tokenizer.bos_token_id, *one.ids] for one in encoded]
    held_out = documents["tokens"]
    return {n: KneserNey(training, n, len(tokenizer)).loss([list(row) for row in held_out]) for n in (3, 4)}


def _draw(training: dict[str, Any], name: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(
        [one["tokens"] / 1e6 for one in training["curve"]], [one["loss"] for one in training["curve"]], linewidth=1
    )
    axis.set(
        xlabel="million tokens", ylabel="next-token loss [nats]", title=f"sample/{name}: training (drill, then all)"
    )
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
