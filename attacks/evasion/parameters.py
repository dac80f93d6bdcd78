"""What an evasion attack is told: the ball, its radii, how many records, and the parts it is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter, field_validator, model_validator

from ...targets.errors import InputError
from ...targets.technique import Registry
from ...training.ball import Norm
from ..case import Case
from ..effort import Effort
from ..preparation import Audited, Scope
from ..risk import Metric, Risk
from ..rounds import InRounds
from .black_box.square import Square
from .black_box.transfer import Transfer
from .engine import PERTURBERS, Perturber
from .gradient.apgd import Apgd
from .gradient.apgd_targeted import ApgdTargeted
from .gradient.diva import Diva
from .gradient.diversified import Diversified
from .gradient.pgd import GradientPerturber, Pgd
from .preparations.asked_of_others import AskedOfOthers
from .preparations.evade_only import EvadeOnly
from .preparations.radii import Radii
from .radius import CURVE, Radius, Reach, curve
from .risk import EVADE_ONLY, EVASION, ROBUST_ACCURACY


def parse_part(raw: Any) -> Perturber:
    """A part from a mapping with `kind`, a bare kind, or a perturber as it is."""
    try:
        return PERTURBERS.parse(raw)
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from None  # who tells it adds where, and a full stop


Part = Annotated[SerializeAsAny[Perturber], BeforeValidator(parse_part)]

Budget = Literal["quick", "standard", "thorough"]

# What plan and `evade` run alike; what a model has no use for is left out (`distinct`, `Perturber.why_not`). The dear
# parts run at the gate's epsilon alone. Measured on 800 digits at an L-inf epsilon of .12, half of them on a float net,
# half on a 4-bit one: PGD, two runs of APGD and Square leave 171 standing, `standard` 164.
BUDGETS: dict[Budget, tuple[Perturber, ...]] = {
    "quick": (Pgd(steps=20, loss="margin"), Transfer()),
    "standard": (
        Pgd(steps=20),
        ApgdTargeted(steps=20, classes=5, at="gate"),
        Diversified(steps=10, restarts=10, at="gate"),
        Pgd(steps=20, gradients="native", at="gate"),
        Transfer(),
        Square(queries=200),
    ),
    "thorough": (
        Pgd(steps=20, loss="margin"),
        Diversified(steps=20, restarts=200, at="gate"),
        Square(queries=100, label="square-first"),
        Apgd(steps=50, restarts=3),
        Apgd(steps=50, restarts=3, loss="dlr", label="apgd-dlr", at="gate"),
        ApgdTargeted(steps=50, classes=9, at="gate"),
        Pgd(steps=20, gradients="native", at="gate"),
        Transfer(),
        Square(queries=5000, at="gate"),
    ),
}


def parse_parts(raw: Any) -> Any:
    """The parts of a budget by its name; anything else as it is."""
    if not isinstance(raw, str):
        return raw
    for budget, parts in BUDGETS.items():
        if raw == budget:
            return parts
    known = ", ".join(BUDGETS)
    raise ValueError(f"parts is {raw!r:.60}; it is a list of attackers, for example [pgd, square], or one of {known}")


def distinct(parts: tuple[Perturber, ...], case: Case) -> list[Perturber]:
    """The parts without those that would repeat another: a float candidate's native gradients are its twin's."""
    followed = {
        part.kind for part in parts if isinstance(part, GradientPerturber) and part.gradients == "straight-through"
    }

    def repeats(part: Perturber) -> bool:
        native = isinstance(part, GradientPerturber) and part.gradients == "native"
        return native and case.native is not None and case.native is case.twin and part.kind in followed

    return [part for part in parts if not repeats(part)]


class EvasionParameters(InRounds):
    """The fields of the evasion attack, and what follows from them alone."""

    kind: Literal["evasion"] = "evasion"
    risk: ClassVar[Risk] = EVASION
    metrics: ClassVar[tuple[Metric, ...]] = (ROBUST_ACCURACY, EVADE_ONLY)
    parts_known: ClassVar[Registry[Any] | None] = PERTURBERS

    norm: Norm = Field("linf", description="linf or l2; both in units of [0, 1] pixels")
    epsilon: Reach | Literal["auto"] | None = Field(
        "auto",
        description="the radius the policy judges, with a curve from .3 to 1.5 times it; auto: where the dense model "
        "keeps about half of its accuracy. Or name `epsilons`",
    )
    epsilons: tuple[Reach, ...] = Field((), max_length=100, description="radii of your own instead, smallest first")
    gate_epsilon: Reach | None = Field(
        None, description="which of `epsilons` the policy judges; .1, or the largest if that is none of them"
    )
    radius: Radius | None = Field(
        None, description="what a probe chose, as a resolved plan holds it; it stands in place of epsilon"
    )
    parts: Annotated[tuple[Part, ...], BeforeValidator(parse_parts)] = Field(
        BUDGETS["standard"], description="the attackers the worst case is over: a list, or quick, standard, thorough"
    )

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
        if raw.get("radius") is not None:
            chosen = (
                raw["radius"]
                if isinstance(raw["radius"], Radius)
                else TypeAdapter(Radius).validate_python(raw["radius"])
            )
            return {
                **raw,
                "radius": chosen,
                "epsilon": None,
                "epsilons": chosen.epsilons,
                "gate_epsilon": chosen.epsilon,
            }
        epsilon, epsilons, gate = _number(raw.get("epsilon")), raw.get("epsilons"), _number(raw.get("gate_epsilon"))
        for name, radius in (("epsilon", epsilon), ("gate_epsilon", gate)):
            if radius not in (None, "auto") and not (isinstance(radius, float) and 0 < radius <= 1000):
                more = "; several go under epsilons" if isinstance(radius, list | tuple) else ""
                raise ValueError(f"{name} is {radius!r:.60}; it must be a number above 0, for example 8/255{more}")
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
    def _consistent(self) -> Self:
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
    def effort(self) -> Effort:
        """Of one run; about half of the records are let go early."""
        answers = gradients = 0.0
        for part in self.parts:
            radii = 1 if part.at == "gate" else len(self.epsilons) or len(CURVE)
            answers += 0.5 * radii * part.effort.answers
            gradients += 0.5 * radii * part.effort.gradients
        return Effort(answers * self.count, gradients * self.count, seconds=1.0)

    @property
    def automatic(self) -> bool:
        """Whether the radius is still to be chosen (`at`)."""
        return self.epsilon == "auto"

    @property
    def gate(self) -> float:
        """The radius the policy judges, once there is one."""
        assert self.gate_epsilon is not None, "the radius is still to be chosen"
        return self.gate_epsilon

    def at(self, epsilon: float, epsilons: tuple[float, ...]) -> Self:
        """The same attack at these radii, judged at the first argument."""
        return self.model_copy(update={"epsilon": None, "epsilons": epsilons, "gate_epsilon": epsilon})

    def with_radius(self, chosen: Mapping[str, Any]) -> Self:
        """The same attack at a radius that a probe chose: the fields of `Radius`."""
        radius = TypeAdapter(Radius).validate_python(dict(chosen))
        return self.at(radius.epsilon, radius.epsilons).model_copy(update={"radius": radius})

    def radii(self, scope: Scope) -> Radii:
        """Its epsilons, or where they come from."""
        return Radii(self.norm, self.epsilons, None if self.automatic else self.gate, scope.reference.name)

    def evade_only(self, model: Audited, scope: Scope) -> EvadeOnly | None:
        """What asks the dense model about inputs that fool this one; None: it is dense, or of none that is known."""
        if model.parent is None or model.is_dense:
            return None
        part = next((part for part in self.parts if isinstance(part, Diva)), Diva())
        return EvadeOnly(scope.label, model.name, model.parent.name, self.norm, self.count, part)

    def asked_of_others(self, model: Audited, scope: Scope) -> AskedOfOthers:
        """What asks all other models about the inputs that fool this one."""
        return AskedOfOthers(scope.label, model.name, tuple(name for name in scope.models if name != model.name))


def _number(value: Any) -> Any:
    """As a float where it is one, of NumPy or in a text; else as it is, for the field to refuse."""
    if isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
