"""The rows of audit.json that describe what was found: plain figures beside a finding, and who fell first."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .row import Count, Figure, Row, Share


class Quantity(Row):
    """A plain figure that describes what was found; no policy judges it.

    A median of what is known in steps only (the smallest epsilon of a few that fools a record) has a 95 % interval,
    whose lower end is a step lower than its bootstrap says, because nothing was tried in between.
    """

    name: str = Field(description="what is described, e.g. 'L-inf change'")
    statistic: str = Field(description="what of it: median, largest, mean, lowest")
    value: Figure | None = Field(description="None: above `above`")
    low: Figure | None = Field(None, description="None: a figure without an interval")
    high: Figure | None = Field(None, description="with `low`; None there: above `above`")
    above: Figure | None = Field(None, description="with `low`: the largest that was tried")
    n: int = Field(ge=1, description="records")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is None:
            if self.value is None or self.high is not None or self.above is not None:
                raise ValueError("a figure without an interval has a value and neither `high` nor `above`")
            return self
        if self.above is None:
            raise ValueError("an interval of steps says which was the largest (`above`)")
        beyond = float("inf")
        ends = [self.low, *(beyond if end is None else end for end in (self.value, self.high))]
        if ends != sorted(ends) or any(self.above < end < beyond for end in ends):
            raise ValueError(f"the value of {self.name!r:.80} lies outside its interval, or beyond what was tried")
        return self


class Transfer(Row):
    """Of the inputs that fool the finding's model, those of them that fool another model as well.

    Of records that both get right as they are; made on the one by the attack itself, asked of the other as it ships.
    """

    model: str = Field(description="that was asked")
    estimate: Share
    low: Share
    high: Share
    n: int = Field(ge=1, description="inputs")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.estimate <= self.high:
            raise ValueError(f"the share {self.estimate} lies outside its interval [{self.low}, {self.high}]")
        return self


class Pattern(Row):
    """A picture that was computed, such as a trigger's mask, and that holds no record."""

    title: str = Field(max_length=200, description="what it shows")
    rows: list[Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1, max_length=64)]] = Field(
        min_length=1, max_length=64, description="grey values, 255 for all of what is shown"
    )

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if len({len(row) for row in self.rows}) > 1:
            raise ValueError("the rows of a picture are not of one length")
        return self


class Fragile(Row):
    """The records that fell at the smallest setting at which any did; those that are wrong as they are left out."""

    at: Figure = Field(description="that setting, as the horizontal axis of the risk's chart counts it")
    count: int = Field(ge=1, description="how many fell there")
    ids: list[Count] = Field(
        min_length=1,
        max_length=10,
        description="of records, some of those at most; the ones that most parts of the attack fooled come first",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.ids)) < len(self.ids) or len(self.ids) > self.count:
            raise ValueError("an id stands twice, or there are more ids than records")
        return self
