"""The picture of the arms: 800 pixels wide, a colour for each phase, drawn also where scores are missing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image

from refine.reports.arms import Arm
from refine.reports.arms_picture import COLOURS, draw_arms
from refine.reports.headline import headline


def colours(path) -> set[str]:
    with Image.open(path) as picture:
        found = picture.convert("RGB").getcolors(2**24)
    return {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in found}


def test_phases_have_colours_and_the_picture_the_width_of_a_page(experiment_arms, tmp_path):
    path = draw_arms(headline(experiment_arms), tmp_path / "results" / "arms.png")
    assert set(COLOURS[:3]) <= colours(path) and COLOURS[3] not in colours(path)
    with Image.open(path) as picture:
        assert picture.width == 800 and picture.height < 1000
    assert path.stat().st_size < 200_000 and [file.name for file in path.parent.iterdir()] == ["arms.png"]


def test_nothing_overlaps_and_no_panel_is_cut(experiment_arms, tmp_path, monkeypatch):
    from refine.reports import arms_picture

    kept = []
    monkeypatch.setattr(arms_picture, "write_picture", lambda path, figure, dpi: kept.append(figure))
    draw_arms(headline(experiment_arms), tmp_path / "arms.png")
    (figure,) = kept
    figure.savefig(tmp_path / "drawn.png", dpi=100)
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    assert len(boxes) == 6
    assert not [1 for n, a in enumerate(boxes) for b in boxes[n + 1 :] if a.padded(-1).overlaps(b.padded(-1))]
    labels = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    labels.sort(key=lambda box: box.y0)
    assert all(a.y1 <= b.y0 + 1 for a, b in pairwise(labels)), "names of arms overlap"


@pytest.mark.parametrize("kept", [slice(0, 1), slice(2, 4), slice(6, 8), slice(0, 0)])
def test_arms_without_a_baseline_one_arm_and_none_are_drawn(experiment_arms, kept, tmp_path):
    assert draw_arms(headline(experiment_arms[kept]), tmp_path / "arms.svg").stat().st_size


def test_versions_without_samples_or_scores_are_drawn(experiment_arms, tmp_path):
    bare = [replace(one, evaluated=()) for one in experiment_arms]
    assert draw_arms(headline([*bare, Arm("mid", "new", "new")]), tmp_path / "arms.png").stat().st_size
