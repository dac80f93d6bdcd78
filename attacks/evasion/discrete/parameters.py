"""What evasion by exchange is told: how many changes, how far numbers move, what is allowed, and how hard to search."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from ....targets.form import Document, Share
from ...case import Case
from ...effort import Effort
from ...risk import Metric, Risk
from ...rounds import MOST_RECORDS, InRounds
from ..risk import ROBUST_ACCURACY
from .features import Features, features_of
from .risk import SUBSTITUTION

Changes = Annotated[int, Field(ge=1, le=100)]
TYPICAL_MOVES = 200  # of a record, for a guess of the cost


class Chosen(Document):
    """What a probe chose, and what it rests on.

    Attributes:
        reach: of the attack; changes: of the gate.
        kept: robust / clean accuracy of the probed model there.
        records: how many were probed.
        clean: accuracy of the probed model; probe: by reach, robust accuracy after each number of changes.
    """

    reach: Share
    changes: Changes
    kept: Share
    records: Annotated[PositiveInt, Field(le=MOST_RECORDS)]
    clean: Share
    probe: dict[str, tuple[Share, ...]]


class SubstitutionParameters(InRounds):
    """The fields of the attack, and what follows from them alone."""

    kind: Literal["substitution"] = "substitution"
    risk: ClassVar[Risk] = SUBSTITUTION
    metrics: ClassVar[tuple[Metric, ...]] = (ROBUST_ACCURACY,)

    changes: tuple[Changes, ...] = Field(
        (1, 2, 3), min_length=1, max_length=100, description="how many features or tokens may change, ascending"
    )
    gate_changes: Changes | Literal["auto"] = Field(
        "auto", description="which of `changes` the policy judges; auto: where the dense model keeps about half"
    )
    reach: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="share of its range that a number of a table can move by, 0: only categories change; auto: the "
        "largest at which the dense model keeps about half",
    )
    costs: dict[str, Changes] = Field(
        {}, max_length=10_000, description="by feature (name or position): how many changes it counts as, where not 1"
    )
    allowed: tuple[Annotated[int, Field(ge=0, le=2**24)], ...] = Field(
        (), max_length=1_000_000, description="ids a token can become; default: those that the records hold"
    )
    padding: Annotated[int, Field(ge=0, le=2**24)] | None = Field(
        None, description="id of places that are not used, which stay so; default: as model and records show it"
    )
    first: PositiveInt = Field(
        1000, le=10_000_000, description="single changes the model is asked about by record: all, or so many at random"
    )
    further: PositiveInt = Field(64, le=100_000, description="changes tried from each state that is gone on from")
    beam: PositiveInt = Field(4, le=1000, description="states that are gone on from after each change")
    embedding_steps: Annotated[int, Field(ge=0, le=100_000)] = Field(
        20, description="of tokens: steps in the space of their embeddings, for each number of changes; 0: none"
    )
    embedding_epsilon: Annotated[float, Field(gt=0, le=1000)] = Field(
        4.0, description="how far an embedding moves there, in typical distances of a token's from the mean of all"
    )
    chosen: Chosen | None = Field(None, description="what a probe chose, as a resolved plan holds it")

    @field_validator("changes")
    @classmethod
    def _ascending(cls, changes: tuple[int, ...]) -> tuple[int, ...]:
        if list(changes) != sorted(set(changes)):
            raise ValueError("changes must ascend and differ, for example [1, 2, 3]")
        return changes

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gate_changes != "auto" and self.gate_changes not in self.changes:
            raise ValueError(f"gate_changes {self.gate_changes} is not among changes {list(self.changes)}")
        if self.chosen is not None and (self.reach, self.gate_changes) != (self.chosen.reach, self.chosen.changes):
            raise ValueError("chosen is what a probe gives and belongs to reach and gate_changes: leave it out")
        return self

    @property
    def open(self) -> bool:
        """Whether the gate or the reach is still to be chosen (`settled_at`)."""
        return "auto" in (self.gate_changes, self.reach)

    @property
    def gate(self) -> int:
        """The number of changes the policy judges, once there is one."""
        assert self.gate_changes != "auto", "the gate is still to be chosen"
        return self.gate_changes

    @property
    def effort(self) -> Effort:
        """Of one run; about half of the records are let go early."""
        states = 1 + (self.changes[-1] - 1) * self.beam
        soft = self.embedding_steps * self.changes[-1]
        answers = min(self.first, TYPICAL_MOVES) + 2 * states * self.further + soft
        return Effort(0.5 * answers * self.count, 0.5 * (states + soft) * self.count, seconds=0.5)

    def settled_at(self, chosen: Chosen) -> Self:
        """The same attack at what a probe chose."""
        return self.model_copy(update={"gate_changes": chosen.changes, "reach": chosen.reach, "chosen": chosen})

    def features(self, case: Case, reach: float | None = None) -> Features:
        """What can change in the case's records: `features_of`, at this reach or the attack's own.

        Raises:
            NotApplicable, InputError: as `features_of`.
        """
        if reach is None:
            assert self.reach != "auto", "the reach is still to be chosen"
            reach = self.reach
        return features_of(case, reach=reach, costs=self.costs, allowed=self.allowed, padding=self.padding)
