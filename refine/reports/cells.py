"""Tables of results: rows of cells, each an estimate with its interval, and their text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from refine.evaluation.intervals import Estimate

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A value, and its difference to a baseline's, paired sample by sample; None if unknown.

    best: whether it is the best value of its row or column.
    """

    estimate: Estimate | None
    best: bool = False
    difference: Estimate | None = None

    def difference_text(self, scale: float, digits: int, mark: str) -> str:
        """`+0.25 [0.10, 0.50]`, each times `scale`; `mark` follows if the interval leaves out zero."""
        if self.difference is None:
            return NOTHING
        return self.difference.text(scale, digits, sign="+") + mark * self.difference.clear_of_zero


@dataclass(frozen=True)
class Row:
    """label: what the values are of. cells: one for each column of the table."""

    label: str
    cells: tuple[Cell, ...]


def mark_best(cells: Iterable[Cell], less_is_better: bool) -> tuple[Cell, ...]:
    """The cells with the best finite value marked. Equals are all marked; where all are equal, none is."""
    cells = tuple(cells)
    values = {cell.estimate.value for cell in cells if cell.estimate is not None}
    finite = {value for value in values if math.isfinite(value)}
    best = (min if less_is_better else max)(finite) if len(finite) > 1 else None
    return tuple(replace(cell, best=cell.estimate is not None and cell.estimate.value == best) for cell in cells)


def markdown_table(lines: Sequence[Sequence[str]], aligned: bool = False) -> str:
    """A Markdown table of a header and lines of as many texts. aligned: pad the texts, so that columns line up."""
    head, *body = lines
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    rule = ["-" * (width or 3) for width in widths]
    return "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |"
        for line in (head, rule, *body)
    )
