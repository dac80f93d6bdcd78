"""Attacks that take their records in rounds, ever more of them, until the gates they are for are decided."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt

from .attack import Attack, Round
from .preparation import Scope
from .statistics.power import unseen_loss
from .statistics.sequential import FIRST, looks

MOST_RECORDS = 10_000_000  # that a plan may name
DIRECT_RECORDS = 300  # attacked with `records: auto` where nobody decides when it is enough


class InRounds(Attack):
    """How many of the evaluation records an attack has, and in which steps."""

    records: Annotated[PositiveInt, Field(le=MOST_RECORDS)] | Literal["auto"] = Field(
        "auto",
        description="how many of the evaluation records are attacked, at most; auto: 200, 400, ... in rounds until "
        "the gates are decided, and 300 where nobody decides (outside of an audit)",
    )
    most_records: PositiveInt = Field(
        1600, le=MOST_RECORDS, description="with records auto: where the rounds end at the latest"
    )

    @property
    def count(self) -> int:
        """How many records are attacked, at most."""
        return DIRECT_RECORDS if self.records == "auto" else self.records

    def rounds(self, scope: Scope) -> tuple[Round, ...]:
        if self.records != "auto":
            return (Round(self, self.records),)
        counts = looks(self._most(scope))
        return tuple(Round(self.model_copy(update={"records": count}), count) for count in counts)

    def sharing(self) -> Self:
        return self.model_copy(update={"records": "auto", "most_records": FIRST})

    def smaller(self) -> Self | None:
        if self.records != "auto" or self.most_records <= FIRST:
            return None
        return self.model_copy(update={"most_records": max(FIRST, self.most_records // 2)})

    def unseen(self, scope: Scope) -> str:
        """Which loss of robust accuracy so many records would hardly show, as a phrase."""
        return unseen_loss("a loss of robust accuracy", self._most(scope))

    def _most(self, scope: Scope) -> int:
        most = self.most_records if self.records == "auto" else self.records
        return min(most, len(scope.data.evaluation_ids))
