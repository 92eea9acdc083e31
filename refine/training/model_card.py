"""The model card: README.md in a model folder and on a registered version, in the form that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refine.errors import RefineError
from refine.identity import flat
from refine.metric_names import LESS_IS_BETTER, MORE_IS_BETTER, TRAINING, count_of
from refine.system.readers import parsed_yaml, read_text

CARD = "README.md"
NAME = "refine-fast-weights"
HYBRIDS = (  # their attention layers remember every token
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_next",
    "olmo_hybrid",
    "kimi_linear",
)
MADE_BY = {
    "start": "next-token training of a new model",
    "mid": "mid-training on long documents",
    "post": "post-training on prompts with answers",
}
ARMS = {
    "none": "not trained; recorded as it was",
    "sft": "by next-token loss",
    "refine": "by next-token loss and REFINE's next-sequence loss",
    "nested_sft": "by the answers' loss, with next-token steps on the prompts before each",
    "nested_refine": "by the answers' loss, with REFINE steps on the prompts before each",
}
LIMITS = """## Limits

The model knows the text that it was trained on and no more; the scores hold for the text and the prompts that they were
measured on. Its fast weights have a fixed size: it may have forgotten what it read long ago. Nobody has tested it for
bias or harm. Do not take its answers for knowledge."""


def attends(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json has layers of attention: a hybrid, or fla's formats with `attn`."""
    return config.get("model_type") in HYBRIDS or bool(config.get("attn"))


@dataclass(frozen=True)
class Card:
    """What a card tells. made_from: the starting model. data, settings, origin (git commit, seed, ...): shown by name,
    nested ones with dots. scores: metrics with bounds and counts, by their tracked names. licence: empty if nobody
    stated one. attends: as the function says.
    """

    title: str
    model_type: str
    phase: str = ""
    arm: str = ""
    parameters: int = 0
    made_from: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    attends: bool = False

    def text(self) -> str:
        """The card as Markdown with the hub's header."""
        parts = [
            self._header(),
            f"# {self.title}\n\n{self._what()}",
            _table("Data", "it was trained and validated on", self.data),
            _table("Settings", "setting", self.settings),
            _table("Origin", "made by", self.origin),
            _scores(self.scores),
            LIMITS,
            f"## Licence\n\n{self._terms()}",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _header(self) -> str:
        known = {
            **({"license": self.licence} if self.licence else {}),
            "library_name": NAME,
            "pipeline_tag": "text-generation",
            "tags": ["fast-weights", "refine", self.model_type],
        }
        return f"---\n{yaml.safe_dump(known, sort_keys=False)}---"

    def _what(self) -> str:
        size = f" of {self.parameters:,} parameters" if self.parameters else ""
        made = MADE_BY.get(self.phase, "")
        meaning = f" ({ARMS[self.arm]})" if self.arm in ARMS else ""
        arm = f", arm `{self.arm}`{meaning}" if self.arm else ""
        start = f" It started from `{self.made_from}`." if self.made_from else ""
        grows = ", beside the keys and values of its attention layers, which grow" if self.attends else ""
        how = f" Phase `{self.phase}`{made and ': '}{made}{arm}." if self.phase else ""
        return (
            f"A {self.model_type}{size}: a fast-weight language model, which reads text of any length into a memory of "
            f"fixed size{grows}.{how}{start}\n\n```python\n"
            f"from refine.models import from_pretrained  # pip install {NAME}\n\n"
            'model = from_pretrained("FOLDER")  # or a hub name, or models:/NAME@ALIAS\n```'
        )

    def _terms(self) -> str:
        if self.licence:
            return f"{self.licence}, as the model that it started from. The licence of the training text also counts."
        return "Nobody has stated one: that of the model that it started from and that of the training text count."


def _table(title: str, what: str, values: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in flat(values).items() if value is not None and value != ""}
    if not shown:
        return ""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in shown.items()]
    return "\n".join([f"## {title}\n", f"| {what} | |", "|---|---|", *lines])


def _scores(metrics: Mapping[str, float]) -> str:
    """A line for each loss, share and score, with its 95 % interval and count; empty without any."""
    ends = (*LESS_IS_BETTER, *MORE_IS_BETTER)
    names = [name for name in sorted(metrics) if name.endswith(ends) and not name.startswith(TRAINING)]
    if not names:
        return ""
    lines = []
    for name in names:
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        span = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        lines.append(f"| {_cell(name)} | {metrics[name]:.4f} | {span} | {count_of(metrics, name) or ''} |")
    return "\n".join(["## Scores\n", "| measured | value | 95 % interval | samples |", "|---|---|---|---|", *lines])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")[:200]


def licence_of(folder: str | Path) -> str:
    """The licence that the card of a model folder states; empty without one."""
    try:
        _, header, _ = read_text(Path(folder) / CARD, "a model card").split("---", 2)
        found = parsed_yaml(header, str(folder))
        return str(found.get("license") or "") if isinstance(found, dict) else ""
    except (RefineError, ValueError):
        return ""
