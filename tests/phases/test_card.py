"""A finished run's model folder has a card that tells its record."""

from __future__ import annotations

from refine.phases.card import CARD, card_of


def test_a_trained_folder_has_a_card_and_stays_complete(mid, tmp_path):
    from refine.phases import run_folder

    record = mid("a")
    text = (tmp_path / "a" / "model" / CARD).read_text()
    for part in (
        "# mid refine",
        "A delta_net of",
        "`run/model`",
        "arm `refine`",
        "objective.positions",
        "| steps | 6 |",
    ):
        assert part in text, part
    assert f"| val/loss | {record['metrics']['val/loss']:.4f} |" in text and "train_hash" in text
    assert str(tmp_path) not in text, "a card tells no one's home"
    assert run_folder.finished(tmp_path / "a") is not None


def test_a_new_model_s_card_names_its_kind():
    text = card_of({"phase": "start", "arm": "sft", "model": {"model_type": "lact_swiglu"}, "seed": 3})
    assert "A lact_swiglu:" in text and "next-token training of a new model." in text and "| seed | 3 |" in text
