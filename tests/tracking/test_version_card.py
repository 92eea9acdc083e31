"""A version has a card with its own scores, in the place of the folder's."""

from __future__ import annotations

import pytest

from refine.errors import ServiceError
from refine.tracking.registry import download, register
from refine.tracking.version_card import version_card

SCORES = {
    "val/loss": 3.5,
    "val/loss_low": 3.4,
    "val/loss_high": 3.6,
    "val/sequences": 32.0,
    "val/accuracy": float("nan"),
}
TAGS = {"phase": "mid", "arm": "refine", "experiment": "sample", "identity.commit": "f00", "identity.data": "da7a"}


def test_it_tells_scores_with_intervals_and_the_origin(model_folder):
    scores = {**SCORES, "val/accuracy": float("nan")}
    text = version_card("m", model_folder, scores, {"model.checkpoint": "sample/delta_net", "training.steps": 20}, TAGS)
    for part in ("# m: mid refine, of experiment sample", "| val/loss | 3.5000 | 3.4000 to 3.6000 | 32 |", "f00",
                 "da7a", "It started from `sample/delta_net`", "| training.steps | 20 |"):  # fmt: skip
        assert part in text, part
    assert "nan" not in text.split("## Limits")[0]


def test_every_version_has_it(client, experiment, model_folder):
    (model_folder / "README.md").write_text("---\nlicense: mit\n---\nthe last validation's")
    run = client.create_run(experiment).info.run_id
    register(client, "m", model_folder, key="k", run_id=run, experiment_id=experiment, metrics=SCORES, settings={},
             tags=TAGS)  # fmt: skip
    text = (download(client, "models:/m/1") / "README.md").read_text()
    assert text.startswith("---\nlicense: mit") and "3.4000 to 3.6000" in text and "last validation" not in text
    assert (model_folder / "README.md").read_text().endswith("the last validation's"), "the folder keeps its own"


def test_a_broken_config_is_one_line(model_folder):
    (model_folder / "config.json").write_text("[")
    with pytest.raises(ServiceError, match=r"config.json: not valid JSON"):
        version_card("m", model_folder, {}, {}, {})
