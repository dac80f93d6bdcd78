"""The evasion attack: the worst case per record over its parts, each success confirmed by the deployed model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from ...targets.data.data import Data
from ...targets.errors import InputError, NotApplicable
from ...targets.form import Form
from ...targets.seeds import derive
from ...training.ball import Ball
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..elsewhere import elsewhere
from ..measurement import Measurement, Picture
from ..preparation import Audited, Basis, Inputs, Need, Preparation, Prepared, Ran, Results, Scope
from ..statistics.sequential import FIRST
from .ball import whole_range
from .black_box.transfer import Transfer
from .case import EvasionInputs, prepared_for
from .categories import not_pixels, nothing_to_change, seen_unfit, without_ball
from .compare import contradictions, found_on, robust_at
from .evasion_run import EvasionRun, attack_by
from .gradient.pgd import GradientPerturber
from .likeness.pictures import pictures_of
from .measure import WITHOUT_DRAW, described, evidence_form, measure_evasion
from .parameters import EvasionParameters, distinct
from .preparations.crafted import CraftedOnParent, ReplayedBothWays
from .preparations.evade_only import DETAIL as EVADE_ONLY
from .preparations.radii import Radii, RadiusProbe, RoomToFall
from .radius import choose
from .trust import unfounded


@ATTACKS.register
class Evasion(EvasionParameters):
    """Adversarial inputs within epsilon of the record: robust accuracy, worst case over several attackers.

    Without a radius, `epsilon: auto` takes the one at which the dense model is neither untouched nor on the floor
    (`radius.choose`): where it keeps all or nothing, no candidate can be told from it.

    Evidence arrays, n records each in the order of `ids`: `ids` int64; `clean_correct` bool; `fooled/<part>/<epsilon>`
    bool, what a part fooled on its own (clean errors and its successes at smaller epsilons included), at the epsilons
    where it ran; `worst/<epsilon>` bool, the records fooled by any part at up to that epsilon, where any ran;
    `adversarial` float32 [n, *shape], at the gate's epsilon: what fooled the deployed model, or else came closest to
    it; `change/<measure>`, how far that is from the record (`likeness.distances`); `walk/fall` float32, of the first
    records, where a part is white-box (`ascent.walk.falls`). Epsilons are written as `repr` does.

    Summary: `norm`, `epsilons` (where any part ran), `gate_epsilon`, `parts` (those that ran, in order), `settings` and
    `part_access` (by part), `use_parent` (those that need the dense model), `step` (of the grid that the records
    are seen to lie on, in units of [0, 1] pixels, or None), `union_flags` (of the worst case at the gate's epsilon; see
    `trust.union_flags`), `without_gradient` (by part, how many records withstood it there without ever giving a
    gradient).
    """

    def unfit(self, scope: Scope) -> str | None:
        return seen_unfit(scope)

    def usual(self, data: Data) -> bool:
        return not without_ball(data)

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        norm, gate = evidence.summary["norm"], evidence.summary["gate_epsilon"]

        def inside(adversarial: Tensor, x: Tensor) -> Tensor:
            return Ball(norm, gate, x, case.bounds.to(x.device)).contains(adversarial)

        return contradictions(evidence, case, f"worst/{gate!r}", inside)

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        return unfounded(evidence, basis, {part.part for part in self.parts if part.seeks_all})

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        """The attack itself; every draw of a random recipe, by gradients at the gate; and without the shipped draw.

        The last is the attacker who does not know which draw ships and averages over the others.
        """
        whole = self._whole(model, scope)
        if not model.draws:
            return (whole,)
        # No policy judges these rows, so no further record is attacked to decide one.
        few = self.model_copy(update={"records": min(self.count, FIRST)})
        parts = [part for part in self.parts if isinstance(part, GradientPerturber)]
        parts = [part for part in parts if part.at == "all"] or parts  # the dear ones say little about many draws
        gradients = few.model_copy(update={"parts": tuple(part.model_copy(update={"at": "gate"}) for part in parts)})
        radii = self.radii(scope)
        draws = [
            Run(
                f"draw-{draw}",
                attack=gradients,
                needs=radii.needs,
                prepare=partial(_inputs, radii, None),
                draw=draw,
                effort=replace(gradients.effort, through=model.name),
            )
            for draw in range(len(model.draws) + 1)
        ]
        without = replace(few._whole(model, scope), detail=WITHOUT_DRAW, attack=few, without_draw=True)
        return (whole, *draws, without)

    def _whole(self, model: Audited, scope: Scope) -> Run:
        radii = self.radii(scope)
        crafted = None
        if model.parent is not None and not model.is_dense:
            crafted = CraftedOnParent(model.parent.name, radii, self.count)
        needs = (*radii.needs, *([] if crafted is None else [crafted]))
        prepare = partial(_inputs, radii, crafted)
        effort = replace(self.effort, through=model.name)
        return Run(needs=needs, prepare=prepare, effort=effort, uses_parent=not model.is_dense)

    def probes(self, scope: Scope) -> tuple[Preparation, ...]:
        return self.radii(scope).needs

    def settled(self, found: Mapping[Preparation, Prepared]) -> Self:
        chosen = [
            result.document["radius"]
            for probe, result in found.items()
            if isinstance(probe, RadiusProbe) and probe.norm == self.norm
        ]
        return self.with_radius(chosen[0]) if self.automatic and chosen else self

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        radii = self.radii(scope)

        def replay(candidate: str, baseline: str) -> ReplayedBothWays:
            return ReplayedBothWays(scope.label, candidate, baseline, radii, self.count)

        found: list[Need] = [Ran(model.name, run.detail) for run in self.runs(model, scope)]
        found += [Ran(name) for name in model.baselines]
        found += elsewhere(scope, (model.name, *model.baselines), self.count)
        found += [RoomToFall(scope.label, name, self.norm) for name in model.baselines]
        if any(isinstance(part, Transfer) for part in self.parts):
            found += [replay(model.name, name) for name in model.baselines]
            found += [replay(other, model.name) for other in scope.compared_with(model.name)]
        asked = self.evade_only(model, scope)
        return (*found, *([] if asked is None else [asked]), *radii.needs)

    def beside(self, model: Audited, scope: Scope) -> tuple[Preparation, ...]:
        return (self.asked_of_others(model, scope),) if len(scope.models) > 1 else ()

    def details(self, model: Audited) -> tuple[str, ...]:
        alone = (EVADE_ONLY,) if model.parent is not None and not model.is_dense else ()
        return ("", *((WITHOUT_DRAW,) if model.draws else ()), *alone)

    def form(self, model: Audited, scope: Scope) -> Form:
        return evidence_form(self, scope)

    def measure(self, results: Results) -> list[Measurement]:
        return measure_evasion(self, results)

    def pictures(self, results: Results) -> tuple[Picture, ...]:
        found = found_on(results, results.model.name, self)
        if found is None:
            return ()
        fooled = ~robust_at(found.evidence, found.attack.gate)  # the stored inputs are those of its own run
        _, frail = described(found)
        return pictures_of(found.evidence.arrays, fooled, () if frail is None else frail.ids, results.scope.data)

    def power(self, scope: Scope) -> list[str]:
        return [f"Evasion: {self.unseen(scope)}."]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Robust accuracy is an upper bound: a stronger attack than the ones listed may exist. It is no certificate."
        ]

    def run(self, case: Case, *, seed: int) -> Evidence:
        reason = not_pixels(case)
        if reason is not None:
            raise NotApplicable(reason)
        if self.automatic:
            radius = prepared_for(case).radius
            if radius is None:
                chosen = choose(case, self.norm, seed=seed)
                radius = chosen.epsilon, chosen.epsilons
            return self.at(*radius).run(case, seed=seed)
        if self.gate > whole_range(self.norm, tuple(case.evaluation.x.shape[1:])):
            raise InputError(
                f"The L2 epsilon {self.gate:g} is more than the distance between any two inputs: it counts in "
                "units of [0, 1] pixels."
            )
        reason = nothing_to_change(self.gate, case)
        if reason is not None:
            raise NotApplicable(reason)
        parts = distinct(self.parts, case)
        skipped = {part.part: reason for part in parts if (reason := part.why_not(case)) is not None}
        able = [part for part in parts if part.part not in skipped]
        run = EvasionRun.of(self, case, able)
        for part in able:
            try:
                run.add(attack_by(part, run, seed=derive(seed, "evasion", part.part)))
            except NotApplicable as error:
                skipped[part.part] = str(error)
        if not run.results:
            raise NotApplicable("no part of the attack can run: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
        run.walk(seed=derive(seed, "evasion"))
        return run.evidence(skipped)


def _inputs(radii: Radii, crafted: CraftedOnParent | None, inputs: Inputs) -> EvasionInputs:
    """What a run finds in its case."""
    arrays = {} if crafted is None else inputs.prepared(crafted).arrays
    return EvasionInputs(
        radii.resolved(inputs), {float(epsilon): torch.from_numpy(array) for epsilon, array in arrays.items()}
    )
