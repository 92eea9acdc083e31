"""Settings of the raw text, the tokenizer, the token sequences and the test prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from refine.settings.base import Section


class PackageSource(Section):
    """Texts that Python packages carry: the sample corpus, installable wherever the package registry is."""

    kind: Literal["package"] = "package"
    texts: Literal["plays", "bible", "milton"] = Field(description="which of the sample's texts")
    works: tuple[str, ...] | None = Field(
        None, min_length=1, description="take only these works (ids); null takes all that no other split names"
    )


class ExercisesSource(Section):
    """Recall exercises around a package's texts: needles and questions about invented people, answers included, none
    of whose keys, values and names any test has."""

    kind: Literal["exercises"] = "exercises"
    texts: Literal["plays", "bible", "milton"] = Field(description="the text they are hidden in, less held-out works")
    documents: int = Field(ge=1, description="how many exercises")
    facts_share: float = Field(0.35, ge=0, le=1, description="share of questions about people")
    recitals_share: float = Field(
        0.3, ge=0, le=1, description="share of texts told over and over, nearly all recall; the rest are needles"
    )
    seed: int = Field(1, ge=0, description="seed of their draws")

    @model_validator(mode="after")
    def _shares(self) -> ExercisesSource:
        if self.facts_share + self.recitals_share > 1:
            raise ValueError(f"facts_share {self.facts_share} and recitals_share {self.recitals_share} exceed 1")
        return self


class _TextColumn(Section):
    """What sources that are tables of documents have in common."""

    text_column: str = Field("text", description="column that holds the text")
    title_column: str | None = Field(
        None, description="column that names the work a document is of; null makes each document a work of its own"
    )
    min_characters: int = Field(
        0, ge=0, description="shorter documents are passed over [characters]; 1.5 × the tokens wanted is a good bound"
    )
    skip: int = Field(0, ge=0, description="documents (long enough ones) to pass over first")


class HubSource(_TextColumn):
    """A Hugging Face data set (or a local data-set folder), streamed; long documents only."""

    kind: Literal["hub"] = "hub"
    name: str = Field(min_length=1, description="data set name or local folder")
    config: str | None = Field(None, description="configuration of the data set")
    split: str = Field("train", description="split of the data set")
    revision: str | None = Field(None, description="branch, tag or commit")
    documents: int = Field(ge=1, description="how many documents to take")


class ParquetSource(_TextColumn):
    """Parquet files with a text column, on disk or at s3://, streamed."""

    kind: Literal["parquet"] = "parquet"
    path: str = Field(min_length=1, description="file, folder or pattern; local or s3://")
    documents: int | None = Field(None, ge=1, description="how many documents to take; null takes all")


Source = Annotated[PackageSource | ExercisesSource | HubSource | ParquetSource, Field(discriminator="kind")]


class DataSettings(Section):
    """Sources of the raw documents of each split; no work is in two splits."""

    train: tuple[Source, ...] = Field(min_length=1, description="training text")
    validation: tuple[Source, ...] = Field(min_length=1, description="held-out text of the same kind")
    second_domain: tuple[Source, ...] = Field(min_length=1, description="held-out text of another kind")


class TokenizerSettings(Section):
    """A BPE trained on the training text, or a model's own tokenizer."""

    path: str | None = Field(
        None, description="folder or hub name of an existing tokenizer, or mistral_v1; null trains one"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub tokenizer")
    vocabulary: int = Field(4096, ge=300, description="pieces of a trained BPE")
    single_digits: bool = Field(False, description="a trained BPE never joins digits: numbers are read digit by digit")


class DocumentsSettings(Section):
    """Token sequences of a set length; nothing crosses a split."""

    sequence_length: int = Field(1024, ge=2, description="tokens per sequence")
    packing: bool = Field(
        False, description="lay shorter training documents whole into rows of sequence_length; false leaves them out"
    )
    validation_sequences: int | None = Field(
        None, ge=1, description="sequences kept per validation split, spread evenly over its documents; null keeps all"
    )
