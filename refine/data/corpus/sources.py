"""Raw documents from the sources in params.yaml, in one schema: packages, exercises, Hugging Face data sets, parquet,
text files.

Every source is streamed: it yields its documents one by one, and only as many as the settings ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from refine.data import hub
from refine.errors import DataError, SettingError, nearest
from refine.settings.data import ExercisesSource, HubSource, PackageSource, ParquetSource, Source, TextSource
from refine.system.quiet import quiet_datasets


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read. id: unique over all splits. source: its origin. work: its book; in one split only.
    marks: the characters before each place where the text asks for what it has told."""

    id: str
    source: str
    work: str
    title: str
    text: str
    marks: tuple[int, ...] = ()


def read_source(source: Source, held: Iterable[str] = ()) -> Iterator[RawDocument]:
    """The documents of a source, in its order.

    held: works of a package that other splits name. A source without `works` leaves them out, and so do exercises.
    Raises DataError: no source, no such column, no document long enough; ServiceError: no answer from the hub or S3.
    """
    if isinstance(source, PackageSource):
        return _package(source, frozenset(held))
    if isinstance(source, ExercisesSource):
        return _exercises(source, frozenset(held))
    if isinstance(source, TextSource):
        return _text(source)
    return _hub(source) if isinstance(source, HubSource) else _parquet(source)


def _text(source: TextSource) -> Iterator[RawDocument]:
    from refine.data.corpus.text_files import read_text_files

    found = (_Found(name, name, text) for name, text in read_text_files(source.path))
    return _selected(found, source, source.path, "files")


def _package(source: PackageSource, held: frozenset[str]) -> Iterator[RawDocument]:
    from refine.data.corpus import packages

    works = {work.work: work for work in packages.works(source.texts)}
    for name in source.works or ():
        if name not in works:
            raise SettingError(
                f"data: {source.texts} has no work {name!r}{nearest(name, works)}; there are {', '.join(works)}"
            )
    origin = packages.version(source.texts)
    for name in source.works or [name for name in works if name not in held]:
        work = works[name]
        yield RawDocument(f"{source.texts}/{name}", origin, name, work.title, work.text)


def _exercises(source: ExercisesSource, held: frozenset[str]) -> Iterator[RawDocument]:
    from refine.data.corpus import packages
    from refine.data.prompts.recall_exercises import exercises

    texts = [work.text for work in packages.works(source.texts) if work.work not in held]
    shares = source.facts_share, source.recitals_share
    for name, text, marks in exercises(texts, source.documents, source.seed, *shares, source.tasks, source.characters):
        own = f"exercises of seed {source.seed}"
        yield RawDocument(f"exercises/{source.seed}/{name}", f"exercises in {source.texts}", own, name, text, marks)


def _parquet(source: ParquetSource) -> Iterator[RawDocument]:
    from refine.data import parquet

    file_system, files = parquet.find_parquet_files(source.path)
    named = (source.text_column, source.title_column, source.marks_column)
    wanted = [column for column in named if column is not None]

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for name, file in files.items():
            _has_columns(name, parquet.columns_of(file_system, file), source)
            for number, row in enumerate(parquet.read_rows(file_system, file, wanted)):
                yield f"{name}#{number}", row

    return _selected(_texts(rows(), source), source, source.path)


def _has_columns(place: str, columns: Iterable[str], source: HubSource | ParquetSource) -> None:
    columns = list(columns)
    for setting in ("text_column", "title_column", "marks_column"):
        column = getattr(source, setting)
        if column is not None and column not in columns:
            raise DataError(
                f"{place}: no column {column!r}{nearest(column, columns)}; it has {', '.join(columns)}: "
                f"name the right one in {setting}"
            )


class _Found(NamedTuple):
    """A text before it is chosen. marks: as they stand in the column."""

    name: str
    title: str
    text: str | None
    marks: Any = None


def _texts(rows: Iterator[tuple[str, dict[str, Any]]], source: HubSource | ParquetSource) -> Iterator[_Found]:
    """The text of each row. Raises DataError: the text column holds something else."""
    for name, row in rows:
        text = row[source.text_column]
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{name}: column {source.text_column!r} holds {type(text).__name__}, not text: name another text_column"
            )
        title = str(row[source.title_column] or name) if source.title_column else name
        yield _Found(name, title, text, row[source.marks_column] if source.marks_column else None)


def _selected(
    found: Iterator[_Found], source: HubSource | ParquetSource | TextSource, place: str, what: str = "rows"
) -> Iterator[RawDocument]:
    """The documents of `found` that are long enough, without the first `skip` of them, at most `documents`.

    what: what each of `found` is, for messages."""
    skipped, taken, seen = 0, 0, 0
    for name, title, text, marks in found:
        seen += 1
        if not text or not text.strip() or len(text) < source.min_characters:
            continue
        if skipped < source.skip:
            skipped += 1
            continue
        yield RawDocument(name, place, title, title, text, _marks(marks, text, name))
        taken += 1
        if taken == source.documents:
            return
    if not taken:
        raise DataError(
            f"{place}: none of {seen} {what} is taken: min_characters is {source.min_characters}, skip is {source.skip}"
        )


def _marks(value: Any, text: str, name: str) -> tuple[int, ...]:
    """The marks of a row, ascending. Raises DataError: no list of numbers, or one without text on both sides."""
    marks = () if value is None else value
    if not isinstance(marks, list | tuple) or any(isinstance(m, bool) or not isinstance(m, int) for m in marks):
        raise DataError(f"{name}: marks are {str(value)[:40]!r}: expected a list of numbers of characters")
    if outside := [mark for mark in marks if not 0 < mark < len(text)]:
        raise DataError(f"{name}: mark {outside[0]} lies outside the text of {len(text)} characters")
    return tuple(sorted(set(marks)))


def _hub(source: HubSource) -> Iterator[RawDocument]:
    quiet_datasets()
    if not Path(source.name).is_dir() and (error := hub.access_error("data set", source.name, source.revision)):
        raise error
    stream = _in_one_line(
        source,
        lambda: _stream(source),
    )
    place = "/".join(part for part in (source.name, source.config, source.split) if part)

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        found = enumerate(iter(stream))
        while (item := _in_one_line(source, lambda: next(found, None))) is not None:
            if item[0] == 0:
                _has_columns(place, item[1], source)
            yield f"{place}#{item[0]}", item[1]

    return _selected(_texts(rows(), source), source, place)


def _stream(source: HubSource) -> Any:
    """The rows of the data set. In a local folder of .txt files a row is a file, not a line; a folder that
    `save_to_disk` wrote is read as such."""
    import datasets

    if (Path(source.name) / "dataset_dict.json").is_file() or (Path(source.name) / "state.json").is_file():
        return _saved_to_disk(source, datasets.load_from_disk(source.name))
    builder = datasets.load_dataset_builder(source.name, source.config, revision=source.revision)
    if Path(source.name).is_dir() and hasattr(builder.config, "sample_by"):
        builder.config.sample_by = "document"
    return builder.as_streaming_dataset(split=source.split)


def _saved_to_disk(source: HubSource, saved: Any) -> Any:
    """The split of a data set that `save_to_disk` wrote. Raises DataError: it has no such split."""
    if hasattr(saved, "column_names") and isinstance(saved.column_names, dict):
        splits = {str(name): part for name, part in saved.items()}
    else:  # one split, which may have lost its name
        splits = {str(saved.split or source.split): saved}
        if "split" not in source.model_fields_set:
            return saved.to_iterable_dataset()
    if source.split not in splits:
        raise DataError(
            f"{source.name}: has no split {source.split!r}{nearest(source.split, splits)}; it has {', '.join(splits)}"
        )
    return splits[source.split].to_iterable_dataset()


def _in_one_line(source: HubSource, action: Callable[[], Any]) -> Any:
    """The result of `action`. Errors of `datasets` or the hub's client become one line."""
    try:
        return action()
    except DataError:
        raise
    except Exception as error:
        raise hub.one_line_error(error, "data set", source.name, source.revision) from None
