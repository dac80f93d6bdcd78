"""Membership inference: was this record among those the model was trained on?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...targets.errors import NotApplicable
from ...targets.form import Form
from ...targets.model import Target
from ...targets.seeds import derive
from ..access import Access, Flag, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..measurement import Measurement
from ..preparation import Audited, Basis, Need, Ran, Results, Scope
from ..risk import Metric, Risk
from .averaging import Averaged, neighbourhood
from .blind import blind_scores
from .case import MembershipCase, ShadowSignals
from .evidence_form import evidence_form
from .likeness import masked, on_scale_of, restored, unlike
from .measure import AUC_DETAIL, leak_seen, measure_membership, unseen_leaks
from .preparations import population_of, shadow_count, shadow_counts
from .risk import AUC, MEMBERSHIP, TPR
from .runs import membership_run, run_detail
from .scoring import scores
from .scoring.pseudo_targets import ENOUGH_SHADOWS, Figures, choose, pseudo_targets, score_all, tells_tpr, tpr_by_half
from .scoring.quantile import quantile
from .signals import SAME, impossible, margin, margins_again

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Margins = np.ndarray[Any, np.dtype[np.floating[Any]]]

EXTRA = ("score/population", "score/quantile", "restored")  # arrays that take more than margins


@ATTACKS.register
class Membership(Attack):
    """LOSS, calibrated loss, LiRA, BaVarIA and RMIA against the scores of the deployed model, with shadow models; LOSS,
    population and quantile without.

    Evidence arrays, per attacked record (members first): `ids` int64, `is_member` bool, `phi` float32 (the deployed
    model's logit margin), `blind` float64, and `score/<name>` float64 for "loss" and each of `scores.WITH_SHADOWS` with
    "/own" and "/dense" behind it (compressed and uncompressed shadows; the latter only where the case has both).
    With one shadow "loss" and "rmia/own". Without shadows, where nobody knows how the model was trained or the plan
    trains none for it: "loss", "population" and "quantile", of which the second is the headline, named beforehand.
    Higher scores mean "more likely a member". `restored` float32, where the model masks its scores: the margins that
    scores with shadows are made of instead (see `likeness.restored`).

    Summary: `headline` and `headline_auc`, the names the findings report, by TPR and by AUC; `n`; `shadows` by kind;
    `restored`, whether there is such an array; `pseudo_targets`: by name `targets`, `tpr_mean`, `tpr_sd`, `auc_mean`,
    `auc_sd` over the shadows of the own kind, each attacked in turn
    without itself and its complement ("leave pair out"). These measure the training procedure, not the audited model;
    a headline is the best of them, so the audited model has no say in it. `untrained_auc` and `untrained_tpr`, each
    with `_sd`: of the audited model's members against its non-members where the shadow was trained on neither; .5 and
    .01 unless the two sorts of records differ in what the attack sees. `tpr_half`, of the headline alone: `tpr_mean`
    where half of the shadows attack the other half. TPR is None below 100 non-members; all are empty below 4 own
    shadows.
    """

    kind: Literal["membership"] = "membership"
    neighbours: int = Field(
        1, ge=1, le=1000, description="of a record, whose answers are averaged where noise decides them; 1: it alone"
    )
    risk: ClassVar[Risk] = MEMBERSHIP
    metrics: ClassVar[tuple[Metric, ...]] = (TPR, AUC)
    access: ClassVar[Access] = Access.SCORES

    def unfit(self, scope: Scope) -> str | None:
        return "no training records" if scope.data.members is None else None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        """The attack with every shadow there is; and on its baselines with no more than it has on this model.

        More shadows make a stronger attack, so a candidate attacked with 16 is compared with its parent under 16.
        """
        if scope.data.members is None:
            return ()
        alone = neighbourhood(scope.data.bounds, scope.data.shape) is None
        runs = [membership_run(model, scope, neighbours=1 if alone else self.neighbours)]
        plain = self.model_copy(update={"neighbours": 1})
        for name in model.baselines:
            baseline = scope.models[name]
            full = shadow_count(scope, baseline.parent, None)
            fewer = {count for count in shadow_counts(model, scope) if count < full}
            runs += [replace(membership_run(baseline, scope, shadows=count), attack=plain) for count in sorted(fewer)]
        return tuple(runs)

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        found = [Ran(model.name)]
        for name in model.baselines:
            counts = sorted(set(shadow_counts(model, scope)))
            found += [Ran(name, run_detail(scope.models[name], scope, count)) for count in counts]
        return tuple(found)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", AUC_DETAIL)

    def form(self, model: Audited, scope: Scope) -> Form:
        return evidence_form(model, scope)

    def measure(self, results: Results) -> list[Measurement]:
        return measure_membership(results)

    def power(self, scope: Scope) -> list[str]:
        if scope.data.members is None:
            return []
        return unseen_leaks(scope, population_of(scope).attacked // 2)

    def leak_seen(self, scope: Scope, shadows: int) -> float | None:
        return None if scope.data.members is None else leak_seen(population_of(scope).attacked // 2, shadows)

    def limits(self, scope: Scope) -> list[str]:
        sentences = [
            "A passed membership test is evidence, never proof, of privacy: it speaks for the attacks and shadows "
            "listed."
        ]
        members = scope.data.members
        known = members is not None and not scope.data.regression
        rest = len(members) - population_of(scope).attacked // 2 if members is not None and known else 0
        if rest:
            sentences.append(
                f"The membership attacker knows {rest} members that are not attacked: every shadow is trained on them, "
                "so that shadows are as large as the target."
            )
        return sentences

    def run(self, case: Case, *, seed: int) -> Evidence:
        population = case.prepared
        if not isinstance(population, MembershipCase):
            raise NotApplicable("no training records: membership can only be audited against the training's records")
        asked = self._asked(case)
        each = self.neighbours if isinstance(asked, Averaged) else 1
        logits = asked.logits(population.records.x)
        phi = margin(logits, population.records.y)
        if not all(np.isfinite(one).all() for one in (phi, *(one.phi for one in kinds_of(population).values()))):
            raise NotApplicable("the model or one of its shadows answers with numbers that are not finite")
        ledger = Ledger(queries=len(phi) * each)
        extra: dict[str, np.ndarray[Any, Any]] = {}
        if population.own is None:
            known = margin(asked.logits(case.attacker.x), case.attacker.y)
            ledger.queries += len(known) * each
            labels = population.records.y.cpu().numpy()
            extra["score/population"] = scores.population(phi, labels, known, case.attacker.y.cpu().numpy())
            extra["score/quantile"] = quantile(
                phi, population.records, known, case.attacker, seed=derive(seed, "ridge")
            )
        elif masked(phi, population.own.phi, population.records.y.cpu().numpy()):
            extra["restored"] = restored(logits, population.records.y, population.own.phi)
        blind = population.blind
        if blind is None:
            blind = blind_scores(population.records, population.is_member, seed=derive(seed, "blind"))
        return self._evidence(phi, extra, blind, population, ledger)

    def _asked(self, case: Case) -> Target:
        step = None if self.neighbours == 1 else neighbourhood(case.bounds, tuple(case.evaluation.x.shape[1:]))
        return case.deployed if step is None else Averaged(case.deployed, case.bounds, step, self.neighbours, seed=0)

    def _evidence(
        self,
        phi: np.ndarray[Any, np.dtype[np.float32]],
        extra: dict[str, np.ndarray[Any, Any]],
        blind: Floats,
        population: MembershipCase,
        ledger: Ledger,
    ) -> Evidence:
        """All that follows from a model's margins `phi`; `extra`: what takes its other answers (see the class)."""
        kinds = kinds_of(population)
        flags = []
        figures: dict[str, Figures] = {}
        found = {"score/loss": scores.loss(phi)} | extra
        if population.own is None:
            headline = headline_auc = "population"
            flags.append(Flag.NO_SHADOWS.value)
        else:
            read = extra.get("restored", phi)
            every = {name: score[0] for name, score in score_all(read[None], kinds).items() if name != "loss"}
            found |= {f"score/{name}": score for name, score in every.items()}
            figures = pseudo_targets(kinds, population.is_member)
            count = len(population.own.phi)
            headline = choose(figures, "tpr_mean", shadows=count)
            headline_auc = choose(figures, "auc_mean", shadows=count)
            if headline in figures and headline.endswith("/own"):
                figures[headline]["tpr_half"] = tpr_by_half(population.own, headline)
            if count < ENOUGH_SHADOWS:
                flags.append(Flag.FEW_SHADOWS.value)
            if unlike(phi, population.is_member, population.own):
                flags.append(Flag.SHADOWS_DIFFER.value)
            if "restored" in extra:
                flags.append(Flag.SCORES_MASKED.value)
        if not tells_tpr(int((~population.is_member).sum())):
            flags.append(Flag.FEW_RECORDS.value)
        return Evidence(
            arrays={
                "ids": population.ids,
                "is_member": population.is_member,
                "phi": phi,
                "blind": blind,
                **found,
            },
            summary={
                "headline": headline,
                "headline_auc": headline_auc,
                "n": len(phi),
                "shadows": {kind: len(signals.phi) for kind, signals in kinds.items()},
                "restored": "restored" in extra,
                "pseudo_targets": figures,
            },
            flags={headline: flags} if flags else {},
            ledger=ledger,
        )

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        population, stored = case.prepared, evidence.arrays
        if not isinstance(population, MembershipCase) or not np.array_equal(stored["ids"], population.ids):
            return ["records were attacked that are none of the population"]
        return margins_again(self._asked(case), population.records, stored["phi"])

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        population, stored = basis.prepared(), evidence.arrays
        if not isinstance(population, MembershipCase):
            return []
        outside, phi = ~stored["is_member"], stored["phi"]
        one = self.neighbours == 1  # a mean over neighbours may have another sign
        wrong = [] if not one else impossible(basis, stored["ids"][outside], phi[outside], population.records.y)
        blind = stored["blind"] if population.blind is None else population.blind
        extra = {name: stored[name] for name in EXTRA if name in stored}
        again = self._evidence(phi, extra, blind, population, evidence.ledger)
        labels = population.records.y.cpu().numpy()
        if population.own is not None and masked(phi, population.own.phi, labels) != ("restored" in extra):
            wrong.append("scores are masked and were not restored, or the other way round")
        elif population.own is not None and "restored" in extra:
            again.arrays["restored"] = on_scale_of(extra["restored"], labels, population.own.phi)
        names = [name for name, array in again.arrays.items() if not _close(stored.get(name), array)]
        wrong += [f"{name} is not what follows from the margins" for name in names]
        wrong += [] if again.flags == evidence.flags else ["its trust flags are others than follow from the margins"]
        of_run = {name: value for name, value in again.summary.items() if name != "pseudo_targets"}
        told, known = again.summary["pseudo_targets"], evidence.summary["pseudo_targets"]
        same = told.keys() == known.keys() and all(_near(told[name], known[name]) for name in told)
        if not same or of_run != {name: evidence.summary[name] for name in of_run}:
            wrong.append("its summary is not what follows from the shadow models")
        return wrong


def kinds_of(population: MembershipCase) -> dict[str, ShadowSignals]:
    """The signals of the shadows that there are: compressed as the model is ("own"), uncompressed ("dense")."""
    both = {"own": population.own, "dense": population.dense}
    return {kind: signals for kind, signals in both.items() if signals is not None}


def _close(stored: np.ndarray[Any, Any] | None, again: np.ndarray[Any, Any]) -> bool:
    return stored is not None and stored.shape == again.shape and np.allclose(stored, again, rtol=SAME, atol=SAME)


def _near(one: dict[str, float | int | None], other: dict[str, float | int | None]) -> bool:
    """Of figures that may be None."""
    pairs = [(one[name], other.get(name)) for name in one]
    return all(a == b or (a is not None and b is not None and abs(a - b) <= SAME) for a, b in pairs)
