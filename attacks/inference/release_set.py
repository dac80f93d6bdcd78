"""The release set: what all released versions of one model give away together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ..access import Access, Flag, Ledger
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Bools, Measurement, ThreatModel
from ..membership.case import ShadowSignals, related
from ..membership.population import PopulationPlan
from ..membership.preparations import BlindScores, population_of, shadow_count
from ..membership.replayed import SignalsOfShadows, signals_of
from ..membership.scoring import scores
from ..membership.scoring.pseudo_targets import LEAST
from ..membership.signals import impossible, margin, margins_again
from ..preparation import Audited, Basis, Inputs, Need, Preparation, Prepared, Ran, Results, Scope
from ..risk import Metric
from .calibration import ENOUGH_FOR_LIRA
from .choosing import Procedure, best, best_by_auc, over_shadows
from .joint import joint
from .risk import RELEASE
from .rows import NO_MEMBERS, Beside, OnMembers, doubts, rows, scores_of, unmeasured

Floats = np.ndarray[Any, np.dtype[np.float64]]
Singles = np.ndarray[Any, np.dtype[np.float32]]

TOGETHER = ("joint", "mean of lira", "mean of rmia")
ALONE = "alone/"  # before the name of a version, of scores that have one version


def sets_of(scope: Scope) -> dict[str, tuple[str, ...]]:
    """By parent's name, the versions of it that an attacker would hold together: those up for release, two or more."""
    found: dict[str, list[str]] = {}
    for name in scope.released:
        parent = scope.models[name].parent
        if parent is not None and shadow_count(scope, parent, scope.models[name].recipe) >= LEAST:
            found.setdefault(parent.name, []).append(name)
    return {parent: tuple(names) for parent, names in found.items() if len(names) > 1}


def set_with(model: Audited, scope: Scope) -> tuple[str, tuple[str, ...]] | None:
    """The parent and the versions of the set that this model belongs to; None: it is in none."""
    return next(((parent, names) for parent, names in sets_of(scope).items() if model.name in names), None)


class Chosen(Document):
    """What was chosen on shadows as pseudo-targets, and on which figures of theirs."""

    versions: tuple[str, ...]
    shadows: int
    headline: str
    headline_auc: str
    largest: str
    largest_auc: str
    figures: dict[str, Procedure]


@dataclass(frozen=True)
class HeldTogether(Preparation):
    """The scores of a release set: of all versions together in three ways, and of each alone.

    Arrays: `score/<name>`, float64 [n], higher for members. Document: `Chosen`; `headline` is one of the three ways,
    `largest` the score of the version that gives
    away most by itself. The audited models have no say in either.
    """

    phase: ClassVar[str] = "membership"
    label: str
    parent: str
    versions: tuple[str, ...]
    signals: tuple[SignalsOfShadows, ...]
    count: int

    @property
    def name(self) -> str:
        return f"release-set/{self.label}/{self.parent}"

    @property
    def words(self) -> str:
        return f"what the {len(self.versions)} released versions of {self.parent} give away together"

    @property
    def identity(self) -> Any:
        return [self.parent, self.versions, self.count]

    @property
    def effort(self) -> Effort:
        return Effort(seconds=0.02 * self.count * len(self.versions))

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*self.signals, *(Ran(version) for version in self.versions))

    def compute(self, inputs: Inputs) -> Prepared:
        arrays = [inputs.prepared(one).arrays for one in self.signals]
        phi = np.stack([inputs.evidence(Ran(one)).arrays["phi"] for one in self.versions]).astype(np.float64)
        shadows = np.stack([one["phi"][: self.count] for one in arrays], 1)
        if not (np.isfinite(phi).all() and np.isfinite(shadows).all()):
            raise NotApplicable("a version or a shadow model answers with numbers that are not finite")
        inside = arrays[0]["inside"][: self.count]
        everything = np.ones((1, self.count), dtype=bool)
        found = {f"score/{name}": one[0] for name, one in together(phi[None], shadows, inside, everything).items()}
        found |= {
            f"score/{name}": one[0]
            for name, one in alone(phi[None], shadows, inside, everything, self.versions).items()
        }
        return Prepared(found, chosen(shadows, inside, self.versions))

    def form(self, scope: Scope) -> Form:
        count = population_of(scope).attacked
        names = [*TOGETHER, *singles(self.versions)]

        def holds(found: Chosen, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(found.versions == self.versions and found.shadows == self.count, "of another release set")
            require(found.figures.keys() == {*names}, "figures of other scores")
            chosen = (found.headline, found.headline_auc, found.largest, found.largest_auc)
            require(chosen == headlines(found.figures, self.versions), "what was chosen does not follow")

        return Form(Chosen, {f"score/{name}": Array("float64", (count,)) for name in names}, holds=holds)


def version_of(score: str) -> str:
    """Of a score of one version by itself."""
    return score.removeprefix(ALONE).rpartition("/")[0]


def together(phi: Floats, shadows: Singles, inside: Bools, keep: Bools) -> dict[str, Floats]:
    """Scores of all versions at once, float64 [t, n] by name; arguments as `joint.joint`."""
    versions = [ShadowSignals(inside, shadows[:, one]) for one in range(shadows.shape[1])]
    return {
        "joint": joint(phi, shadows, inside, keep),
        "mean of lira": np.mean([scores.lira(phi[:, at], one, keep) for at, one in enumerate(versions)], axis=0),
        "mean of rmia": np.mean([scores.rmia(phi[:, at], one, keep) for at, one in enumerate(versions)], axis=0),
    }


def singles(names: Sequence[str]) -> list[str]:
    """What the scores of each version by itself are called."""
    return [f"{ALONE}{name}/{how}" for name in names for how in ("lira", "rmia")]


def alone(phi: Floats, shadows: Singles, inside: Bools, keep: Bools, names: Sequence[str]) -> dict[str, Floats]:
    """As `together`, of each version by itself."""
    found = []
    for at in range(len(names)):
        signals = ShadowSignals(inside, shadows[:, at])
        found += [scores.lira(phi[:, at], signals, keep), scores.rmia(phi[:, at], signals, keep)]
    return dict(zip(singles(names), found, strict=True))


def chosen(shadows: Singles, inside: Bools, names: Sequence[str]) -> dict[str, Any]:
    """`Chosen`, each shadow attacked in turn without itself and its complement."""
    keep, targets = ~related(inside, inside), shadows.astype(np.float64)
    scored = {**together(targets, shadows, inside, keep), **alone(targets, shadows, inside, keep, names)}
    figures = over_shadows(scored, inside)
    names_of = ("headline", "headline_auc", "largest", "largest_auc")
    return {
        "versions": list(names),
        "shadows": len(shadows),
        **dict(zip(names_of, headlines(figures, names), strict=True)),
        "figures": {name: one.model_dump() for name, one in figures.items()},
    }


def headlines(figures: Mapping[str, Procedure], names: Sequence[str]) -> tuple[str, str, str, str]:
    """The best of all versions together by TPR and by AUC, and the best of one alone by each."""
    one = singles(names)
    return best(figures, TOGETHER), best_by_auc(figures, TOGETHER), best(figures, one), best_by_auc(figures, one)


@ATTACKS.register
class ReleaseSet(OnMembers):
    """Membership by whoever holds every released version of a model (CompLeak, USENIX Security 2026).

    Each version was compressed in another way, so each hides something else: what one forgot another may remember. The
    attacker asks all versions about a record and weighs the answers together, with shadow models that were compressed
    in all these ways too (those of the attack `membership`; nothing is trained for this one). The versions are the
    candidates of one dense model that the plan's `release` names; the dense model is none of them.

    Evidence on the n records of the membership audit, members first: `ids` int64 [n], `is_member` bool [n], `phi`
    float32 [n], this version's logit margins.
    """

    kind: Literal["release-set"] = "release-set"
    metrics: ClassVar[tuple[Metric, ...]] = RELEASE.both

    def unfit(self, scope: Scope) -> str | None:
        return super().unfit(scope) or (None if sets_of(scope) else "no two versions of one model up for release")

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        return () if set_with(model, scope) is None else super().runs(model, scope)

    def run_on(self, model: Audited, scope: Scope) -> Run:
        effort = Effort(answers=population_of(scope).attacked)
        return Run(prepare=lambda inputs: population_of(inputs.scope), uses_parent=False, effort=effort)

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        held = self._held(model, scope)
        return () if held is None else (Ran(model.name), held, BlindScores())

    def form(self, model: Audited, scope: Scope) -> Form:
        population = population_of(scope)
        layout: Layout = {
            "ids": Array("int64", (population.attacked,)),
            "is_member": Array("bool", (population.attacked,)),
            "phi": Array("float32", (population.attacked,)),
        }

        def holds(found: Document, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(np.array_equal(arrays["ids"], population.ids), "ids are not those of the records")
            require(np.array_equal(arrays["is_member"], population.is_member), "is_member is not the truth")

        return Form(Document, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        population = case.prepared
        phi = margin(case.deployed.logits(population.targets.x), population.targets.y)
        if not np.isfinite(phi).all():
            raise NotApplicable("the model answers with numbers that are not finite")
        arrays = {"ids": population.ids, "is_member": population.is_member, "phi": phi}
        return Evidence(arrays, {}, ledger=Ledger(queries=len(phi)))

    def measure(self, results: Results) -> list[Measurement]:
        model, scope = results.model, results.scope
        held, words = self._held(model, scope), "all released versions held together"
        if scope.data.members is None:
            return unmeasured(RELEASE, words, NO_MEMBERS)
        if held is None:
            return unmeasured(
                RELEASE,
                words,
                f"not applicable: no other version of its parent with {LEAST} shadow models or more is up for release "
                "with it",
            )
        found = results.prepared(held)
        if found is None:
            return unmeasured(RELEASE, words, results.why(Ran(model.name)))
        is_member = population_of(scope).is_member
        told = Chosen.model_validate({**found.document, "versions": tuple(found.document["versions"])})
        flags, notes = doubts(results, None, is_member)
        raised = {flag for name in held.versions for flag in results.flags(name)}
        if held.count < ENOUGH_FOR_LIRA:
            raised.add(Flag.FEW_SHADOWS.value)
        if any(scope.models[name].undeclared for name in held.versions):
            raised.add(Flag.SHADOWS_DIFFER.value)
        measured = scores_of(found.arrays)
        own, single = told.figures[told.headline_auc], told.figures[told.largest_auc]
        pairs = ((told.headline, told.largest), (told.headline_auc, told.largest_auc))
        beside: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for headline, largest in pairs:
            beside.setdefault(version_of(largest), {})[headline] = measured[largest]
        return rows(
            RELEASE,
            f"{', '.join(held.versions)} held together ({{}}, chosen on shadows as pseudo-targets)",
            measured,
            (told.headline, told.headline_auc),
            is_member,
            ThreatModel(
                Access.SCORES,
                "has every released version; knows the training, the recipes and the members that are not attacked",
                f"one answer a record and version, {held.count} shadow models",
            ),
            beside=tuple(Beside(name, one, tuple(sorted(results.flags(name)))) for name, one in beside.items()),
            flags=tuple(sorted({*flags, *raised})),
            notes=(
                *notes,
                f"Over shadows as targets all versions together have a mean AUC of {own.auc_mean:.3f}; the version "
                f"that gives away most by itself ({version_of(told.largest_auc)}) has {single.auc_mean:.3f}.",
            ),
        )

    def _held(self, model: Audited, scope: Scope) -> HeldTogether | None:
        known = None if scope.data.members is None else set_with(model, scope)
        if known is None:
            return None
        parent, names = known
        models = [scope.models[name] for name in names]
        found = [signals_of(scope, one.parent, one.recipe) for one in models]
        signals = tuple(one for one in found if one is not None)
        return HeldTogether(scope.label, parent, names, signals, min(one.count for one in signals))

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        return margins_again(case.deployed, case.prepared.targets, evidence.arrays["phi"])

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        population = basis.prepared()
        if not isinstance(population, PopulationPlan):
            return []
        outside, stored = ~evidence.arrays["is_member"], evidence.arrays
        return impossible(basis, stored["ids"][outside], stored["phi"][outside], population.targets.y)

    def limits(self, scope: Scope) -> list[str]:
        return [
            "The release set is of the versions this plan would release together; versions that were released before, "
            "or elsewhere, are not among them."
        ]
