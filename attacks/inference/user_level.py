"""User level: is any record of this person among the training data? All of a person's records tell together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from ...targets.data.data import Data
from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ..access import Access, Flag, Ledger
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Bools, Measurement, ThreatModel
from ..membership.case import ShadowSignals, related
from ..membership.population import PopulationPlan
from ..membership.preparations import enough_for_all, population_of
from ..membership.replayed import own_signals
from ..membership.scoring import scores
from ..membership.scoring.pseudo_targets import LEAST
from ..membership.signals import SAME, impossible, margin, margins_again
from ..preparation import Audited, Basis, Inputs, Ran, Results, Scope
from ..risk import Metric
from .attacked import needs_of
from .calibration import ENOUGH_FOR_LIRA
from .choosing import Procedure, best, best_by_auc, over_shadows
from .risk import PERSONS
from .rows import OnMembers, compared, doubts, rows, scores_of, unmeasured, why_not

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int64]]

WAYS = ("sum of lira", "lira of the mean", "mean of rmia")
HEADLINES = ("headline", "headline_auc")
ALONE = "mean margin"  # without shadows
UNTRIED = "mean of rmia"  # where there are too few shadows to attack one of them
NO_PERSONS = "the data does not say whose the records are (persons_train and persons_test)"


class Summary(Document):
    """`Evidence.summary`."""

    headline: str
    headline_auc: str
    shadows: int
    figures: dict[str, Procedure]


@dataclass(frozen=True, eq=False)
class PersonCase:
    """What the attack finds in `Case.prepared`: the population with `person`, and own shadows where there are any."""

    population: PopulationPlan
    shadows: ShadowSignals | None


def per_person(values: np.ndarray[Any, Any], person: Ids) -> Floats:
    """The mean over each person's records: float64 [..., persons] of values [..., n]."""
    ones = np.zeros((int(person.max()) + 1, len(person)))
    ones[person, np.arange(len(person))] = 1
    mean: Floats = values.astype(np.float64) @ (ones / ones.sum(1, keepdims=True)).T
    return mean


def person_scores(phi: Floats, shadows: ShadowSignals, person: Ids, keep: Bools) -> dict[str, Floats]:
    """Scores of persons, float64 [t, persons] by name, for targets with margins phi [t, n]; `keep` as in `scores.lira`.

    The mean margin of a person's records is one number like a record's: all of them are in a shadow or none, so what
    they have in common counts once. The sum of log odds takes them for independent.
    """
    first = np.unique(person, return_index=True)[1]
    averaged = ShadowSignals(shadows.inside[:, first], per_person(shadows.phi, person).astype(np.float32))
    counts = np.bincount(person)
    return {
        "sum of lira": per_person(scores.lira(phi, shadows, keep), person) * counts,
        "lira of the mean": scores.lira(per_person(phi, person), averaged, keep),
        "mean of rmia": per_person(scores.rmia(phi, shadows, keep), person),
    }


@ATTACKS.register
class UserLevel(OnMembers):
    """Membership of persons (Song & Shmatikov 2019, arXiv:1811.00513; Kandpal et al. 2024, arXiv:2310.09266).

    Who knows several records of one person asks about all of them: what each gives away adds up. It needs to be said
    whose each record is (`persons_train`, `persons_test`); shadow models are then trained with all of a person's
    records or none. Persons are compared in pairs of one who was in training and one who was not, with equally many
    records, and n counts persons. Which way of adding up is reported is chosen on shadows as pseudo-targets.

    Evidence on the n records of the membership audit, members first: `ids` int64 [n], `person` int64 [n], `phi` float32
    [n], and of p persons `is_member` bool [p] and `score/<name>` float64 [p].
    """

    kind: Literal["user-level"] = "user-level"
    metrics: ClassVar[tuple[Metric, ...]] = PERSONS.both

    def unfit(self, scope: Scope) -> str | None:
        nobody = "records of nobody in particular" if scope.data.persons is None else None
        return super().unfit(scope) or nobody

    def usual(self, data: Data) -> bool:
        return data.persons is not None

    def run_on(self, model: Audited, scope: Scope) -> Run:
        return Run(
            needs=needs_of(model, scope),
            prepare=partial(_prepare, model),
            identity=enough_for_all(scope),
            uses_parent=False,
            effort=Effort(answers=population_of(scope).attacked),
        )

    def form(self, model: Audited, scope: Scope) -> Form:
        population = population_of(scope)
        count, person = population.attacked, population.person
        if person is None:
            return Form()
        numbers, persons = person, int(person.max()) + 1

        def layout(found: Summary) -> Layout:
            names = (ALONE, *(WAYS if found.shadows else ()))
            return {
                "ids": Array("int64", (count,)),
                "person": Array("int64", (count,)),
                "phi": Array("float32", (count,)),
                "is_member": Array("bool", (persons,)),
                **{f"score/{name}": Array("float64", (persons,)) for name in names},
            }

        def holds(found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(np.array_equal(arrays["ids"], population.ids), "ids are not those of the records")
            require(np.array_equal(arrays["person"], numbers), "persons are others")
            require(
                np.array_equal(arrays["is_member"], np.arange(persons) < persons // 2), "is_member is not the truth"
            )
            wanted = {f"score/{found.headline}", f"score/{found.headline_auc}"}
            require(wanted <= arrays.keys(), "a headline that there is not")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        given = case.prepared
        if not isinstance(given, PersonCase) or given.population.person is None:
            raise NotApplicable(NO_PERSONS)
        phi = margin(case.deployed.logits(given.population.targets.x), given.population.targets.y)
        shadows = given.shadows
        if not np.isfinite(phi).all() or (shadows is not None and not np.isfinite(shadows.phi).all()):
            raise NotApplicable("the model or one of its shadows answers with numbers that are not finite")
        return self._evidence(phi, given, given.population.person, Ledger(queries=len(phi)))

    def _evidence(
        self, phi: np.ndarray[Any, np.dtype[np.float32]], given: PersonCase, person: Ids, ledger: Ledger
    ) -> Evidence:
        """All that follows from a model's margins."""
        shadows, targets = given.shadows, phi[None].astype(np.float64)
        found = {ALONE: per_person(phi, person)}
        figures: dict[str, Procedure] = {}
        headline, by_auc, flags = ALONE, ALONE, [Flag.NO_SHADOWS.value]
        if shadows is not None:
            everything = np.ones((1, len(shadows.phi)), dtype=bool)
            found |= {name: one[0] for name, one in person_scores(targets, shadows, person, everything).items()}
            headline, by_auc = UNTRIED, UNTRIED
            if len(shadows.phi) >= LEAST:
                first = np.unique(person, return_index=True)[1]
                keep = ~related(shadows.inside, shadows.inside)
                scored = person_scores(shadows.phi.astype(np.float64), shadows, person, keep)
                figures = over_shadows(scored, shadows.inside[:, first])
                headline, by_auc = best(figures, WAYS), best_by_auc(figures, WAYS)
            flags = [Flag.FEW_SHADOWS.value] if len(shadows.phi) < ENOUGH_FOR_LIRA else []
        persons = int(person.max()) + 1
        return Evidence(
            {
                "ids": given.population.ids,
                "person": person,
                "phi": phi,
                "is_member": np.arange(persons) < persons // 2,
                **{f"score/{name}": one for name, one in found.items()},
            },
            {
                "headline": headline,
                "headline_auc": by_auc,
                "shadows": 0 if shadows is None else len(shadows.phi),
                "figures": {name: one.model_dump() for name, one in figures.items()},
            },
            flags={headline: flags} if flags else {},
            ledger=ledger,
        )

    def measure(self, results: Results) -> list[Measurement]:
        data, evidence = results.scope.data, results.evidence(Ran(results.model.name))
        if evidence is None:
            nobody = data.members is not None and data.persons is None
            return unmeasured(PERSONS, "all records of a person together", NO_PERSONS if nobody else why_not(results))
        is_member = np.asarray(evidence.arrays["is_member"], dtype=bool)
        person = evidence.arrays["person"]
        flags, notes = doubts(results, evidence, is_member, lambda every: per_person(every, person))
        counts, shadows = np.bincount(person), evidence.summary["shadows"]
        words = "{}, " + ("chosen on shadows as pseudo-targets" if evidence.summary["figures"] else "named beforehand")
        return rows(
            PERSONS,
            words,
            scores_of(evidence.arrays),
            (evidence.summary["headline"], evidence.summary["headline_auc"]),
            is_member,
            ThreatModel(
                Access.SCORES,
                "has several records of each person"
                + ("; knows training, recipe and the members that are not attacked" if shadows else ""),
                f"one answer a record, {shadows or 'no'} shadow models",
            ),
            beside=compared(results),
            what="persons who were not in training",
            flags=flags,
            notes=(
                *notes,
                f"Persons, not records, are counted: {len(counts)} of them, with {counts.min()} to {counts.max()} "
                f"records each (median {np.median(counts):g}), as many on either side.",
            ),
        )

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        given = case.prepared
        if not isinstance(given, PersonCase):
            return ["records were attacked that are none of the population"]
        return margins_again(case.deployed, given.population.targets, evidence.arrays["phi"])

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        given, stored = basis.prepared(), evidence.arrays
        if not isinstance(given, PersonCase) or given.population.person is None:
            return []
        again = self._evidence(stored["phi"], given, given.population.person, evidence.ledger)
        same = [name for name, one in again.arrays.items() if np.allclose(stored[name], one, rtol=SAME, atol=SAME)]
        wrong = [f"{name} is not what follows from the margins" for name in again.arrays if name not in same]
        if again.flags != evidence.flags or any(again.summary[one] != evidence.summary[one] for one in HEADLINES):
            wrong.append("its headline or flags are others than follow from the shadow models")
        outside = ~given.population.is_member
        return wrong + impossible(basis, stored["ids"][outside], stored["phi"][outside], given.population.targets.y)


def _prepare(model: Audited, inputs: Inputs) -> PersonCase:
    population, signals = population_of(inputs.scope), own_signals(model, inputs.scope)
    if signals is None:
        return PersonCase(population, None)
    arrays, first = inputs.prepared(signals).arrays, slice(enough_for_all(inputs.scope))
    return PersonCase(population, ShadowSignals(arrays["inside"][first], arrays["phi"][first]))
