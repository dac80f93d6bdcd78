"""Attribute inference: hidden columns of records guessed with the model, against the best guess without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, require
from ..access import Access, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Comparison, Floats, Mean, Measurement, ThreatModel
from ..preparation import Audited, Inputs, Ran, Results, Scope
from ..risk import Metric, Risk
from .imputation import Column, Imputed, attacked, columns, records_of
from .risk import ATTRIBUTES, GAIN, MEMBERS_MORE

MEMBERS = "members"  # detail of a finding
ABOUT = "hidden categories of a record whose other columns and label are known"


@dataclass(frozen=True)
class Hidden:
    """What is guessed: records, members first, and their ids; columns; what imputers say, named as in `Imputed`."""

    members: np.ndarray[Any, np.dtype[np.int64]]
    others: np.ndarray[Any, np.dtype[np.int64]]
    records: Records
    columns: tuple[Column, ...]
    imputed: Mapping[str, np.ndarray[Any, Any]]


@ATTACKS.register
class Attributes(Attack):
    """A hidden column of a record, guessed with the model and without it (Jayaraman & Evans 2022, arXiv:2209.01292).

    By Bayes: how likely a category is given the other columns, times the probability that the model gives the record's
    label with that category filled in. The baseline is the imputer that knows the label too. What counts is the gain
    over it, on members and on non-members: a model that only knows the world gains on both alike, or on none.

    Evidence of 2 n records, members first, and c columns: `members`, `others` int64 [n], their ids; `imputed`,
    `guessed` bool [2 n, c], whether the baseline and the attack name the right category.
    """

    kind: Literal["attributes"] = "attributes"
    records: PositiveInt = Field(1000, le=10_000_000, description="members guessed at, and as many non-members")
    risk: ClassVar[Risk] = ATTRIBUTES
    metrics: ClassVar[tuple[Metric, ...]] = (GAIN, MEMBERS_MORE)

    def usual(self, data: Data) -> bool:
        return len(data.shape) == 1 and bool(data.structure.one_hot)

    def unfit(self, scope: Scope) -> str | None:
        if not columns(scope.data):
            return "inputs without a column of 2 to 16 categories (one-hot)"
        return "data without training records" if scope.data.members is None else None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if self.unfit(scope) is not None:
            return ()
        need = Imputed(self.records)
        asked = 2 * self.records * sum(len(one.features) for one in columns(scope.data))
        effort = Effort(answers=asked)
        return (Run(needs=(need,), prepare=partial(_hidden, self.records), uses_parent=False, effort=effort),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        names = (model.name, *model.baselines) if self.runs(model, scope) else ()
        return tuple(Ran(name) for name in names)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", MEMBERS)

    def form(self, model: Audited, scope: Scope) -> Form:
        n, c = len(attacked(scope.data, self.records, scope.seed)[0]), len(columns(scope.data))
        layout = {"members": Array("int64", (n,)), "others": Array("int64", (n,))}
        layout |= {name: Array("bool", (2 * n, c)) for name in ("imputed", "guessed")}
        return Form(Document, layout, holds=partial(_holds, scope, self.records))

    def run(self, case: Case, *, seed: int) -> Evidence:
        hidden: Hidden | None = case.prepared
        if hidden is None or not hidden.columns or not len(hidden.records):
            raise NotApplicable("there is no hidden column to guess, or no training record")
        imputed, guessed, asked = [], [], 0
        for at, column in enumerate(hidden.columns):
            right = column.categories(hidden.records.x)
            likely = np.array(hidden.imputed[f"{at}/blind"])
            for category in range(len(column.features)):
                logits = case.deployed.logits(column.filled(hidden.records.x, category)).double().cpu()
                if torch.isnan(logits).any():
                    raise NotApplicable("the model answers some records with NaN")
                label = hidden.records.y.cpu().unsqueeze(1)
                likely[:, category] += torch.log_softmax(logits, 1).gather(1, label).squeeze(1).numpy()
                asked += len(label)
            imputed.append(hidden.imputed[f"{at}/labelled"].argmax(1) == right)
            guessed.append(likely.argmax(1) == right)
        arrays = {
            "members": hidden.members,
            "others": hidden.others,
            "imputed": np.stack(imputed, 1),
            "guessed": np.stack(guessed, 1),
        }
        return Evidence(arrays, {}, ledger=Ledger(queries=asked))

    def measure(self, results: Results) -> list[Measurement]:
        why = self.unfit(results.scope)
        evidence = None if why is not None else results.evidence(Ran(results.model.name))
        if evidence is None:
            return [Measurement(GAIN, ABOUT, None, reason=why or results.why(Ran(results.model.name)))]
        return measured(results, evidence)

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Attribute inference hides one column at a time and knows all others and the label; the imputers are a "
            "logistic regression and boosted trees on the attacker's records. A better imputer makes the gain smaller, "
            "a better attack larger."
        ]


def _hidden(records: int, inputs: Inputs) -> Hidden:
    scope = inputs.scope
    arrays = inputs.prepared(Imputed(records)).arrays
    inside, others = (one.numpy() for one in attacked(scope.data, records, scope.seed))
    return Hidden(inside, others, records_of(scope.data, records, scope.seed), columns(scope.data), arrays)


def _holds(scope: Scope, records: int, found: Document, arrays: Arrays, files: Mapping[str, Any]) -> None:
    inside, others = attacked(scope.data, records, scope.seed)
    require(np.array_equal(arrays["members"], inside.numpy()), "the members are others")
    require(np.array_equal(arrays["others"], others.numpy()), "the non-members are others")


def gains(evidence: Evidence) -> Floats:
    """Per record and column -1, 0 or 1: right with the model alone is 1, right by the imputer alone -1; [2 n, c]."""
    found: Floats = evidence.arrays["guessed"].astype(float) - evidence.arrays["imputed"].astype(float)
    return found


def measured(results: Results, evidence: Evidence) -> list[Measurement]:
    """The gain on members, its change against the models it is compared with, and what members have beyond others."""
    own, n = gains(evidence), len(evidence.arrays["members"])
    found = columns(results.scope.data)
    threat = ThreatModel(
        Access.SCORES,
        "knows a record but for one column, its label, and has records of its own for imputers",
        f"{len(own) * sum(len(one.features) for one in found):,} queries",
    )
    told = [(name, results.evidence(Ran(name))) for name in results.model.baselines]
    compared = tuple(
        Comparison(name, Mean(own[:n].mean(1)), Mean(gains(other)[:n].mean(1)))
        for name, other in told
        if other is not None
    )
    by_imputer, by_model = (100 * evidence.arrays[name][:n].mean(0) for name in ("imputed", "guessed"))
    notes = tuple(
        f"{column.name}: {before:.1f} % of the members guessed right without the model, {after:.1f} % with it."
        for column, before, after in zip(found, by_imputer, by_model, strict=True)
    )
    whole = Measurement(
        GAIN,
        ABOUT,
        Mean(own[:n].mean(1)),
        threat,
        available=n,
        comparisons=compared,
        groups={column.name[:64]: Mean(own[:n, at]) for at, column in enumerate(found)},
        notes=notes,
    )
    beyond = Mean(own[:n].mean(1) - own[n:].mean(1))  # both drawn at random: any pairing gives the interval
    more = Measurement(MEMBERS_MORE, f"{ABOUT}, members beyond others", beyond, threat, detail=MEMBERS, available=n)
    return [whole, more]
