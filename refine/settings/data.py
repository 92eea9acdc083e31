"""Settings of the raw text, the tokenizer and the token sequences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from refine.settings.base import LARGEST_SEED, MOST_SAMPLES, MOST_STEPS, MOST_TOKENS, Section
from refine.settings.prompts import check_tasks


class PackageSource(Section):
    """Texts inside Python packages: the sample corpus, which needs nothing but the package registry."""

    kind: Literal["package"] = "package"
    texts: Literal["plays", "bible", "milton"] = Field(description="one of the sample's texts")
    works: tuple[str, ...] | None = Field(
        None, min_length=1, description="take only these works (ids); null takes every work that no other split names"
    )


class ExercisesSource(Section):
    """Recall exercises in a package's text: needles, and questions about invented people, with their answers. No test
    has the same keys, values or names."""

    kind: Literal["exercises"] = "exercises"
    texts: Literal["plays", "bible", "milton"] = Field(description="text around the exercises, without held-out works")
    documents: int = Field(ge=1, le=MOST_SAMPLES, description="number of exercises")
    facts_share: float = Field(0.35, ge=0, le=1, description="share of questions about invented people")
    recitals_share: float = Field(
        0.3, ge=0, le=1, description="share of texts that repeat, so nearly every token is recall; the rest are needles"
    )
    tasks: tuple[str, ...] = Field(
        (
            "niah_single_1",
            "niah_single_2",
            "niah_multikey_1",
            "niah_multikey_2",
            "niah_multivalue",
            "niah_multiquery",
        ),
        min_length=1,
        description="RULER tasks of the needle exercises",
    )
    characters: tuple[int, int] | None = Field(
        None,
        description="length of a needle prompt with its answers, from the first to the second number [characters]; "
        "null: short ones, of up to 500 words",
    )
    seed: int = Field(1, ge=0, le=LARGEST_SEED, description="seed of the exercises")

    @model_validator(mode="after")
    def _ranges(self) -> ExercisesSource:
        check_tasks(self.tasks)
        if self.characters is not None and not 300 <= self.characters[0] <= self.characters[1] <= MOST_TOKENS:
            raise ValueError(f"characters {list(self.characters)}: expected two rising numbers from 300 on")
        if self.facts_share + self.recitals_share > 1:
            raise ValueError(f"facts_share {self.facts_share} and recitals_share {self.recitals_share} exceed 1")
        return self


class _Selection(Section):
    """Which documents of a source are taken."""

    min_characters: int = Field(
        0,
        ge=0,
        le=MOST_TOKENS,
        description="skip shorter documents [characters]; 1.5 × sequence_length is a good bound",
    )
    skip: int = Field(0, ge=0, le=MOST_STEPS, description="number of long enough documents to skip first")
    documents: int | None = Field(None, ge=1, le=MOST_STEPS, description="number of documents to take; null takes all")


class _TextColumn(_Selection):
    """Which rows of a table are documents."""

    marks_column: str | None = Field(
        None,
        description="column of the characters of the text before each place that asks for what the text has told; "
        "null: no marks",
    )
    text_column: str = Field("text", description="column of the text")
    title_column: str | None = Field(
        None, description="column that names a document's work; null: each document is a work"
    )


class HubSource(_TextColumn):
    """A Hugging Face data set, or a local data-set folder (also of `save_to_disk`), streamed."""

    kind: Literal["hub"] = "hub"
    name: str = Field(min_length=1, description="name of the data set, or local folder")
    config: str | None = Field(None, description="configuration of the data set")
    split: str = Field("train", min_length=1, description="split of the data set")
    revision: str | None = Field(None, description="branch, tag or commit")


class TextSource(_Selection):
    """Text files on disk or at s3://, each of them a document."""

    kind: Literal["text"] = "text"
    path: str = Field(min_length=1, description="file, folder of .txt and .md files, or pattern; local or s3://")


class ParquetSource(_TextColumn):
    """Parquet files with a text column, on disk or at s3://, streamed."""

    kind: Literal["parquet"] = "parquet"
    path: str = Field(min_length=1, description="file, folder or pattern; local or s3://")


Source = Annotated[
    PackageSource | ExercisesSource | HubSource | ParquetSource | TextSource, Field(discriminator="kind")
]


class DataSettings(Section):
    """Sources of the raw documents of each split. No work is in two splits."""

    train: tuple[Source, ...] = Field(min_length=1, description="training text")
    validation: tuple[Source, ...] = Field(min_length=1, description="held-out text of the same kind")
    second_domain: tuple[Source, ...] = Field(min_length=1, description="held-out text of another kind")
    recall: tuple[Source, ...] = Field(
        (), description="held-out text with marks, such as exercises of another seed: its marked_loss measures recall"
    )


class TokenizerSettings(Section):
    """A BPE trained on the training text, or an existing tokenizer."""

    path: str | None = Field(
        None, description="folder or hub name of an existing tokenizer, or mistral_v1; null trains one"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub tokenizer")
    vocabulary: int = Field(4096, ge=300, le=2**24, description="size of a trained BPE [pieces]")
    single_digits: bool = Field(False, description="a trained BPE makes each digit a piece")


class DocumentsSettings(Section):
    """Token sequences of a fixed length, made within each split."""

    sequence_length: int = Field(1024, ge=2, le=MOST_TOKENS, description="length of a sequence [tokens]")
    packing: bool = Field(
        False, description="pack complete shorter training documents into rows of sequence_length; false drops them"
    )
    validation_sequences: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="sequences to keep per validation split, spread evenly over documents; null keeps all",
    )
