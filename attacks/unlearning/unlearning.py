"""Unlearning survival: is what was to be forgotten forgotten in the file that ships?"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import InputError, NotApplicable, nearest_hint
from ...targets.form import Form
from ..access import Access, Flag, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement
from ..membership.preparations import enough_for_all, population_of
from ..membership.replayed import SignalsOfShadows, own_signals
from ..membership.scoring import scores
from ..membership.scoring.pseudo_targets import ENOUGH_SHADOWS
from ..membership.signals import SAME, impossible, margin, margins_again, phi_of
from ..preparation import Audited, Basis, Deployed, Inputs, Need, Results, Scope
from ..risk import Metric, Risk
from .evidence_form import evidence_form
from .measure import NOTHING, RECALL, measure_unlearning, unseen
from .risk import FORGET_AUC, FORGET_RECALL, UNLEARNING
from .scores import ForgettingCase, known_beyond, null_of


@ATTACKS.register
class Unlearning(Attack):
    """Whether records that were to be forgotten (`data: {forget: ...}`) are known to a model, beyond chance.

    Quantisation can bring back what unlearning hid: of the knowledge to be forgotten 21 % remained at full precision
    and 83 % at 4 bits (Zhang et al. 2024, arXiv:2410.16454). Each record's margin is compared with those of shadow
    models that never saw it, compressed as the candidate was, or with those of a model retrained without it; then the
    records to forget with records that the model never saw. Membership inference's shadows serve, for the records to
    forget are no members: nothing is trained for this attack.

    Evidence arrays, of the f records to forget and then h others, evaluation records of the population: `ids` int64 [h]
    (of the others), `is_forgotten` bool [f + h], `phi` float32 [f + h], the deployed model's logit margin, and
    `score/<name>` float64 [f + h] for each of "shadows" (see `scores.known_beyond`), "retrained" (margin beyond the
    retrained model's) and, without shadows, "population" (see `membership.scores.population`); higher: better known.

    Summary: `headline`, the first of these that there is; `forgotten`, f; `shadows`, their number; `null`: `Null` as an
    object, None below 4 shadows.
    """

    kind: Literal["unlearning"] = "unlearning"
    risk: ClassVar[Risk] = UNLEARNING
    metrics: ClassVar[tuple[Metric, ...]] = (FORGET_AUC, FORGET_RECALL)
    access: ClassVar[Access] = Access.SCORES

    retrained: str | None = Field(
        None,
        min_length=1,
        description="name of a candidate that was trained anew without the records to forget (a finished file with "
        "`control: true`, say): margins are compared with its, too",
    )

    def unfit(self, scope: Scope) -> str | None:
        return NOTHING if scope.data.forgotten is None else None

    def usual(self, data: Data) -> bool:
        return data.forgotten is not None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if scope.data.forgotten is None:
            return ()
        if self.retrained is not None and self.retrained not in scope.models:
            hint = nearest_hint(self.retrained, list(scope.models))
            raise InputError(f"unlearning: retrained: {self.retrained!r} is no model of this plan.{hint}")
        own = own_signals(model, scope)
        control = None if self.retrained is None else Deployed(self.retrained)
        needs: list[Need] = [one for one in (own, control) if one is not None]
        asked = len(scope.data.forgotten) + population_of(scope).attacked // 2
        return (
            Run(
                needs=tuple(needs),
                prepare=partial(forgetting_case, own, self.retrained),
                uses_parent=False,
                effort=Effort(answers=asked * (1.0 + (control is not None))),
            ),
        )

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", RECALL)

    def form(self, model: Audited, scope: Scope) -> Form:
        return evidence_form(model, scope, self.retrained is not None)

    def run(self, case: Case, *, seed: int) -> Evidence:
        asked = case.prepared
        if not isinstance(asked, ForgettingCase):
            raise NotApplicable(f"{NOTHING}: name them under data.forget")
        phi = margin(case.deployed.logits(asked.records.x), asked.records.y)
        ledger, alone = Ledger(queries=len(phi)), None
        if asked.phi is None:
            known = margin(case.deployed.logits(case.attacker.x), case.attacker.y)
            ledger.queries += len(known)
            labels = asked.records.y.cpu().numpy()
            alone = scores.population(phi, labels, known, case.attacker.y.cpu().numpy())
        every = [one for one in (phi, asked.phi, asked.control, alone) if one is not None]
        if not all(np.isfinite(one).all() for one in every):
            raise NotApplicable("the model, a shadow or the retrained model answers with numbers that are not finite")
        return _evidence(phi, alone, asked, ledger)

    def measure(self, results: Results) -> list[Measurement]:
        return measure_unlearning(results)

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        asked, stored = case.prepared, evidence.arrays
        if not isinstance(asked, ForgettingCase) or not np.array_equal(stored["ids"], asked.ids):
            return ["records were asked about that are none of the population"]
        return margins_again(case.deployed, asked.records, stored["phi"])

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        asked, stored = basis.prepared(), evidence.arrays
        if not isinstance(asked, ForgettingCase):
            return []
        phi, others = stored["phi"], ~stored["is_forgotten"]
        if wrong := impossible(basis, stored["ids"], phi[others], asked.records.y):
            return wrong
        again = _evidence(phi, stored.get("score/population"), asked, evidence.ledger)
        wrong = [
            f"{name} is not what follows from the margins"
            for name, array in again.arrays.items()
            if name not in stored or not np.allclose(stored[name], array, rtol=SAME, atol=SAME)
        ]
        wrong += [] if again.flags == evidence.flags else ["its trust flags are others than follow from the margins"]
        told, known = again.summary["null"], evidence.summary["null"]
        same = (told is None) == (known is None) and (told is None or _close(told, known))
        if not same or any(again.summary[name] != evidence.summary[name] for name in ("headline", "shadows")):
            wrong.append("its summary is not what follows from the shadow models")
        return wrong

    def power(self, scope: Scope) -> list[str]:
        return [] if scope.data.forgotten is None else unseen(len(scope.data.forgotten), population_of(scope))

    def limits(self, scope: Scope) -> list[str]:
        return [
            "That forgotten records are not recognised says that these attackers could not tell them from records the "
            "model never saw. It is no proof that nothing of them is left, nor that a deletion was lawful or complete."
        ]


def forgetting_case(own: SignalsOfShadows | None, retrained: str | None, inputs: Inputs) -> ForgettingCase:
    """The records to forget and as many others as membership inference attacks, with what shadows say of them."""
    forgotten, population = inputs.scope.data.forgotten, population_of(inputs.scope)
    assert forgotten is not None, "a run is declared only where there is something to forget"
    others = np.flatnonzero(~population.is_member)
    unseen_records = population.targets.take(torch.from_numpy(others))
    records = Records(torch.cat([forgotten.x, unseen_records.x]), torch.cat([forgotten.y, unseen_records.y]))
    inside = phi = None
    if own is not None:
        # as many for every model, so that a candidate is compared with its parent under equal ones
        count = enough_for_all(inputs.scope)
        arrays = inputs.prepared(own).arrays
        none = np.zeros((len(arrays["phi"][:count]), len(forgotten)), dtype=bool)
        inside = np.hstack([none, arrays["inside"][:count, others]])
        phi = np.hstack([arrays["forgotten"][:count], arrays["phi"][:count, others]])
    control = None if retrained is None else phi_of(inputs.deployed(retrained), records)
    return ForgettingCase(records, len(forgotten), population.ids[others], inside, phi, control)


def _evidence(
    phi: np.ndarray[Any, np.dtype[np.float32]],
    alone: np.ndarray[Any, np.dtype[np.float64]] | None,
    asked: ForgettingCase,
    ledger: Ledger,
) -> Evidence:
    """All that follows from a model's margins; `alone`: the score that does without shadows."""
    found: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    flags = []
    if asked.phi is not None and asked.inside is not None:
        found["shadows"] = known_beyond(phi[None], asked.phi, ~asked.inside)[0]
        flags += [Flag.FEW_SHADOWS.value] if len(asked.phi) < ENOUGH_SHADOWS else []
    if asked.control is not None:
        found["retrained"] = phi.astype(np.float64) - asked.control.astype(np.float64)
    if alone is not None:
        found["population"] = alone
        flags += [] if "retrained" in found else [Flag.NO_SHADOWS.value]
    headline, null = next(iter(found)), null_of(asked)
    arrays = {"ids": asked.ids, "is_forgotten": asked.is_forgotten, "phi": phi}
    return Evidence(
        arrays={**arrays, **{f"score/{name}": score for name, score in found.items()}},
        summary={
            "headline": headline,
            "forgotten": asked.forgotten,
            "shadows": 0 if asked.phi is None else len(asked.phi),
            "null": None if null is None else asdict(null),
        },
        flags={headline: flags} if flags else {},
        ledger=ledger,
    )


def _close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) <= SAME for name in one)
