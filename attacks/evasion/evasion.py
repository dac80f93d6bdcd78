"""The evasion attack: the worst case per record over its parts, each success confirmed by the deployed model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny, field_validator, model_validator

from ...targets.errors import InputError, NotApplicable
from ...targets.seeds import derive
from ...targets.technique import Registry
from ..attack import ATTACKS, Attack, Case, Evidence
from ..measurement import Measurement
from ..preparation import Audited, Inputs, Need, Ran, Results, Run, Scope
from ..risk import Metric, Risk
from ..statistics.power import unseen_loss
from .apgd import Apgd
from .ball import Norm, whole_range
from .case import EvasionInputs, prepared_for
from .categories import not_pixels
from .engine import PERTURBERS, Perturber
from .evasion_run import EvasionRun, PartResult, attack_by
from .measure import WITHOUT_DRAW, measure_evasion
from .pgd import GradientPerturber, Pgd
from .preparations import CraftedOnParent, Radii, ReplayedBothWays, RoomToFall
from .radius import choose, curve
from .risk import EVASION, ROBUST_ACCURACY
from .square import Square
from .transfer import Transfer


def parse_part(raw: Any) -> Perturber:
    """A part from a mapping with `kind`, a bare kind, or a perturber as it is."""
    try:
        return PERTURBERS.parse(raw)
    except InputError as error:
        raise ValueError(str(error)) from None  # pydantic adds where in the plan it stands


Part = Annotated[SerializeAsAny[Perturber], BeforeValidator(parse_part)]

# Measured on digits at epsilon .1, records of 300 left standing: APGD 137 after 20 steps and 136 after 40; PGD 144; the
# two together 135, all attacks tried (3 restarts of 100 steps among them) together 131. Square 160 after 200 queries.
DEFAULT_PARTS: tuple[Perturber, ...] = (
    Pgd(steps=20, loss="margin"),
    Apgd(steps=20, restarts=2),
    Pgd(steps=20, gradients="native"),
    Transfer(),
    Square(queries=200),
)


@ATTACKS.register
class Evasion(Attack):
    """Adversarial inputs within epsilon of the record: robust accuracy, worst case over several attackers.

    Without a radius, `epsilon: auto` takes the one at which the dense model is neither untouched nor on the floor
    (`radius.choose`): where it keeps all or nothing, no candidate can be told from it.

    Evidence arrays, n records each in the order of `ids`: `ids` int64; `clean_correct` bool; `fooled/<part>/<epsilon>`
    bool, what a part fooled on its own (clean errors and its successes at smaller epsilons included), at the epsilons
    where it ran; `worst/<epsilon>` bool, the records fooled by any part at up to that epsilon, where any ran;
    `adversarial` float32 [n, *shape], at the gate's epsilon: what fooled the deployed model, or else came closest to
    it. Epsilons are written as `repr` does.

    Summary: `norm`, `epsilons` (where any part ran), `gate_epsilon`, `parts` (those that ran, in order), `settings` and
    `part_access` (by part), `use_parent` (those that need the dense model), `union_flags` (of the worst case at the
    gate's epsilon; see `trust.union_flags`), `without_gradient` (by part, how many records withstood it there
    without ever giving a gradient).
    """

    kind: Literal["evasion"] = "evasion"
    risk: ClassVar[Risk] = EVASION
    metrics: ClassVar[tuple[Metric, ...]] = (ROBUST_ACCURACY,)
    parts_known: ClassVar[Registry[Any] | None] = PERTURBERS

    norm: Norm = Field("linf", description="linf or l2; both in units of [0, 1] pixels")
    epsilon: float | Literal["auto"] | None = Field(
        "auto",
        description="the radius the policy judges, with a curve from .3 to 1.5 times it; auto: where the dense model "
        "keeps about half of its accuracy. Or name `epsilons`",
    )
    epsilons: tuple[float, ...] = Field((), description="radii of your own instead, smallest first")
    gate_epsilon: float | None = Field(
        None, description="which of `epsilons` the policy judges; .1, or the largest if that is none of them"
    )
    records: PositiveInt = Field(300, description="how many of the evaluation records are attacked, at most")
    parts: tuple[Part, ...] = Field(DEFAULT_PARTS, description="the attackers the worst case is over")

    @field_validator("epsilons")
    @classmethod
    def _ascending(cls, epsilons: tuple[float, ...]) -> tuple[float, ...]:
        if epsilons and (min(epsilons) <= 0 or len(set(epsilons)) < len(epsilons)):
            raise ValueError("epsilons must be one or more positive numbers, each named once")
        return tuple(sorted(epsilons))

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, raw: Any) -> Any:
        """A single `epsilon` stands for its curve; `epsilons` without a gate are judged at .1 or at the largest."""
        if not isinstance(raw, Mapping):
            return raw
        epsilon, epsilons, gate = _number(raw.get("epsilon")), raw.get("epsilons"), _number(raw.get("gate_epsilon"))
        if epsilons is not None and not isinstance(epsilons, list | tuple):
            return raw
        epsilons = None if epsilons is None else [_number(value) for value in epsilons]
        if epsilon is not None and (epsilons or gate is not None):
            raise ValueError("name either epsilon, or epsilons and gate_epsilon")
        if epsilon is None and not epsilons:
            if epsilons is not None and "epsilon" not in raw:
                raise ValueError("epsilons must be one or more positive numbers, each named once")
            if gate is not None:
                raise ValueError(f"gate_epsilon {gate} is not among epsilons []; name the radii under epsilons")
            return {**raw, "epsilon": "auto"}
        if isinstance(epsilon, float):
            radii = curve(epsilon, 1.0 if raw.get("norm", "linf") == "linf" else math.inf)
            return {**raw, "epsilon": None, "epsilons": radii, "gate_epsilon": epsilon}
        numbers = [value for value in epsilons or () if isinstance(value, float)]
        if numbers and gate is None:
            gate = 0.1 if 0.1 in numbers else max(numbers)
        return {**raw, "epsilon": epsilon, "epsilons": epsilons or (), "gate_epsilon": gate}

    @model_validator(mode="after")
    def _consistent(self) -> Evasion:
        if not self.parts:
            raise ValueError("parts is empty: name at least one attacker, for example pgd")
        names = [part.part for part in self.parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two parts are called {twice[0]!r}: give one of them a `label` of its own")
        if self.automatic:
            return self
        largest = max(self.epsilons)
        if self.norm == "linf" and largest > 1:
            raise ValueError(
                f"epsilon {largest:g} is more than the whole range of a pixel: epsilon counts in units of [0, 1]. "
                f"Did you mean {largest:g}/255?"
            )
        if self.gate not in self.epsilons:
            raise ValueError(f"gate_epsilon {self.gate:g} is not among epsilons {list(self.epsilons)}")
        return self

    @property
    def automatic(self) -> bool:
        """Whether the radius is still to be chosen (`at`)."""
        return self.epsilon == "auto"

    @property
    def gate(self) -> float:
        """The radius the policy judges, once there is one."""
        assert self.gate_epsilon is not None, "the radius is still to be chosen"
        return self.gate_epsilon

    def at(self, epsilon: float, epsilons: tuple[float, ...]) -> Evasion:
        """The same attack at these radii, judged at the first argument."""
        return self.model_copy(update={"epsilon": None, "epsilons": epsilons, "gate_epsilon": epsilon})

    def radii(self, scope: Scope) -> Radii:
        """Its epsilons, or where they come from."""
        return Radii(self.norm, self.epsilons, None if self.automatic else self.gate, scope.reference.name)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        """The attack itself; every draw of a random recipe, by gradients at the gate; and without the shipped draw.

        The last is the attacker who does not know which draw ships and averages over the others.
        """
        radii = self.radii(scope)
        crafted = None
        if model.parent is not None and not model.is_dense:
            crafted = CraftedOnParent(model.parent.name, radii, self.records)
        needs = (*radii.needs, *([] if crafted is None else [crafted]))
        whole = Run(needs=needs, prepare=partial(_inputs, radii, crafted))
        if not model.draws:
            return (whole,)
        parts = [part for part in self.parts if isinstance(part, GradientPerturber)]
        gradients = self.model_copy(update={"parts": tuple(part.model_copy(update={"at": "gate"}) for part in parts)})
        draws = [
            Run(f"draw-{draw}", attack=gradients, needs=radii.needs, prepare=partial(_inputs, radii, None), draw=draw)
            for draw in range(len(model.draws) + 1)
        ]
        return (whole, *draws, Run(WITHOUT_DRAW, needs=needs, prepare=whole.prepare, without_draw=True))

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        radii = self.radii(scope)

        def replay(candidate: str, baseline: str) -> ReplayedBothWays:
            return ReplayedBothWays(scope.label, candidate, baseline, radii, self.records)

        found: list[Need] = [Ran(model.name, run.detail) for run in self.runs(model, scope)]
        found += [Ran(name) for name in model.baselines]
        found += [RoomToFall(scope.label, name, self.norm) for name in model.baselines]
        if any(part.uses_parent for part in self.parts):
            found += [replay(model.name, name) for name in model.baselines]
            found += [replay(other, model.name) for other in scope.compared_with(model.name)]
        return (*found, *radii.needs)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", WITHOUT_DRAW) if model.draws else ("",)

    def measure(self, results: Results) -> list[Measurement]:
        return measure_evasion(self, results)

    def power(self, scope: Scope) -> list[str]:
        records = min(self.records, len(scope.data.evaluation_ids))
        return [f"Evasion: {unseen_loss('a loss of robust accuracy', records)}."]

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
        run = EvasionRun.of(self, case)
        if self.gate > whole_range(self.norm, tuple(run.records.x.shape[1:])):
            raise InputError(
                f"The L2 epsilon {self.gate:g} is more than the distance between any two inputs: it counts in "
                "units of [0, 1] pixels."
            )
        results: dict[str, PartResult] = {}
        skipped: dict[str, str] = {}
        for part in distinct(self.parts, case):
            reason = part.why_not(case)
            if reason is None:
                try:
                    results[part.part] = attack_by(part, run, self, seed=derive(seed, "evasion", part.part))
                except NotApplicable as error:
                    reason = str(error)
            if reason is not None:
                skipped[part.part] = reason
        if not results:
            raise NotApplicable("no part of the attack can run: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
        return run.evidence(self, results, skipped)


def _inputs(radii: Radii, crafted: CraftedOnParent | None, inputs: Inputs) -> EvasionInputs:
    """What a run finds in its case."""
    arrays = {} if crafted is None else inputs.prepared(crafted).arrays
    return EvasionInputs(
        radii.resolved(inputs), {float(epsilon): torch.from_numpy(array) for epsilon, array in arrays.items()}
    )


def _number(value: Any) -> Any:
    """As a float where it is one, of NumPy or in a text; else as it is, for the field to refuse."""
    if isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def distinct(parts: tuple[Perturber, ...], case: Case) -> list[Perturber]:
    """The parts without those that would repeat another: a float candidate's native gradients are its twin's."""
    followed = {
        part.kind for part in parts if isinstance(part, GradientPerturber) and part.gradients == "straight-through"
    }

    def repeats(part: Perturber) -> bool:
        native = isinstance(part, GradientPerturber) and part.gradients == "native"
        return native and case.native is not None and case.native is case.twin and part.kind in followed

    return [part for part in parts if not repeats(part)]
