"""The section of a plan that says how many shadow models there are to be, or what they are to show."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from .settings import Settings, fault, time_or_none


class ShadowPlan(Settings):
    """How many shadow models are trained for attacks that need them. More see smaller leaks and take longer.

    In place of the numbers a plan may name the leak that is to be seen: both follow from it before the first attack.
    """

    training_free: int = Field(
        default=16, ge=2, le=4096, description="for the dense model and recipes that do not train"
    )
    trained: int = Field(default=16, ge=2, le=4096, description="for hardened parents and recipes that train")
    leak: float | None = Field(
        None,
        gt=0.01,
        le=1,
        description="in place of the numbers: the smallest leak of who was in training to be seen, as the true positive rate at "
        "1 % false positives that any number of shadow models would find, such as 0.08",
    )
    within: str | None = Field(
        None,
        description="with leak: time by the clock that the shadow models may take, such as 20 min; where it is too "
        "short, the numbers are what it has room for",
    )

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
