"""Read a file of JSON, YAML or text. What is wrong with it becomes one line that names the file and what was expected.

A reader of the project reads with these functions, and checks the form of what it got inside `in_form`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from refine.errors import DataError, RefineError, reason
from refine.system.unique_yaml import UniqueKeysLoader

DEPTH = 100  # levels of nesting
VALUES = 1_000_000  # values in a YAML file, each counted as often as aliases repeat it
Kind = type[RefineError]


def read_text(
    path: str | Path, what: str, kind: Kind = DataError, missing: str = "", encoding: str = "utf-8-sig"
) -> str:
    """The text of the file at `path`, without a byte-order mark. what: what it should be, as in "an evaluation".

    Raises `kind`: no such file (`missing`: what to say then), a folder, not readable, not UTF-8.
    """
    try:
        return Path(path).read_text(encoding=encoding)
    except FileNotFoundError:
        raise kind(f"{path}: {missing or 'no such file'}") from None
    except UnicodeDecodeError as error:
        raise kind(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        why = getattr(error, "strerror", None) or reason(error)
        raise kind(f"{path}: cannot be read ({why}); expected {what}") from None


def read_json(path: str | Path, what: str, kind: Kind = DataError, missing: str = "") -> dict[str, Any]:
    """The fields of a JSON file. Raises `kind`: as `read_text`, not JSON, nested too deep, or no mapping."""
    text = read_text(path, what, kind, missing, "utf-8")  # other libraries, which read it too, refuse a mark
    return mapping(parsed_json(text, str(path), kind), str(path), what, kind)


def read_yaml(path: str | Path, what: str, kind: Kind = DataError, missing: str = "") -> dict[str, Any]:
    """The fields of a YAML file. Raises `kind`: as `read_text`, not YAML, nested too deep, too many values (aliases
    count as often as they repeat a value), or no mapping."""
    return mapping(parsed_yaml(read_text(path, what, kind, missing), str(path), kind), str(path), what, kind)


def parsed_json(text: str | bytes, where: str, kind: Kind = DataError) -> Any:
    """The value of a JSON text. Raises `kind`, which begins with `where`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where}: not valid JSON ({_why(error)})") from None
    _refuse_endless(found, where, kind, None)
    return found


def parsed_yaml(text: str, where: str, kind: Kind = DataError, loader: Any = UniqueKeysLoader) -> Any:
    """The value of a YAML text. Raises `kind`, which begins with `where`."""
    try:
        found = yaml.load(text, Loader=loader)
    except RefineError:
        raise
    except Exception as error:  # beside YAMLError: what Python says of a date, a number or base64
        raise kind(f"{where}: not valid YAML: {_why(error)}") from None
    _refuse_endless(found, where, kind, VALUES)
    _refuse_half_characters(found, where, kind)
    return found


def mapping(value: Any, where: str, what: str, kind: Kind = DataError) -> dict[str, Any]:
    """`value`, if it is a mapping with text as keys; else raises `kind`."""
    if not isinstance(value, dict):
        raise kind(f"{where}: expected {what}, a mapping of names to values; found {type(value).__name__}")
    if odd := [key for key in value if not isinstance(key, str)]:
        raise kind(f"{where}: expected {what}, with text as names; found {reason(repr(odd[0]), 40)}")
    return value


@contextlib.contextmanager
def in_form(where: str | Path, what: str, kind: Kind = DataError, advice: str = "") -> Iterator[None]:
    """For a block that takes a read value apart: a field that is missing or of another type raises `kind`, one line
    that begins with `where`. advice: what to do, added at the end."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else reason(error, 160)
        raise kind(f"{where}: not {what} ({why}){advice and '; '}{advice}") from None


def _why(error: BaseException) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else reason(error)


def _refuse_endless(value: Any, where: str, kind: Kind, most: int | None) -> None:
    """Raises `kind` if `value` is nested deeper than DEPTH or holds more than `most` values."""
    level, values, below = 0, 0, [value]
    while below:
        level += 1
        values += len(below)
        if level > DEPTH:
            raise kind(f"{where}: nested more than {DEPTH} levels deep")
        if most is not None and values > most:
            raise kind(f"{where}: holds more than {most:,} values; an alias counts as often as it repeats them")
        inside = (inner for one in below if isinstance(one, (dict, list, tuple)) for inner in _inside(one))
        below = list(islice(inside, None if most is None else most + 1))


def _refuse_half_characters(value: Any, where: str, kind: Kind) -> None:
    """Raises `kind` if a text in `value` has half of a pair of UTF-16 ("\\ud800"), which cannot be written as UTF-8."""
    below = [value]
    while below:
        one = below.pop()
        if isinstance(one, str):
            if any("\ud800" <= character <= "\udfff" for character in one):
                raise kind(f"{where}: holds half of a character: {reason(ascii(one), 40)}")
        elif isinstance(one, (dict, list, tuple)):
            below += [*one, *one.values()] if isinstance(one, dict) else one


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
