"""Sensitivity attack: pruned models answer steadily about what they were trained on (SAMIA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from ...compression.chain import flat
from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ..access import Flag, Ledger
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Bools, Floats, Measurement, ThreatModel
from ..membership.case import ShadowSignals, related
from ..membership.population import PopulationPlan
from ..membership.preparations import enough_for_all, population_of
from ..membership.replayed import own_signals
from ..membership.scoring import scores
from ..membership.scoring.pseudo_targets import LEAST
from ..membership.signals import SAME, impossible
from ..preparation import Audited, Basis, Inputs, Ran, Results, Scope
from ..risk import Metric
from .calibration import ENOUGH_FOR_LIRA
from .choosing import Procedure, best, best_by_auc, over_shadows
from .joint import joint
from .probing import Features, SensitivitiesOfShadows, asked, count_of, learned
from .risk import SENSITIVITY
from .rows import OnMembers, compared, doubts, rows, scores_of, unmeasured, why_not

SAMIA, JOINT, MARGIN = "samia", "margin and sensitivity", "margin alone"
NOT_PRUNED = "not applicable: neither it nor what is compared with it was pruned"
FEW = f"not applicable: fewer than {LEAST} shadow models compressed as it was, or nobody knows how it was trained"


class Summary(Document):
    """`Evidence.summary`."""

    headline: str
    headline_auc: str
    shadows: int = Field(ge=LEAST)
    figures: dict[str, Procedure]


@dataclass(frozen=True, eq=False)
class SensitivityCase:
    """What the attack finds in `Case.prepared`: `known` float32 [k, n, f], of shadows, `inside` bool [k, n]."""

    scope: Scope
    population: PopulationPlan
    inside: Bools
    known: Features


@ATTACKS.register
class Sensitivity(OnMembers):
    """Membership by how a pruned model's answers move with its inputs (Yuan & Zhang, USENIX Security 2022).

    A pruned net, trained on after, is surer of its members and answers more steadily around them. A record is asked
    about as it is and with small noise (or with features of others, where values are categories). Two scores: `samia`,
    a classifier that learned from shadow models, pruned as the model was, how sorted probabilities and their
    sensitivities look on members (boosted trees in the place of the paper's attention net); and margin and sensitivity
    weighed together, record by record, against those of shadows (LiRA of two numbers). The margin alone stands beside
    them. Which of the two is reported is chosen on shadows as pseudo-targets.

    Evidence on the n records of the membership audit, members first: `ids` int64 [n], `is_member` bool [n], `features`
    float32 [n, f] by `probing.features`, and `score/<name>` float64 [n].
    """

    kind: Literal["sensitivity"] = "sensitivity"
    metrics: ClassVar[tuple[Metric, ...]] = SENSITIVITY.both
    draws: PositiveInt = Field(8, le=1000, description="altered copies of a record")

    def unfit(self, scope: Scope) -> str | None:
        none = None if any(map(_pruned, scope.models.values())) else "models that were not pruned"
        return super().unfit(scope) or none

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        return () if self._shadows(model, scope) is None else super().runs(model, scope)

    def run_on(self, model: Audited, scope: Scope) -> Run:
        shadows = self._shadows(model, scope)
        assert shadows is not None, "it runs on no other models"
        answers = population_of(scope).attacked * (1 + self.draws)
        return Run(
            needs=(shadows,),
            prepare=partial(_prepare, shadows),
            identity=enough_for_all(scope),
            uses_parent=False,
            effort=Effort(answers=answers, seconds=4.0),
        )

    def _shadows(self, model: Audited, scope: Scope) -> SensitivitiesOfShadows | None:
        """The shared work for a model; None: the attack is not for it, or there are too few shadows like it."""
        compared_with = [scope.models[name] for name in scope.compared_with(model.name)]
        if scope.data.members is None or not any(map(_pruned, (model, *compared_with))):
            return None
        signals = own_signals(model, scope)
        if signals is None or min(enough_for_all(scope), signals.count) < LEAST:
            return None
        return SensitivitiesOfShadows(signals.parent, signals.recipe, signals.replays, signals.count, self.draws)

    def form(self, model: Audited, scope: Scope) -> Form:
        population = population_of(scope)
        count = population.attacked
        layout: Layout = {
            "ids": Array("int64", (count,)),
            "is_member": Array("bool", (count,)),
            "features": Array("float32", (count, count_of(scope.data.classes))),
            **{f"score/{name}": Array("float64", (count,)) for name in (SAMIA, JOINT, MARGIN)},
        }

        def holds(found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(np.array_equal(arrays["ids"], population.ids), "ids are not those of the records")
            require(np.array_equal(arrays["is_member"], population.is_member), "is_member is not the truth")
            require({found.headline, found.headline_auc} <= {SAMIA, JOINT}, "a headline that there is not")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        given = case.prepared
        if not isinstance(given, SensitivityCase):
            raise NotApplicable(NOT_PRUNED)
        own = asked(case.deployed, given.scope, self.draws)
        if not (np.isfinite(own).all() and np.isfinite(given.known).all()):
            raise NotApplicable("the model or one of its shadows answers with numbers that are not finite")
        return _evidence(own, given, Ledger(queries=len(own) * (1 + self.draws)))

    def measure(self, results: Results) -> list[Measurement]:
        model, scope = results.model, results.scope
        evidence, about = results.evidence(Ran(model.name)), "by how its answers move with its inputs"
        if evidence is None:
            unseen = scope.data.members is not None and not scope.data.regression and not self.runs(model, scope)
            pruned = any(map(_pruned, (model, *(scope.models[name] for name in scope.compared_with(model.name)))))
            return unmeasured(SENSITIVITY, about, (FEW if pruned else NOT_PRUNED) if unseen else why_not(results))
        told, is_member = evidence.summary, np.asarray(evidence.arrays["is_member"], dtype=bool)
        flags, notes = doubts(results, evidence, is_member)
        means = {name: told["figures"][name]["auc_mean"] for name in (told["headline_auc"], MARGIN)}
        return rows(
            SENSITIVITY,
            "{}, chosen on shadows as pseudo-targets",
            scores_of(evidence.arrays),
            (told["headline"], told["headline_auc"]),
            is_member,
            ThreatModel(
                self.access,
                "knows the training, the recipe and the members that are not attacked; trains shadow models",
                f"{1 + self.draws} answers a record, {told['shadows']} shadow models",
            ),
            beside=compared(results),
            flags=flags,
            notes=(
                *notes,
                f"Over shadows as targets its mean AUC is {means[told['headline_auc']]:.3f}; that of the margin alone, "
                f"of one answer a record, {means[MARGIN]:.3f}.",
            ),
        )

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        given = case.prepared
        if not isinstance(given, SensitivityCase):
            return ["records were attacked that are none of the population"]
        again, stored = asked(case.deployed, given.scope, self.draws), evidence.arrays["features"]
        off = int((~np.isclose(again[:, 0], stored[:, 0], rtol=SAME, atol=SAME)).sum())
        return [f"its margin on {off} of {len(again)} records is another"] if off else []

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        given, stored = basis.prepared(), evidence.arrays
        if not isinstance(given, SensitivityCase):
            return []
        again = _evidence(stored["features"], given, evidence.ledger)
        wrong = [
            f"{name} is not what follows from the answers"
            for name, one in again.arrays.items()
            if not np.allclose(stored[name], one, rtol=SAME, atol=SAME)
        ]
        names = ("headline", "headline_auc", "shadows")
        if again.flags != evidence.flags or any(again.summary[name] != evidence.summary[name] for name in names):
            wrong.append("its headline or flags are others than follow from the shadow models")
        outside = ~stored["is_member"]
        phi, y = stored["features"][outside, 0], given.population.targets.y
        return wrong + impossible(basis, stored["ids"][outside], phi, y)

    def limits(self, scope: Scope) -> list[str]:
        return ["Sensitivity is measured with one size of noise and few draws; more of them tell a little more."]


def _pruned(model: Audited) -> bool:
    return model.recipe is not None and any(step.kind == "prune" for step in flat((model.recipe,)))


def _prepare(shadows: SensitivitiesOfShadows, inputs: Inputs) -> SensitivityCase:
    arrays, first = inputs.prepared(shadows).arrays, slice(enough_for_all(inputs.scope))
    population = population_of(inputs.scope)
    return SensitivityCase(inputs.scope, population, arrays["inside"][first], arrays["features"][first])


def scored(own: Features, known: Features, inside: Bools, seed: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Of the target by name, float64 [n], and of each shadow as the target, [k, n]."""
    both = known[:, :, :2].transpose(0, 2, 1)  # margin and sensitivity, as two versions of an answer
    signals, keep = ShadowSignals(inside, known[:, :, 0]), ~related(inside, inside)
    every, target = np.ones((1, len(known)), dtype=bool), own[None, :, :2].transpose(0, 2, 1).astype(np.float64)
    learnt, of_shadows = learned(own, known, inside, seed)
    return (
        {
            SAMIA: learnt,
            JOINT: joint(target, both, inside, every)[0],
            MARGIN: scores.lira(target[:, 0], signals, every)[0],
        },
        {
            SAMIA: of_shadows,
            JOINT: joint(both.astype(np.float64), both, inside, keep),
            MARGIN: scores.lira(known[:, :, 0].astype(np.float64), signals, keep),
        },
    )


def _evidence(own: Features, given: SensitivityCase, ledger: Ledger) -> Evidence:
    """All that follows from a model's answers."""
    found, of_shadows = scored(own, given.known, given.inside, given.scope.seed)
    figures = over_shadows(of_shadows, given.inside)
    headline, names = best(figures, (SAMIA, JOINT)), (SAMIA, JOINT)
    flags = [Flag.FEW_SHADOWS.value] if len(given.known) < ENOUGH_FOR_LIRA else []
    return Evidence(
        {
            "ids": given.population.ids,
            "is_member": given.population.is_member,
            "features": own,
            **{f"score/{name}": one for name, one in found.items()},
        },
        {
            "headline": headline,
            "headline_auc": best_by_auc(figures, names),
            "shadows": len(given.known),
            "figures": {name: one.model_dump() for name, one in figures.items()},
        },
        flags={headline: flags} if flags else {},
        ledger=ledger,
    )
