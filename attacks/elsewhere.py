"""What an attack found, asked again in the other runtimes of a plan: a file can be safer in one than in another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..targets.form import Array, Document, Form
from .effort import Effort
from .measurement import Bools, MeasuredPart, Rate
from .preparation import Elsewhere, Inputs, Need, Preparation, Prepared, Ran, Results, Scope


@dataclass(frozen=True)
class AskedElsewhere(Preparation):
    """An attack's records, and what it made of them, answered by the model in another runtime.

    Of the evidence it takes `ids`, int64 [n], of non-members, and `adversarial`, float32 [n, *shape].
    Array `wrong`, bool [n]: misclassified there, as it is or as it was attacked.
    """

    phase: ClassVar[str] = "runtimes"
    label: str
    model: str
    runtime: str
    records: int

    @property
    def name(self) -> str:
        return f"elsewhere/{self.label}/{self.runtime}/{self.model}"

    @property
    def words(self) -> str:
        return f"what was found on {self.model} asked again in {self.runtime} ({self.records} records)"

    @property
    def identity(self) -> Any:
        return ["elsewhere", self.records]

    @property
    def effort(self) -> Effort:
        return Effort(answers=2 * self.records)

    @property
    def needs(self) -> tuple[Need, ...]:
        return Ran(self.model), Elsewhere(self.model, self.runtime)

    def compute(self, inputs: Inputs) -> Prepared:
        found = inputs.evidence(Ran(self.model)).arrays
        target = inputs.elsewhere(self.model, self.runtime)
        records = inputs.scope.data.non_members.take(torch.from_numpy(np.array(found["ids"])))
        wrong = target.logits(records.x).argmax(1) != records.y
        wrong |= target.logits(torch.from_numpy(np.array(found["adversarial"]))).argmax(1) != records.y
        return Prepared(arrays={"wrong": wrong.cpu().numpy()})

    def form(self, scope: Scope) -> Form:
        return Form(Document, {"wrong": Array("bool", (min(self.records, len(scope.data.evaluation_ids)),))})


def elsewhere(scope: Scope, models: tuple[str, ...], records: int) -> list[AskedElsewhere]:
    """One for each model, by name, and each other runtime."""
    return [AskedElsewhere(scope.label, model, runtime, records) for model in models for runtime in scope.runtimes]


def wrong_elsewhere(results: Results, model: str, records: int) -> dict[str, Bools]:
    """By what a part of a figure is called, bool [n]: the records that a model gets wrong in each other runtime."""
    return {
        f"asked again in {results.scope.runtimes[one.runtime]}": found.arrays["wrong"].astype(bool)
        for one in elsewhere(results.scope, (model,), records)
        if (found := results.prepared(one)) is not None
    }


def parts_elsewhere(wrong: Mapping[str, Bools], counted: Collection[str] | None) -> list[MeasuredPart]:
    """Of a figure, from `wrong_elsewhere`.

    Args:
        counted: the parts that count towards its change; None: there is none.
    """
    return [MeasuredPart(name, Rate(~one), counted=counted is None or name in counted) for name, one in wrong.items()]
