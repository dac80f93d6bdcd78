"""Membership from the mask or the code book of a shipped file, without its values and without asking it anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from ...targets.errors import NotApplicable, failing_as_not_applicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ..access import Access, Flag
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..inference.calibration import ENOUGH_FOR_LIRA
from ..inference.choosing import Procedure, best, best_by_auc, over_shadows
from ..inference.rows import OnMembers, doubts, rows, scores_of, unmeasured, why_not
from ..measurement import Bools, Floats, Measurement, ThreatModel
from ..membership.case import ShadowSignals, related
from ..membership.population import PopulationPlan
from ..membership.preparations import BlindScores, enough_for_all, population_of, shadow_count
from ..membership.replayed import own_signals
from ..membership.scoring import scores
from ..membership.scoring.pseudo_targets import LEAST
from ..membership.signals import SAME
from ..preparation import Audited, Basis, Deployed, Inputs, Need, Ran, Results, Scope, Weights
from ..risk import Metric
from .infer import by_book
from .preparations import Kind, StructuresOfShadows, sees_of, told_by
from .risk import STRUCTURE
from .shipped import filled, weights_in

NAMES: dict[Kind, tuple[str, ...]] = {"mask": ("lira", "bavaria", "rmia"), "book": ("naive bayes",)}
WORDS: dict[Kind, str] = {"mask": "which weights are zero", "book": "the values that weights share"}
NEITHER = "not applicable: it was neither pruned weight by weight nor made to share its weights' values"
FEW = f"not applicable: fewer than {LEAST} shadow models compressed as it was, or nobody knows how it was trained"


class Summary(Document):
    """`Evidence.summary`."""

    sees: Kind
    headline: str
    headline_auc: str
    shadows: int
    figures: dict[str, Procedure]


@dataclass(frozen=True, eq=False)
class StructureCase:
    """What the attack finds in `Case.prepared`: the records, what shadows' structures say, and what the file's does.

    Args:
        inside: bool [k, n]; known: of shadows, by `told_by`, [k, ...].
        read: gives the same of the file, [...]; whoever has no model to read it with does not call it.
    """

    sees: Kind
    population: PopulationPlan
    inside: Bools
    known: np.ndarray[Any, Any]
    read: Callable[[], np.ndarray[Any, Any]]


@ATTACKS.register
class Structure(OnMembers):
    """Membership from structure alone: the mask of a pruned file, or the code book of one that shares its weights.

    Who publishes which weights are zero and nothing else (for a sparse format, for reuse as a "lottery ticket") tells
    little, but not nothing: the mask was found by training on the records. It is filled into the network without any
    values, biases or norms, and the margins that it then has are compared with those of shadow models' masks (LiRA,
    BaVarIA, RMIA). A code book is compared value by value (naive Bayes). The mask is read off the shipped bytes.
    Which score is reported is chosen on shadows as pseudo-targets.

    Evidence on the n records of the membership audit, members first: `ids` int64 [n], `is_member` bool [n], `seen`
    float32 [n] or float64 [f], what the file's structure says, and `score/<name>` float64 [n].
    """

    kind: Literal["structure"] = "structure"
    metrics: ClassVar[tuple[Metric, ...]] = STRUCTURE.both
    access: ClassVar[Access] = Access.WHITE_BOX

    def unfit(self, scope: Scope) -> str | None:
        made = any(sees_of(model.recipe) is not None for model in scope.models.values())
        return super().unfit(scope) or (None if made else "models without a mask or a code book")

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        return () if _structures(model, scope) is None else super().runs(model, scope)

    def run_on(self, model: Audited, scope: Scope) -> Run:
        structures = _structures(model, scope)
        assert structures is not None, "it runs on no other models"
        parent = structures.parent.name
        return Run(
            needs=(structures, Deployed(parent), Weights(parent)),
            prepare=partial(_prepare, model.name, structures),
            identity=enough_for_all(scope),
            uses_parent=False,
            effort=Effort(seconds=1.0),
        )

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        return (Ran(model.name), BlindScores()) if self.runs(model, scope) else ()

    def form(self, model: Audited, scope: Scope) -> Form:
        structures = _structures(model, scope)
        if structures is None:
            return Form()
        population, sees = population_of(scope), structures.sees
        seen, count = structures.telling(scope, 1)["seen"], population.attacked
        layout: Layout = {
            "ids": Array("int64", (count,)),
            "is_member": Array("bool", (count,)),
            "seen": Array(seen.dtype, (seen.shape or ())[1:]),
            **{f"score/{name}": Array("float64", (count,)) for name in NAMES[sees]},
        }

        def holds(found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(np.array_equal(arrays["ids"], population.ids), "ids are not those of the records")
            require(np.array_equal(arrays["is_member"], population.is_member), "is_member is not the truth")
            require({found.headline, found.headline_auc} <= {*NAMES[sees]}, "a headline that there is not")
            require(found.sees == sees, "something else was looked at")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        given = case.prepared
        if not isinstance(given, StructureCase):
            raise NotApplicable(NEITHER)
        with failing_as_not_applicable("the file's weights cannot be read beside the dense model's"):
            own = given.read()
        if not (np.isfinite(own).all() and np.isfinite(given.known).all()):
            raise NotApplicable("the structure of the model or of a shadow answers with numbers that are not finite")
        return _evidence(own, given)

    def measure(self, results: Results) -> list[Measurement]:
        model, scope = results.model, results.scope
        evidence, about = results.evidence(Ran(model.name)), "the structure of the file alone"
        if evidence is None:
            unseen = scope.data.members is not None and not scope.data.regression and not self.runs(model, scope)
            why = (NEITHER if sees_of(model.recipe) is None else FEW) if unseen else why_not(results)
            return unmeasured(STRUCTURE, about, why)
        told = Summary.model_validate({**evidence.summary, "figures": evidence.summary["figures"]})
        is_member = np.asarray(evidence.arrays["is_member"], dtype=bool)
        flags, notes = doubts(results, evidence, is_member)
        mean = told.figures[told.headline_auc].auc_mean
        return rows(
            STRUCTURE,
            f"{WORDS[told.sees]}, and nothing else of the file ({{}}, chosen on shadows as pseudo-targets)",
            scores_of(evidence.arrays),
            (told.headline, told.headline_auc),
            is_member,
            ThreatModel(
                Access.WHITE_BOX,
                f"knows {WORDS[told.sees]}, the training, the recipe and the members that are not attacked",
                f"no query, {told.shadows} shadow models",
            ),
            flags=flags,
            notes=(*notes, f"Over shadows as targets its mean AUC is {mean:.3f}."),
        )

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        given, seen = case.prepared, evidence.arrays["seen"]
        same = isinstance(given, StructureCase) and np.allclose(given.read(), seen, rtol=SAME, atol=SAME)
        return [] if same else ["the structure of the file is another"]

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        given = basis.prepared()
        if not isinstance(given, StructureCase):
            return []
        again = _evidence(evidence.arrays["seen"], given)
        wrong = [
            f"{name} is not what follows from the structures"
            for name, one in again.arrays.items()
            if not np.allclose(evidence.arrays[name], one, rtol=SAME, atol=SAME)
        ]
        names = ("headline", "headline_auc", "shadows")
        if again.flags != evidence.flags or any(again.summary[name] != evidence.summary[name] for name in names):
            wrong.append("its headline or flags are others than follow from the shadow models")
        return wrong

    def limits(self, scope: Scope) -> list[str]:
        return [
            "What a mask or code book alone tells of training records is measured by two simple attacks; that they "
            "find nothing does not prove that it may be published."
        ]


def _structures(model: Audited, scope: Scope) -> StructuresOfShadows | None:
    """The shared work for a model; None: it has no such structure, or there are too few shadows like it."""
    if scope.data.members is None or sees_of(model.recipe) is None:
        return None
    signals = own_signals(model, scope)
    if signals is None or min(enough_for_all(scope), shadow_count(scope, model.parent, model.recipe)) < LEAST:
        return None
    return StructuresOfShadows(signals.parent, signals.recipe, signals.replays, signals.count)


def _prepare(model: str, structures: StructuresOfShadows, inputs: Inputs) -> StructureCase:
    parent = structures.parent.name

    def read() -> np.ndarray[Any, Any]:
        module = inputs.weights(parent)
        found = weights_in(inputs.case(model).shipped, inputs.case(parent).shipped, module)
        return told_by(filled(module, found), structures.sees, population)

    population, first = population_of(inputs.scope), slice(enough_for_all(inputs.scope))
    arrays = inputs.prepared(structures).arrays
    return StructureCase(structures.sees, population, arrays["inside"][first], arrays["seen"][first], read)


def scored(
    own: np.ndarray[Any, Any], known: np.ndarray[Any, Any], inside: Bools, keep: Bools, sees: Kind
) -> dict[str, Floats]:
    """Scores of t targets, float64 [t, n] by name.

    Args:
        own: [t, ...] and known [k, ...], by `told_by`; inside: bool [k, n].
        keep: bool [t, k], the shadows that each target may be compared with.
    """
    if sees == "book":
        found = [by_book(one, known[chosen], inside[chosen]) for one, chosen in zip(own, keep, strict=True)]
        return {"naive bayes": np.stack(found)}
    signals, targets = ShadowSignals(inside, known), own.astype(np.float64)
    return {name: scores.WITH_SHADOWS[name](targets, signals, keep) for name in NAMES["mask"]}


def _evidence(own: np.ndarray[Any, Any], given: StructureCase) -> Evidence:
    """All that follows from what the structures say."""
    known, inside, sees = given.known, given.inside, given.sees
    found = scored(own[None], known, inside, np.ones((1, len(known)), dtype=bool), sees)
    keep, names = ~related(inside, inside), NAMES[sees]
    figures = over_shadows(scored(known, known, inside, keep, sees), inside)
    headline = best(figures, names)
    flags = [Flag.FEW_SHADOWS.value] if len(known) < ENOUGH_FOR_LIRA else []
    return Evidence(
        {
            "ids": given.population.ids,
            "is_member": given.population.is_member,
            "seen": own,
            **{f"score/{name}": one[0] for name, one in found.items()},
        },
        {
            "sees": sees,
            "headline": headline,
            "headline_auc": best_by_auc(figures, names),
            "shadows": len(known),
            "figures": {name: one.model_dump() for name, one in figures.items()},
        },
        flags={headline: flags} if flags else {},
    )
