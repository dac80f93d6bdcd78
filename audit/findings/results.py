"""The finished results of a suite: as rows are made from them, and as an attack may look at its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...attacks.access import Flag
from ...attacks.attack import Round
from ...attacks.case import Evidence
from ...attacks.preparation import Audited, Preparation, Prepared, Ran, Scope
from ...attacks.statistics import rates
from ...attacks.statistics.rates import no_better_than_guessing
from ..engine.cells import Cell, Result
from ..subject.audited import AuditedModel
from ..suite.attack_cells import attack_cell, evidence_of
from ..suite.suite import Reached, Suite


class Finished(Protocol):
    """The stored results of an audit, as rows are made from them."""

    def has(self, key: str) -> bool: ...
    def get(self, key: str) -> Result: ...
    def evidence(self, key: str) -> tuple[str, str]:
        """Where a result lies, seen from the output folder, and the sha256 (hex) of its manifest."""

    def keep_failure(self, cell: Cell, trace: str) -> None:
        """Keeps the traceback of work that failed."""


@dataclass(frozen=True)
class AuditResults:
    """None where a cell did not finish or did not apply."""

    suite: Suite
    get: Callable[[str], Result | None]
    why: Callable[[str], str]  # the reason why `get` gave None
    evidence: Callable[[str], tuple[str, str]]  # path and digest of a cell's evidence
    command: str  # how this audit was started, up to --only
    reached: Reached = field(default_factory=dict)

    def of(self, model: str) -> Result | None:
        """What was stored of a model when it was made or taken."""
        return self.get(self.suite.model_cell(model))

    def round_of(self, label: str, model: str) -> tuple[int, Round]:
        """The last round of an attack on a model, and which one that is."""
        position = self.reached.get((label, model), 0)
        return position, self.suite.rounds[label][position]

    def flags(self, model: AuditedModel) -> set[str]:
        """What is wrong with a model whatever is measured on it.

        One no better than guessing is neither robust nor private; compression that looked at members voids what a
        private training promised; a finished file that is asked in other units than it was trained on answers at
        random, which looks like strength; of one that answers otherwise each time nothing is known; one that is far
        better than its parent is not that, compressed (a little better it may be, where it is declared to have
        been trained further); and records that are copies say of none what they seem to.
        """
        made = self.of(model.name)
        labels = self.suite.subject.data.non_members.y.numpy()
        correct = None if made is None else made.arrays.get("evidence/correct")
        guessing = correct is not None and no_better_than_guessing(correct, labels)
        found = {Flag.AT_CHANCE.value} if guessing else set()
        if model.void is not None:
            found.add(Flag.EPSILON_VOID.value)
        if model.file is not None and model.file.doubtful:
            found.add(Flag.INTERFACE_DOUBTFUL.value)
        if made is not None and made.document.get("varies"):
            found.add(Flag.ANSWERS_VARY.value)
        if made is not None and model.file is not None and not model.is_dense and model.parent is not None:
            theirs, trained = self.of(model.parent.name), model.recipe is not None and model.recipe.trains
            if theirs is not None and _far_better(made, theirs, trained=trained):
                found.add(Flag.BEYOND_PARENT.value)
        doubts = {name for name, _ in self.suite.subject.data.doubts}
        return found | (doubts - {Flag.REPEATED_MEMBERS.value})  # which concern what is asked about members only


FAR = 0.1  # more of the records right, surely
CLEARLY = 0.02  # the same, where that is half of the parent's errors


def _far_better(made: Result, parents: Result, *, trained: bool) -> bool:
    """Whether a file is right where its parent is not more often than any compression explains, surely.

    Files of models that predict values are refused before (`finished_file.open_all`).
    """
    own, theirs = made.arrays["evidence/correct"], parents.arrays["evidence/correct"]
    surely = rates.paired_change(own, theirs).low
    if surely > FAR:
        return True
    return not trained and surely > CLEARLY and float(np.mean(~own)) < float(np.mean(~theirs)) / 2


@dataclass(frozen=True)
class AttackResults:
    """What one attack may look at when it measures one model: `attacks.preparation.Results`."""

    results: AuditResults
    scope: Scope
    model: Audited
    level: float

    def evidence(self, ran: Ran) -> Evidence | None:
        result = self.results.get(attack_cell(self.scope.label, ran.model, ran.detail))
        return None if result is None else evidence_of(result)

    def why(self, ran: Ran) -> str:
        cell = attack_cell(self.scope.label, ran.model, ran.detail)
        if not self.results.suite.has(cell):  # an attack on another sort of models has one cell for all its runs
            cell = attack_cell(self.scope.label, ran.model)
        return self.results.why(cell)

    def prepared(self, preparation: Preparation) -> Prepared | None:
        result = self.results.get(preparation.name)
        return None if result is None else Prepared(result.arrays, result.document)

    def flags(self, model: str) -> set[str]:
        return self.results.flags(self.results.suite.models[model])

    def agreement(self, model: str) -> dict[str, tuple[float, int]]:
        made = self.results.of(model)
        certificate = None if made is None else made.document["certificate"]
        kinds = {} if certificate is None else certificate["kinds"]
        return {kind: (one["label_agreement"], one["n"]) for kind, one in kinds.items()}

    def without_twin(self, model: str) -> str | None:
        made = self.results.of(model)
        if made is None or made.document["certificate"] is not None:
            return None
        return str(made.document["no_twin"])
