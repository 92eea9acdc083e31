"""The comparison as a picture: drawn for what is missing and what is alone too, and whole or not at all."""

from __future__ import annotations

import pytest
from PIL import Image

from refine.reports.comparison import compare
from refine.reports.pictures import draw
from refine.tracking.registry import Version

SCORES = {"val/loss": 3.5, "val/loss_low": 3.4, "val/loss_high": 3.6, "second_domain/loss": 4.0}


def version(number: int, metrics: dict[str, float]) -> Version:
    return Version("m", number, {"arm": "sft", "phase": "mid"}, ("champion",) if number == 1 else (), metrics)


def colours(path) -> set:
    with Image.open(path) as picture:
        return {colour for _, colour in picture.convert("RGB").getcolors(2**24)}


@pytest.mark.parametrize(
    "versions",
    [
        [version(1, SCORES), version(2, {"val/loss": 3.4})],  # the second was not scored on the second domain
        [version(1, {"val/loss": 3.5})],
        [version(n, {**SCORES, **{f"eval/niah/{length}/score": 0.5 for length in range(7)}}) for n in range(9)],
    ],
)
def test_versions_are_drawn_the_champion_in_its_colour(versions, tmp_path):
    path = draw(compare(versions), tmp_path / "results" / "comparison.png")
    assert (0x2A, 0x8C, 0x4A) in colours(path)
    assert ((0x3B, 0x6E, 0xA5) in colours(path)) == (len(versions) > 1)
    assert path.stat().st_size < 200_000 and [file.name for file in path.parent.iterdir()] == ["comparison.png"]


def test_a_comparison_without_a_metric_is_an_empty_picture(tmp_path):
    assert draw(compare([version(1, {})]), tmp_path / "none.svg").exists()
