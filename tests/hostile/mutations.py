"""Bad inputs, made from good ones by a seeded mutator: trees (JSON, YAML), bytes, places on the disk, parquet columns.

The same random generator gives the same mutations on every machine.
"""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Tree = Any
DEEP = 20_000  # levels of nesting that no parser written in Python can follow


def deep(levels: int = 60) -> Tree:
    """A list in a list in a list ..."""
    found: Tree = []
    for _ in range(levels):
        found = [found]
    return found


STRANGE: tuple[Callable[[], Tree], ...] = tuple(
    (lambda value=value: copy.deepcopy(value))
    for value in (
        None, True, False, 0, 1, -1, 2, 3.5, 10**6, 10**9, 10**13, -(10**13), 2**63, 10**30, 1e38, 1e308, math.nan,
        math.inf, -math.inf, "", " ", "x", "nan", "1e5", "../../etc/passwd", "/", "a\nb", "\0", "\ud800",
        "\u03b6\u0301\U0001f98a\u202e", "null", "[]", "x" * 5000,
         [], [None], [[]], [1, "x"], {}, {"x": None}, {"": ""}, {"x": {"y": [1]}},
    )
)  # fmt: skip


def changed_tree(tree: Tree, chance: random.Random) -> Tree:
    """`tree` with one or two places changed: another value, a missing or extra key, a shortened or repeated list."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.choice((1, 1, 1, 2))):
        tree = _changed_once(tree, chance)
    return tree


def _changed_once(tree: Tree, chance: random.Random) -> Tree:
    places = list(_places(tree))
    if not places or chance.random() < 0.05:
        return chance.choice((*STRANGE, deep))()
    holder, key = chance.choice(places)
    kind = chance.random()
    if kind < 0.65:
        holder[key] = chance.choice((*STRANGE, deep))()
    elif kind < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[chance.choice(("", "x", "model_type", "\ud800", "tokens", str(key) + "_"))] = chance.choice(STRANGE)()
    else:
        holder.extend(copy.deepcopy(holder[:3]))
    return tree


def _places(tree: Tree) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value in the tree; of long lists and mappings only the first and last few."""
    if isinstance(tree, dict):
        keys = list(tree)
        for key in keys if len(keys) <= 60 else [*keys[:10], *keys[-10:]]:
            yield tree, key
            yield from _places(tree[key])
    elif isinstance(tree, list):
        for index in range(len(tree)) if len(tree) <= 8 else (0, 1, len(tree) - 1):
            yield tree, index
            yield from _places(tree[index])


def as_json(tree: Tree) -> bytes:
    """JSON, with NaN and lone surrogates as Python writes them."""
    return json.dumps(tree).encode()


def as_yaml(tree: Tree) -> bytes:
    """JSON is YAML; but YAML writes infinity in its own way."""
    text = json.dumps(tree)
    return text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf").encode()


JSON_TEXTS = (
    b"", b"null", b"[]", b"{}", b"3", b'"text"', b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{'a': 1}", b"NaN",
    b"[" * DEEP, b'{"a":' * DEEP, b"9" * 5000, b'{"a": 1} trailing', b"\0" * 64, b"<html>no</html>",
)  # fmt: skip
LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 9)) for n in range(12)
)
YAML_TEXTS = (
    *JSON_TEXTS, LAUGHS, b"a: &a [*a]\n", b"&a {seed: *a}\n", b"a: 2001-99-99\n", b"a: !!python/object:os.system x\n",
    b"? [a, b]\n: 1\n", b"a: b: c\n", b"\tseed: 1\n", b"a: *nothing\n", b"--- 1\n--- 2\n", b"{1: 2, null: 3}",
    b"seed: 0x\n", b"seed: 1_\n", b"seed: 1:99999999\n", b"a: !!int x\n", b"a: !!binary \xc3\xa4\n",
    b"a: !!timestamp x",
)  # fmt: skip


def changed_bytes(content: bytes, chance: random.Random) -> bytes:
    """`content` cut off, with flipped bits, in another encoding, or with bytes put in, doubled or taken out."""
    place = chance.randrange(len(content) + 1)
    width = chance.choice((1, 4, 64, 1024))
    choice = chance.randrange(9)
    if choice == 0:
        return content[:place]
    if choice == 1:
        return content[:place] + content[place + width :]
    if choice == 2:
        return content[:place] + bytes(chance.randrange(256) for _ in range(min(width, 64))) + content[place:]
    if choice == 3:
        return content[:place] + content[max(place - width, 0) :]
    if choice == 4:
        return content.decode("utf-8", "replace").encode("utf-16")
    if choice == 5:
        return b"\xef\xbb\xbf" + content
    if choice == 6:
        return content.replace(b"\n", b"\r\n")
    changed = bytearray(content or b"x")
    early = min(len(changed), 4096)  # headers come first
    for _ in range(chance.choice((1, 3, 20))):
        changed[chance.randrange(early)] = chance.randrange(256)
    return bytes(changed)


def misplace(path: Path, chance: random.Random) -> None:
    """Put something else where the file `path` is expected: nothing, a folder, a dangling or circular link."""
    path.unlink()
    choice = chance.randrange(4)
    if choice == 0:
        path.mkdir()
    elif choice == 1:
        path.symlink_to(path)
    elif choice == 2:
        path.symlink_to(path.with_name("nowhere"))


def file_for_folder(folder: Path) -> None:
    """Put a file where a folder is expected."""
    shutil.rmtree(folder)
    folder.write_bytes(b"a file")


Write = Callable[[Path, Tree, random.Random], None]


def write_tree(dump: Callable[[Tree], bytes], texts: tuple[bytes, ...]) -> Write:
    """A writer of hostile files of a format: `dump` writes a tree, `texts` are bad files of their own."""

    def write(path: Path, sample: Tree, chance: random.Random) -> None:
        kind = chance.random()
        if kind < 0.1:
            path.write_bytes(dump(sample))
            misplace(path, chance)
        elif kind < 0.22:
            path.write_bytes(chance.choice(texts))
        elif kind < 0.4:
            path.write_bytes(changed_bytes(dump(sample), chance))
        else:
            path.write_bytes(dump(changed_tree(sample, chance)))

    return write


write_json = write_tree(as_json, JSON_TEXTS)
write_yaml = write_tree(as_yaml, YAML_TEXTS)


def write_lines(path: Path, sample: list[Tree], chance: random.Random) -> None:
    """JSON lines."""
    lines = [as_json(one) for one in sample]
    number = chance.randrange(len(lines))
    kind = chance.random()
    if kind < 0.6:
        lines[number] = as_json(changed_tree(sample[number], chance))
    elif kind < 0.75:
        lines[number] = chance.choice(JSON_TEXTS)
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(changed_bytes(content, chance) if kind > 0.85 else content)
    if 0.75 < kind < 0.8:
        misplace(path, chance)


def write_bytes(path: Path, sample: bytes, chance: random.Random) -> None:
    """A file without a form that the mutator knows."""
    path.write_bytes(sample)
    if chance.random() < 0.1:
        misplace(path, chance)
    else:
        path.write_bytes(chance.choice((changed_bytes(sample, chance), changed_bytes(sample, chance), b"", b"\0" * 99)))


def write_parquet(path: Path, sample: dict[str, list[Any]], chance: random.Random) -> None:
    """A parquet file whose columns are missing, misnamed, empty, of another type, or hold strange values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = copy.deepcopy(sample)
    name = chance.choice(list(columns))
    rows = len(columns[name])
    kind = chance.random()
    if kind < 0.12:
        del columns[name]
    elif kind < 0.2:
        columns = {column: values[:0] for column, values in columns.items()}
    elif kind < 0.28:
        columns[name + "_"] = columns.pop(name)
    elif kind < 0.75:
        columns[name] = [chance.choice(COLUMN_VALUES)] * rows
    elif kind < 0.85:
        columns[name][chance.randrange(rows)] = None
    pq.write_table(_table(columns, pa), path)
    if kind > 0.92:
        write_bytes(path, path.read_bytes(), chance)


COLUMN_VALUES: tuple[Any, ...] = (
    None, 1, -1, 2**40, 1.5, math.nan, True, "", "x", "[1, 2]", b"\xff", [], [None], [1], [-1, 2**40], [1.5, 2.5],
    ["x"], [[1]], {"x": 1}, [""], ["1", "2"], [True], "ζ🦊",
)  # fmt: skip


def _table(columns: dict[str, list[Any]], pa: Any) -> Any:
    return pa.table(columns) if columns else pa.table({"nothing": pa.array([], pa.null())})
