"""Property inference: which share of its training records has a property, read from a model's answers and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, FiniteFloat, model_validator

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.data.structure import positions
from ...targets.errors import InputError, NotApplicable, failing_as_not_applicable, nearest_hint
from ...targets.form import Amount, Array, Arrays, Document, Form, Layout, require
from ..access import Access, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement
from ..membership.signals import SAME, margin, margins_again
from ..preparation import Audited, Basis, Deployed, Inputs, Need, Results, Scope, Weights
from ..risk import Metric, Risk
from ..structure.shipped import weights_in
from .measure import measure_property
from .preparations import About, ToldAtShares, told_by_shares
from .risk import PROPERTY, TOLD
from .shares import Question, asked_of
from .telling import Floats, of_margins, of_weights, reader

NO_PROPERTY = "no property declared"
HOW = "name one: {kind: property-inference, column: 3} or {kind: property-inference, label: a class}"
Portion = Annotated[float, Field(gt=0, lt=1)]


class Summary(Document):
    """`Evidence.summary`: `About`, what is read by ("scores", "weights"), the better one on the attacker's models
    first, and by name their error there as a share of the variance."""

    sampled: About
    parts: tuple[Literal["scores", "weights"], ...]
    errors: dict[str, Amount]


@dataclass(frozen=True, eq=False)
class PropertyCase:
    """What the attack finds in `Case.prepared`.

    Args:
        phi, weights: of the models at shares, as in `ToldAtShares`.
        asked: gives the records that models are asked about; read: of a shipped file, the same statistics.
    """

    question: Question
    sampled: About
    phi: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any]
    asked: Callable[[], Records]
    read: Callable[[bytes], Floats]

    @property
    def share(self) -> Floats:
        return np.tile(np.array(self.sampled.shares), self.question.repetitions)


@ATTACKS.register
class PropertyInference(Attack):
    """Which of two or more shares a property has among the training records (Ateniese et al. 2015, arXiv:1306.4447;
    Suri & Evans 2022, arXiv:2109.06024).

    The dense model's training is repeated on samples in which the property has one share or another, and every recipe
    is replayed on the same models. A ridge regression learns, on models trained on records of the attacker's, to read
    the share from margins on the attacker's records ("scores") and from statistics of the weights that do not depend on
    the order of units ("weights", read off the shipped file); which of the two is reported is chosen on those models.
    It is judged on other models, trained on samples of the audited model's own training records: n counts models.
    Samples are smaller than those, and repeated, so that as many steps are taken.

    Evidence, for h models that were held out: `phi` float32 [a], margins of the deployed model; where its weights can
    be read, `weights` float64 [f]; for each part `read/<part>` float64 [h] and `own/<part>` float64 [1], the shares
    read; `share` float64 [h].
    """

    kind: Literal["property-inference"] = "property-inference"
    risk: ClassVar[Risk] = PROPERTY
    metrics: ClassVar[tuple[Metric, ...]] = (TOLD,)
    access: ClassVar[Access] = Access.WHITE_BOX

    column: int | str | None = Field(None, description="of a table, by position or name: the property is a value in it")
    above: FiniteFloat | None = Field(
        None, description="the property is more than this in the column; default: the upper of two values, else more "
        "than the median of the attacker's records",
    )  # fmt: skip
    label: str | None = Field(None, min_length=1, description="name of a class: the property is to be of it")
    shares: tuple[Portion, ...] | None = Field(
        None, min_length=2, max_length=10,
        description="of the training records, ascending; default: half and one and a half of what is usual",
    )  # fmt: skip
    models: int = Field(16, ge=8, le=10_000, multiple_of=2, description="trained at each share, half of them held out")

    @model_validator(mode="after")
    def _makes_sense(self) -> PropertyInference:
        if self.column is not None and self.label is not None:
            raise ValueError("`column` and `label` are two properties: name one of them")
        if self.above is not None and self.column is None:
            raise ValueError("`above` is a value in a `column`, and none is named")
        if self.shares is not None and list(self.shares) != sorted(set(self.shares)):
            raise ValueError("`shares` ascend, and none stands twice")
        return self

    def unfit(self, scope: Scope) -> str | None:
        if self.column is None and self.label is None:
            return NO_PROPERTY
        return "no training records" if scope.data.members is None else None

    def usual(self, data: Data) -> bool:
        return data.members is not None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        told = self._told(model, scope)
        if told is None:
            return ()
        parent = told.chunks[0].parent.name
        needs: tuple[Need, ...] = (told, Deployed(parent), Weights(parent))
        prepare, effort = partial(_prepared, told, parent), Effort(answers=asked_of(scope.data), seconds=0.5)
        return (Run(needs=needs, prepare=prepare, uses_parent=False, effort=effort),)

    def form(self, model: Audited, scope: Scope) -> Form:
        told = self._told(model, scope)
        if told is None:
            return Form()
        held = int(told.question.held_out.sum())

        def layout(summary: Summary) -> Layout:
            found = {"phi": Array("float32", (asked_of(scope.data),)), "share": Array("float64", (held,), 0, 1)}
            found |= {"weights": Array("float64", (None,))} if "weights" in summary.parts else {}
            found |= {f"read/{part}": Array("float64", (held,)) for part in summary.parts}
            return {**found, **{f"own/{part}": Array("float64", (1,)) for part in summary.parts}}

        def holds(summary: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(set(summary.parts) in ({"scores"}, {"scores", "weights"}), "its parts are none that there are")
            require(set(summary.errors) == {*summary.parts}, "its errors are of other parts")
            require(len(set(arrays["share"].tolist())) >= 2, "its models are all at one share")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        given = case.prepared
        if not isinstance(given, PropertyCase):
            raise NotApplicable(f"not applicable: {NO_PROPERTY}; {HOW}")
        asked = given.asked()
        phi, weights, skipped = margin(case.deployed.logits(asked.x), asked.y), None, {}
        try:
            with failing_as_not_applicable("the file's weights cannot be read beside the dense model's"):
                weights = given.read(case.shipped)
        except NotApplicable as error:
            skipped["weights"] = str(error)
        return _evidence(phi, weights, given, skipped, Ledger(queries=len(phi)))

    def measure(self, results: Results) -> list[Measurement]:
        model, scope = results.model, results.scope
        why = self.unfit(scope) or why_not(model)
        if why == NO_PROPERTY:
            why = f"{NO_PROPERTY}; {HOW}"
        return measure_property(results, None if why is None else f"not applicable: {why}")

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        given = case.prepared
        if not isinstance(given, PropertyCase):
            return []
        wrong = margins_again(case.deployed, given.asked(), evidence.arrays["phi"])
        if "weights" in evidence.arrays:
            again = given.read(case.shipped)
            same = again.shape == evidence.arrays["weights"].shape
            if not same or not np.allclose(again, evidence.arrays["weights"], rtol=SAME, atol=SAME):
                wrong.append("the file's weights are others")
        return wrong

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        given, stored = basis.prepared(), evidence.arrays
        if not isinstance(given, PropertyCase):
            return []
        again = _evidence(stored["phi"], stored.get("weights"), given, {}, evidence.ledger)
        wrong = [
            f"{name} is not what follows from the models at shares"
            for name, one in again.arrays.items()
            if name not in stored or not np.allclose(stored[name], one, rtol=SAME, atol=SAME)
        ]
        same = Summary.model_validate(again.summary).parts == Summary.model_validate(evidence.summary).parts
        same &= again.summary["sampled"] == evidence.summary["sampled"]
        return wrong if same else [*wrong, "its summary is not what follows from the models at shares"]

    def limits(self, scope: Scope) -> list[str]:
        if self.unfit(scope) is not None:
            return []
        return [
            "Property inference tells shares apart that are asked about, by linear readers; closer shares are told "
            "less often. Its models are trained on samples, and as modules before they are exported."
        ]

    def _told(self, model: Audited, scope: Scope) -> ToldAtShares | None:
        if self.unfit(scope) is not None or why_not(model) is not None or model.parent is None:
            return None
        return told_by_shares(scope, model.parent, model.recipe, self._question(scope.data))

    def _question(self, data: Data) -> Question:
        column = label = None
        if self.label is not None:
            if self.label not in data.class_names:
                hint = nearest_hint(self.label, list(data.class_names))
                raise InputError(f"property-inference: label: {self.label!r} is no class of these records.{hint}")
            label = data.class_names.index(self.label)
        elif self.column is not None:
            if len(data.shape) != 1 or data.structure.tokens:
                raise InputError(
                    "property-inference: column names a column of a table, and these records are none. Name a class "
                    "instead (label)."
                )
            found = positions(self.column, "property-inference: column", data.shape[0], data.structure.names, "data")
            if len(found) != 1:
                raise InputError(f"property-inference: column: {self.column!r} are several columns. Name one.")
            column = int(found[0])
        return Question(column, label, self.above, self.shares, self.models)


def why_not(model: Audited) -> str | None:
    """Why a model's training cannot be repeated; None: it can."""
    if model.parent is None:
        return "the training of the model that it came from is not known"
    return "how the file was compressed is not known, so it is not repeated" if model.undeclared else None


def _prepared(told: ToldAtShares, parent: str, inputs: Inputs) -> PropertyCase:
    data, prepared = inputs.scope.data, inputs.prepared(told)

    def read(shipped: bytes) -> Floats:
        return of_weights(weights_in(shipped, inputs.case(parent).shipped, inputs.weights(parent)))

    return PropertyCase(
        told.question,
        About.model_validate({**prepared.document, "shares": tuple(prepared.document["shares"])}),
        prepared.arrays["phi"],
        prepared.arrays["weights"],
        lambda: data.attacker.take(torch.arange(asked_of(data))),
        read,
    )


def _evidence(
    phi: np.ndarray[Any, Any], weights: Floats | None, given: PropertyCase, skipped: dict[str, str], ledger: Ledger
) -> Evidence:
    """All that follows from what the models tell."""
    held, share = given.question.held_out, given.share
    told = {"scores": (of_margins(given.phi), of_margins(phi[None]))}
    if weights is not None and weights.shape == given.weights.shape[1:]:
        told["weights"] = (given.weights, weights[None])
    elif not skipped:
        skipped = {"weights": "its layers are others than those of the models at shares"}
    if not all(np.isfinite(one).all() for pair in told.values() for one in pair):
        raise NotApplicable("the model, or one trained at a share, answers with numbers that are not finite")
    arrays: dict[str, np.ndarray[Any, Any]] = {"phi": phi, "share": share[held]}
    errors = {}
    for part, (known, own) in told.items():
        by, errors[part] = reader(known[~held], share[~held])
        arrays |= {f"read/{part}": by.read(known[held]), f"own/{part}": by.read(own)}
    if "weights" in told and weights is not None:
        arrays["weights"] = weights
    summary = Summary(sampled=given.sampled, parts=tuple(sorted(errors, key=lambda one: errors[one])), errors=errors)
    return Evidence(arrays, summary.model_dump(mode="json"), skipped=skipped, ledger=ledger)
