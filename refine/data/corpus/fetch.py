"""Write the raw text to data/: a parquet file for each split, the same bytes from the same sources and pinned pyarrow.

No work and no text is in two splits. The new files are compared with data.dvc before they replace data/.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refine.data.corpus import version
from refine.data.corpus.sources import RawDocument, read_source
from refine.errors import DataError
from refine.paths import visible_files
from refine.settings.data import DataSettings, ExercisesSource, PackageSource, Source
from refine.system.files import folder_beside
from refine.system.leftovers import sweep

# Held-out splits come first, so that a text in both is left out of the training text, not of the held-out text.
SPLITS = ("validation", "second_domain", "recall", "train")
COLUMNS = ("id", "source", "work", "title", "text")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
MARKED = SCHEMA.append(pa.field("marks", pa.list_(pa.int64())))  # of splits whose sources have marks
ROW_GROUP = 64  # documents written at a time; documents are long


@dataclass
class Split:
    """Counts of what was written of a split."""

    documents: int = 0
    characters: int = 0
    left_out: int = 0  # documents whose text is in an earlier split, or earlier in this one


@dataclass(frozen=True)
class Fetched:
    """What `fetch_data` did. splits: empty if data/ was up to date. recorded: whether it wrote data.dvc."""

    md5: str
    splits: dict[str, Split] = field(default_factory=dict)
    recorded: bool = False


def fetch_data(
    settings: DataSettings,
    *,
    update: bool = False,
    replace: bool = False,
    folder: Path = version.DATA,
    record: Path = version.RECORD,
    report: Callable[[str], None] = lambda line: None,
    report_progress: Callable[[str], None] = lambda line: None,
) -> Fetched:
    """Bring data/ to the version that data.dvc records; without data.dvc, or with `update`, make it that version.

    report: called with a line when a split is done. report_progress: called often, with how far a split is.
    Does nothing if data/ is already that version. Raises DataError and leaves data/ as it was: the text of the sources
    differs from data.dvc, data/ was altered by hand (unless `replace`), or a source fails.
    """
    version.require_folder(folder)
    sweep(folder.parent, only=folder.name)
    expected = version.recorded(record)
    made = {"settings": _hash(settings), "pyarrow": pa.__version__}
    found = version.of(folder) if visible_files(folder) else None
    if expected is None and found is not None and not (update or replace):
        raise DataError(
            f"{folder}/ exists but {record} does not: `refine data accept` versions the files as they are, "
            "`refine data fetch --replace` replaces them by the text of the settings' sources"
        )
    if expected is not None and found is not None and not update:
        differs = version.differences(found, expected, folder.name)
        same = expected.listed == found.md5 and made["settings"] == expected.made.get("settings", made["settings"])
        if not differs and same:
            return Fetched(found.md5)
        if differs and not replace:
            raise DataError(f"{folder}/ is not what {record} records: {', '.join(differs)}; {version.REMEDY}")
    with folder_beside(folder) as beside:
        splits = write_splits(settings, beside, report, report_progress)
        if expected is not None and not update:
            _require_same(version.of(beside), expected, made, folder.name, record)
    if expected is None or update or expected.listed != expected.md5:
        return Fetched(version.record(made, folder, record).md5, splits, recorded=True)
    return Fetched(expected.md5, splits)


def accept_data(folder: Path = version.DATA, record: Path = version.RECORD) -> str:
    """Record data/ as it is now as a new version. Returns its md5. Raises DataError if there is no data/."""
    version.require_folder(folder)
    version.of(folder)
    expected = version.recorded(record)
    return version.record(expected.made if expected else {}, folder, record).md5


def _require_same(
    built: version.Version, expected: version.Version, made: dict[str, str], name: str, record: Path
) -> None:
    differs = version.differences(built, expected, name)
    if not differs:
        return
    changed = [what for what in made if expected.made.get(what, made[what]) != made[what]]
    reason = {
        "settings": "the section `data` of the settings has changed since",
        "pyarrow": f"pyarrow is {made['pyarrow']}, not {expected.made.get('pyarrow')}: `make install` installs that",
    }
    why = "; ".join(reason[what] for what in changed) or "a source has changed"
    raise DataError(
        f"the text of the sources differs from {record}: {', '.join(differs)} ({why}); nothing was changed; "
        "`refine data fetch --update` makes it the new version"
    )


def _hash(settings: DataSettings) -> str:
    text = json.dumps(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_splits(
    settings: DataSettings,
    folder: Path,
    report: Callable[[str], None] = lambda line: None,
    report_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Split]:
    """Write `folder`/<split>.parquet for each split. Raises DataError: a work in two splits, an empty split."""
    works: dict[str, str] = {}  # work -> split
    texts: set[bytes] = set()  # fingerprints
    written = {}
    for split in SPLITS:
        if not (sources := getattr(settings, split)):
            continue
        counts = Split()
        chosen = _without_repeats(_documents(settings, split), split, works, texts, counts)
        schema = MARKED if any(map(_has_marks, sources)) else SCHEMA
        _write(_reporting(chosen, split, counts, report_progress), folder / f"{split}.parquet", schema)
        if not counts.documents:
            raise DataError(
                f"data.{split}: no document is left: the text of all {counts.left_out} is in an earlier split"
            )
        written[split] = counts
        report(_described(split, counts))
    return written


def _reporting(
    found: Iterator[RawDocument], split: str, counts: Split, report_progress: Callable[[str], None]
) -> Iterator[RawDocument]:
    for document in found:
        report_progress(_described(split, counts))
        yield document


def _described(split: str, counts: Split) -> str:
    left_out = f"; {counts.left_out} left out, their text is in an earlier split" if counts.left_out else ""
    return f"{split}: {counts.documents} documents, {counts.characters:,} characters{left_out}"


def _documents(settings: DataSettings, split: str) -> Iterator[RawDocument]:
    for source in getattr(settings, split):
        of_package = isinstance(source, PackageSource | ExercisesSource)
        held = _named_elsewhere(settings, split, source.texts) if of_package else ()
        yield from read_source(source, held)


def _named_elsewhere(settings: DataSettings, split: str, texts: str) -> set[str]:
    """The works of a package that other splits name."""
    others = [source for other in SPLITS if other != split for source in getattr(settings, other)]
    return {
        work
        for source in others
        if isinstance(source, PackageSource) and source.texts == texts
        for work in source.works or ()
    }


def _without_repeats(
    found: Iterator[RawDocument], split: str, works: dict[str, str], texts: set[bytes], counts: Split
) -> Iterator[RawDocument]:
    """The documents of `found` whose text is new. Raises DataError if an earlier split has the same work."""
    for document in found:
        other = works.setdefault(document.work.casefold(), split)
        if other != split:
            raise DataError(
                f"work {document.work!r} is in two splits, {other} and {split} ({document.source}): "
                f"name it in one of data.{other} and data.{split} only"
            )
        words = " ".join(document.text.casefold().split())
        fingerprint = hashlib.blake2b(words.encode(), digest_size=16).digest()
        if fingerprint in texts:
            counts.left_out += 1
            continue
        texts.add(fingerprint)
        counts.documents += 1
        counts.characters += len(document.text)
        yield document


def _has_marks(source: Source) -> bool:
    return isinstance(source, ExercisesSource) or getattr(source, "marks_column", None) is not None


def _write(found: Iterator[RawDocument], path: Path, schema: pa.Schema) -> None:
    """Write a parquet file that holds only the rows: no index, no statistics, no times."""
    compressed = {"compression": "zstd", "compression_level": 9, "use_dictionary": False}
    bare = {"write_statistics": False, "store_schema": False, "version": "2.6"}
    with pq.ParquetWriter(path, schema, **compressed, **bare) as writer:
        while group := list(islice(found, ROW_GROUP)):
            columns = [pa.array([getattr(one, field.name) for one in group], field.type) for field in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))
