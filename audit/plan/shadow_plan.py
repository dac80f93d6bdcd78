"""The section of a plan that says how many shadow models there are to be, or what they are to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from .settings import Settings, fault, time_or_none

USUAL, MOST = 16, 4096


class ShadowPlan(Settings):
    """How many shadow models are trained for attacks that need them. More see smaller leaks and take longer.

    0 trains none: an attacker then has records of its own to compare with. 1 is one reference; from 2 on each record is
    in half of them. In place of the numbers a plan may name the leak that is to be seen: both follow from it before the
    first attack.
    """

    training_free: int = Field(
        default=USUAL,
        ge=0,
        le=MOST,
        description="for the dense model and recipes that do not train; 0: none, so that the attacker of these models "
        "has records of its own to compare with; 1: one reference",
    )
    trained: int = Field(
        default=USUAL,
        ge=0,
        le=MOST,
        description="for hardened parents and recipes that train; left out: 16, and no more than training_free",
    )
    leak: float | None = Field(
        None,
        gt=0.01,
        le=1,
        description="in place of the numbers: the smallest leak of who was in training to be seen, as the true "
        "positive rate at 1 % false positives that any number of shadow models would find, such as 0.08",
    )
    within: str | None = Field(
        None,
        description="with leak: time by the clock that the shadow models may take, such as 20 min; where it is too "
        "short, the numbers are what it has room for",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_more_where_it_costs_more(cls, raw: Any) -> Any:
        """A plan that says `training_free: 4` alone does not mean 16 for models whose making costs a training each."""
        free = raw.get("training_free") if isinstance(raw, Mapping) else None
        if type(free) is int and 0 <= free < USUAL and "trained" not in raw:
            return {**raw, "trained": free}
        return raw

    @field_validator("within", mode="plain")
    @classmethod
    def _within(cls, value: Any) -> Any:
        return time_or_none(value)

    @model_validator(mode="after")
    def _numbers_or_a_leak(self) -> ShadowPlan:
        if self.within is not None and self.leak is None:
            raise fault("is the time for a leak to be seen: name the leak too, such as leak: 0.08", "within")
        if self.leak is not None and self.model_fields_set & {"training_free", "trained"}:
            raise fault("decides the numbers: leave out training_free and trained, or this", "leak")
        return self

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> ShadowPlan:
        if self.training_free < 2 and self.trained > self.training_free:
            raise fault(
                f"is {self.trained}, more than training_free: {self.training_free}. A model that trains is compared "
                "with the dense model under as many shadow models, and its shadow models start as the dense model's: "
                "give training_free at least as many, or trained no more",
                "trained",
            )
        return self
