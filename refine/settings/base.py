"""The base of every section of params.yaml. It refuses unknown names and wrong values, and names them."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from refine.errors import SettingError, nearest, reason

# Upper bounds: far above what anyone wants, and small enough that no arithmetic overflows and no loop runs for ever.
MOST_TOKENS = 10**8  # of a text
MOST_STEPS = 10**9  # of a training, and documents of a source
MOST_ROWS = 10**6  # of a step or a pass
MOST_SAMPLES = 10**7  # prompts or exercises
MOST_ROLLOUTS = 10**5  # positions, rollouts at a position, tokens of a rollout

LARGEST_SEED = 2**32 - 1  # that numpy takes, which Trainer seeds


class Section(BaseModel):
    """A frozen group of settings. Each field's description states its unit. No number may be NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def validated(section: type[S], values: Any, where: str = "params.yaml") -> S:
    """`values` as a `section`. Raises SettingError: one line that names the first wrong setting."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        named = _one_line(first, section)
        if first["type"] == "missing":
            absent = [one for one in others if one["type"] == "missing"]
            others = [one for one in others if one not in absent]
            named = _missing([first, *absent])
        more = f" (and {len(others)} more)" if others else ""
        raise SettingError(f"{where}: {named}{more}") from None


def shown(value: Any) -> str:
    """`value` as text of at most 100 characters."""
    try:
        return reason(repr(value), 100)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a value nested too deep
        return f"too large to be shown ({type(value).__name__})"


def _one_line(error: ErrorDetails, section: type[Section]) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path) or "(top)"
    if error["type"] == "extra_forbidden":
        known = _known_names(section, path[:-1])
        return f"unknown setting {shown(name)}{nearest(path[-1], known)}; known here: {', '.join(known)}"
    if error["type"] == "value_error":
        said = reason(str(error["ctx"]["error"]), 1000)
        return f"setting {name!r}: {said}" if path else said
    return f"setting {name!r} is {shown(error['input'])}: {reason(error['msg'][0].lower() + error['msg'][1:])}"


def _missing(errors: list[ErrorDetails]) -> str:
    """All settings that are missing."""
    names = [repr(".".join(map(str, error["loc"]))) for error in errors]
    if len(names) == 1:
        return f"setting {names[0]} is missing"
    return f"settings {', '.join(names[:-1])} and {names[-1]} are missing"


def _known_names(section: type[Section], path: list[str]) -> list[str]:
    """The names in the section at `path` below `section`. Union tags in the path do not count."""
    here: type[Section] = section
    for part in path:
        field = here.model_fields.get(part)
        if field is None:
            tagged = [s for s in _sections(here) if part in repr(s.model_fields.get("kind"))]
            here = tagged[0] if tagged else here
            continue
        inner = _sections_of(field.annotation)
        here = inner[0] if len(inner) == 1 else here
    return sorted(here.model_fields)


def _sections(section: type[Section]) -> list[type[Section]]:
    return [inner for field in section.model_fields.values() for inner in _sections_of(field.annotation)]


def _sections_of(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_of(part)]
