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
from refine.data import raw_documents
from refine.data import tokenizer as tokenizers
from refine.data.prompts.invented_people import invented_facts
from refine.data.prompts.multi_document_qa import make_questions
from refine.data.prompts.needles import make_needles
from refine.data.token_sequences import load as load_documents

NEEDLES = ("niah_single_1", "niah_single_2", "niah_multikey_1")
LENGTHS = (256, 512, 1024)
SEED, ANSWER_TOKENS = 20, 12
CARD = """---
license: apache-2.0
library_name: refine
tags: [fast-weights, {kind}]
---
# sample/{name}

A {kind} of {parameters:,} parameters that comes with REFINE, for its sample experiment, its demo and its tests:
`refine.models.from_pretrained("sample/{name}")`. It shows on a laptop what fast weights recall. It has no other use.

**Made by** `refine pretrain --params refine/settings/recipes/{name}.yaml --output FOLDER` (settings committed there):
{steps:,} optimizer steps, {tokens:,} tokens, {hours:.2f} hours on {machine}. Loss curve: docs/sample-{name}.png and
training.json.

**Data.** Shakespeare's plays without Twelfth Night, King John, Coriolanus and The Tempest (public domain), and recall
exercises made around them: needles in RULER's form and questions about invented people. No test draws their keys,
values or names (`refine.data.prompts.kept_apart`). **Licence**: Apache-2.0, as the project.

**Limits.** It knows English of 1600 and the templates of its training, with contexts of 1024 tokens. Do not rely on
anything it says.

**Scores** ({samples} prompts of each kind and length, drawn with a seed that no experiment here uses, essays and
passages from the four held-out plays; 95 % intervals):

{table}

**Next-token loss** on 32 held-out sequences of 1024 tokens: **{loss:.3f}** nats per token; interpolated Kneser-Ney
n-grams of the same tokens, trained on the same plays: {ngrams}.
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
    tokenizer = tokenizers.load(folder / "model")
    documents = load_documents(folder / "prepared" / "documents" / "validation.parquet")
    inputs = Inputs({"val": documents}, _prompts(folder, tokenizer, samples))
    found = evaluate_model(folder / "model", inputs, tokenizer, name=f"sample/{name}")
    training = json.loads((folder / "model" / "training.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    ngrams = ", ".join(f"{n}-gram {loss:.3f}" for n, loss in _ngrams(folder, tokenizer, documents).items())
    card = CARD.format(
        name=name,
        kind=config["model_type"],
        hours=training["seconds"] / 3600,
        samples=samples,
        table=found.table(),
        loss=found.next_token["val"].loss,
        ngrams=ngrams,
        **{key: training[key] for key in ("parameters", "steps", "tokens", "machine")},
    )
    (folder / "model" / "README.md").write_text(card, encoding="utf-8")
    place = paths.SHIPPED / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "model", place)
    _draw(training, name, Path("docs") / f"sample-{name}.png")
    click.echo(card)


def _prompts(folder: Path, tokenizer: Any, samples: int) -> dict[tuple[str, int], Any]:
    held_out = list(raw_documents.texts(folder / "data" / "validation.parquet"))
    made = {
        (task, length): make_needles(task, length, samples, tokenizer, held_out, SEED, ANSWER_TOKENS)
        for task in NEEDLES
        for length in LENGTHS
    }
    people = invented_facts(held_out, samples, SEED)
    made["factsqa", 512] = make_questions(people, "factsqa", 512, samples, tokenizer, SEED, ANSWER_TOKENS)
    return made


def _ngrams(folder: Path, tokenizer: Any, documents: Any) -> dict[int, float]:
    """Loss of n-grams of the training plays on the validation sequences [nats per token]."""
    plays = [
        text for name, text in raw_documents.documents(folder / "data" / "train.parquet") if name.startswith("plays/")
    ]
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
