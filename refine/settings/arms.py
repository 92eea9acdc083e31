"""The arms of a phase: what each trains. An arm is one of the phase's own, or a variant that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from refine.errors import SettingError, nearest
from refine.settings.base import Section, validated
from refine.settings.objective import ObjectiveSettings

OWN_ARMS: dict[str, tuple[str, ...]] = {  # of each phase that has arms
    "mid": ("none", "sft", "refine", "focus"),
    "post": ("sft", "nested_sft", "nested_refine", "nested_focus"),
    "test_time": ("none", "sft", "refine", "focus"),
}
NEXT_TOKEN = ("none", "sft", "nested_sft")  # their steps on texts have the next-token loss alone
FOCUS = ("focus", "nested_focus")  # no rollouts: the tokens after the positions weigh more in the next-token loss
NOT_OF_AN_ARM = {"arms", "variants", "continue_with", "best_by", "objective"}  # settings about all arms of a phase

ARM_NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=ARM_NAME, max_length=40)]


def _mapping(value: Any) -> Any:
    return {} if value is None else value


class Arms(Section):
    """A phase with several arms."""

    variants: Annotated[dict[Name, dict[str, Any]], BeforeValidator(_mapping)] = Field(
        default_factory=dict,
        description="arms of a name of your own, or of the phase's, with the settings of `objective` that they change",
    )

    @field_validator("arms", check_fields=False)
    @classmethod
    def _once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(arms)) != len(arms):
            raise ValueError(f"names an arm twice: {', '.join(arms)}")
        return arms

    @model_validator(mode="after")
    def _every_arm_has_an_objective(self) -> Arms:
        """Every arm is known, and every variant's settings make an objective."""
        for arm in dict.fromkeys((*getattr(self, "arms"), *self.variants)):  # noqa: B009  (of the subclass)
            try:
                self.check_arm(arm)
                self.objective_of(arm)
            except SettingError as error:
                raise ValueError(str(error)) from None
        return self

    @classmethod
    def phase(cls) -> str:
        """Name of the section."""
        raise NotImplementedError

    def known_arms(self) -> tuple[str, ...]:
        """The phase's own arms, and the variants."""
        return tuple(dict.fromkeys((*OWN_ARMS[self.phase()], *self.variants)))

    def check_arm(self, arm: str) -> str:
        """`arm`. Raises SettingError: neither the phase nor `variants` has it."""
        known = self.known_arms()
        if arm not in known:
            raise SettingError(
                f"phase {self.phase()} has no arm {arm!r}{nearest(str(arm), known)}; it has {', '.join(known)}; "
                f"training.{self.phase()}.variants may name more"
            )
        return arm

    def objective_of(self, arm: str) -> ObjectiveSettings:
        """The objective of an arm: the section's, with what `variants` changes and what the arm's name implies.

        Raises SettingError: the variant's settings are no objective, or arm `focus` has no focus_weight."""
        return objective_of(arm, getattr(self, "objective"), self.variants)  # noqa: B009  (of the subclass)


def objective_of(
    arm: str, objective: ObjectiveSettings, variants: Mapping[str, Mapping[str, Any]] | None = None
) -> ObjectiveSettings:
    """`objective` with what `variants` changes for `arm`, and with what the arm's name implies.

    Raises SettingError: see `Arms.objective_of`."""
    changed = dict((variants or {}).get(arm, {}))
    if arm in NEXT_TOKEN:
        changed |= {"nsp_weight": 0.0, "focus_weight": 0.0}
    elif arm in FOCUS:
        changed |= {"nsp_weight": 0.0}
    if not changed:
        return objective
    found = validated(ObjectiveSettings, objective.model_dump() | changed, f"arm {arm}")
    if arm in FOCUS and not found.focus_weight:
        raise SettingError(f"arm {arm} has no focus_weight: set it in `objective`, or in `variants` for this arm")
    return found
