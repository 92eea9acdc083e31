"""The inputs of an evaluation: documents and prompts, found or made, and checked before any model is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from refine.data.parquet_files import arrow_errors, open_parquet
from refine.data.prompts.chat import ChatForm
from refine.data.prompts.longbench import load_longbench
from refine.data.prompts.needles import TASKS as NEEDLES
from refine.data.prompts.needles import make_needles
from refine.data.prompts.prompt import PUBLISHED_NAMES, Prompt, load_prompts
from refine.data.prompts.tasks import TASKS, known_task
from refine.data.token_sequences import load_token_sequences
from refine.data.tokenizer import load_tokenizer
from refine.errors import DataError, SettingError, nearest, reason
from refine.paths import visible_files

NEXT_TOKEN = "next_token"
FAMILIES = ("needles", "questions", "longbench")
DOCUMENT_NAMES = {"validation": "val"}  # a file of documents -> its name in metrics
NOT_EVALUATED = ("train",)

PromptSets = dict[tuple[str, int], list[Prompt]]


@dataclass(frozen=True)
class Inputs:
    """documents: token sequences by name (`val`, `second_domain`, ...). prompts: by task and length [tokens]."""

    documents: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[tuple[str, int], Sequence[Prompt]] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """A hash of all documents and prompts. Scores of models on the same hash can be compared."""
        from refine.evaluation.next_token import marks_of, token_rows

        digest = hashlib.sha256()
        for name, sequences in sorted(self.documents.items()):
            rows = [row.tolist() for row in token_rows(sequences)]
            marks = marks_of(sequences, len(rows))
            digest.update(json.dumps([name, rows, *([marks] if any(marks) else [])]).encode())
        for (task, length), prompts in sorted(self.prompts.items()):
            digest.update(json.dumps([task, length, [asdict(prompt) for prompt in prompts]]).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Sources:
    """The sources of prompts that the data folder does not hold.

    tokenizer: the model's; it measures needles of any length, and documents must have been made with it. essay: returns
    the texts to hide needles in. longbench: folder or hub name. seed, samples: of the needles. chat: prompts are put
    into the tokenizer's chat template.
    """

    tokenizer: Any = None
    essay: Callable[[], Iterable[str]] | None = None
    longbench: str | None = None
    seed: int = 42
    samples: int = 100
    chat: bool = False


def load_inputs(
    folder: str | Path,
    tasks: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    samples: int | None = None,
    sources: Sources | None = None,
) -> Inputs:
    """The documents under `folder`/documents and the prompts anywhere under `folder`.

    tasks: task names, families (needles, questions, longbench) and `next_token`; by default everything in the folder.
    lengths: only these; `sources` gives needles and LongBench that the folder lacks. samples: at most so many prompts
    of each. Raises SettingError for an unknown task; DataError for a task or length that neither folder nor sources
    have, and for a file with wrong columns, empty prompts or empty answers.
    """
    sources = sources or Sources()
    wanted, documents_wanted = _wanted(tasks)
    folder = Path(folder)
    found = find_prompts(folder)
    sequences = _documents(folder, sources.tokenizer, required=tasks is not None) if documents_wanted else {}
    prompts: PromptSets = {}
    for task in wanted:
        for length in _lengths(task, lengths, found, sources, tasks):
            prompts[task, length] = _prompts(task, length, found, sources, samples, folder)
        if task in (tasks or ()) and not any(name == task for name, _ in prompts):
            raise DataError(f"{folder}: holds no prompts of {task}; name lengths to make them at, or another folder")
    if not sequences and not prompts:
        raise DataError(f"{folder}: holds nothing to evaluate on; `refine prepare` makes documents and needles")
    return Inputs(sequences, prompts)


def _lengths(
    task: str,
    lengths: Sequence[int] | None,
    found: Mapping[tuple[str, int], Path],
    sources: Sources,
    tasks: Sequence[str] | None,
) -> list[int]:
    """The lengths at which to evaluate a task: all of `lengths` if the task is named; if only its family is, those that
    the folder has or `sources` can make; if nothing is named, those that the folder has."""
    in_folder = sorted(length for name, length in found if name == task)
    if lengths is None:
        return in_folder
    family = known_task(task).family
    makes = {"needles": sources.tokenizer is not None, "longbench": sources.longbench is not None}
    if tasks is not None and (task in tasks or makes.get(family, False)):
        return list(lengths)
    return [length for length in lengths if length in in_folder]


def find_prompts(folder: str | Path) -> dict[tuple[str, int], Path]:
    """(task, length) -> the parquet file under `folder` that holds these prompts.

    Files for training and for choosing settings (their names end in train or validation) are left out. Raises DataError
    if two files hold the same task and length.
    """
    found: dict[tuple[str, int], Path] = {}
    for path in visible_files(folder, "*.parquet"):
        held = _holds(path)
        if held is None or held[0] not in TASKS or path.stem.endswith(("train", "validation")):
            continue
        if held in found:
            raise DataError(f"{path} and {found[held]} both hold {held[0]} at {held[1]}: keep one of them")
        found[held] = path
    return found


def _holds(path: Path) -> tuple[str, int] | None:
    """(task, length) of a file of prompts, from its first row, or the length from its name. None for other files."""
    file = open_parquet(path, "it is a link to nothing")
    columns = {PUBLISHED_NAMES.get(name, name): name for name in file.schema_arrow.names}
    if "prompt" not in columns or "task" not in columns:
        return None
    read = [columns[name] for name in ("task", "length") if name in columns]
    with arrow_errors(path, ""):
        row = next(file.iter_batches(1, columns=read), None)
    if row is None or row.num_rows == 0:
        raise DataError(f"{path}: holds no prompts")
    values = row.to_pylist()[0]
    named = re.search(r"_(\d+)$", path.stem)
    length = values.get(columns.get("length", "")) or (int(named[1]) if named else None)
    if length is None:
        raise DataError(f"{path}: no column 'length', and no length at the end of its name")
    if not isinstance(length, int):
        raise DataError(f"{path}: column 'length' holds {reason(repr(length), 40)}; expected a number of tokens")
    return str(values[columns["task"]]), int(length)


def _wanted(tasks: Sequence[str] | None) -> tuple[list[str], bool]:
    """(task names, whether next-token prediction is wanted)."""
    if tasks is None:
        return list(TASKS), True
    names: list[str] = []
    for name in tasks:
        if name in FAMILIES:
            names += [task for task, kind in TASKS.items() if kind.family == name]
        elif name != NEXT_TOKEN:
            if name not in TASKS:
                known = [*TASKS, *FAMILIES, NEXT_TOKEN]
                raise SettingError(f"no task {name!r}{nearest(name, known)}; there are {', '.join(known)}")
            names.append(name)
    return list(dict.fromkeys(names)), NEXT_TOKEN in tasks


def document_sets(folder: str | Path) -> dict[str, Path]:
    """Name in metrics (`val`, `recall`, `second_domain`, ...) -> file of documents under `folder`; `val` comes
    first."""
    documents = Path(folder) / "documents"
    found = [path for path in visible_files(documents, "*.parquet") if path.parent == documents]
    paths = [path for path in found if path.stem not in NOT_EVALUATED]
    paths.sort(key=lambda path: (path.stem not in DOCUMENT_NAMES, path.stem))
    return {DOCUMENT_NAMES.get(path.stem, path.stem): path for path in paths}


def _documents(folder: Path, tokenizer: Any, required: bool) -> dict[str, Any]:
    paths = document_sets(folder)
    if required and not paths:
        raise DataError(f"{folder}/documents: no documents to predict; `refine prepare documents` makes them")
    if paths and tokenizer is not None and (folder / "tokenizer").is_dir():
        theirs = load_tokenizer(folder / "tokenizer")
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise DataError(
                f"{folder}/documents: made with another tokenizer ({len(theirs)} pieces) than the model's "
                f"({len(tokenizer)}): prepare them with tokenizer.path set to the model, or leave out {NEXT_TOKEN}"
            )
    return {name: load_token_sequences(path) for name, path in paths.items()}


def _prompts(
    task: str,
    length: int,
    found: Mapping[tuple[str, int], Path],
    sources: Sources,
    samples: int | None,
    folder: str | Path,
) -> list[Prompt]:
    kind = known_task(task)
    path = found.get((task, length))
    prompts = load_prompts(path, answer_tokens=kind.answer_tokens, length=length) if path else []
    chat = ChatForm(sources.tokenizer, "--chat: the tokenizer") if sources.chat else None
    if kind.family == "needles" and sources.tokenizer is not None and not _made_for(sources.tokenizer, prompts, chat):
        essay = list(sources.essay()) if sources.essay and NEEDLES[task].haystack == "essay" else ""
        return make_needles(task, length, samples or sources.samples, sources.tokenizer, essay, sources.seed, chat=chat)
    if prompts:
        if chat is not None and not chat.holds(prompts[0].prompt):
            raise DataError(
                f"{path}: not in the chat template of --chat: prepare it with chat: true, or leave out --chat"
            )
        return prompts[:samples]
    if kind.family == "longbench" and sources.longbench is not None:
        loaded = load_longbench(task, sources.longbench, length, samples=samples)
        return loaded if chat is None else [replace(one, prompt=chat(one.prompt)) for one in loaded]
    lengths = ", ".join(str(known) for name, known in sorted(found) if name == task) or "none"
    raise DataError(f"{folder}: holds no prompts of {task} at length {length}; it has lengths: {lengths}")


def _made_for(tokenizer: Any, prompts: Sequence[Prompt], chat: ChatForm | None) -> bool:
    """Whether the prompts have as many tokens with this tokenizer as with the one they were made with, and are in the
    form of `chat`."""
    if prompts and chat is not None and not chat.holds(prompts[0].prompt):
        return False
    return bool(prompts) and len(tokenizer(prompts[0].prompt)["input_ids"]) == prompts[0].prompt_tokens
