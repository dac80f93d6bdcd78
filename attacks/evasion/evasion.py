"""The evasion attack: the worst case per record over its parts, each success confirmed by the deployed model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny, field_validator, model_validator
from torch import Tensor

from ...targets.errors import InputError, NotApplicable
from ...targets.model import device_of
from ...targets.records import Records
from ...targets.seeds import derive
from ..attack import ATTACKS, Access, Attack, Case, Evidence, Flag, Ledger
from . import trust
from .apgd import Apgd
from .ball import Norm, whole_range
from .categories import not_pixels
from .engine import PERTURBERS, Perturber, Search
from .pgd import GradientPerturber, Pgd
from .radius import choose, curve
from .square import Square
from .transfer import Transfer

UNBOUNDED_RECORDS = 100  # attacked without a limit on epsilon, to see whether an attack works at all


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
    risk: ClassVar[str] = "evasion"

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

    def run(self, case: Case, *, seed: int) -> Evidence:
        reason = not_pixels(case)
        if reason is not None:
            raise NotApplicable(reason)
        if self.automatic:
            chosen = choose(case, self.norm, seed=seed)
            return self.at(chosen.epsilon, chosen.epsilons).run(case, seed=seed)
        arena = Arena.of(self, case)
        if self.gate > whole_range(self.norm, tuple(arena.records.x.shape[1:])):
            raise InputError(
                f"The L2 epsilon {self.gate:g} is more than the distance between any two inputs: it counts in "
                "units of [0, 1] pixels."
            )
        results: dict[str, Result] = {}
        skipped: dict[str, str] = {}
        for part in distinct(self.parts, case):
            reason = part.why_not(case)
            if reason is None:
                try:
                    results[part.part] = attack_by(part, arena, self, seed=derive(seed, "evasion", part.part))
                except NotApplicable as error:
                    reason = str(error)
            if reason is not None:
                skipped[part.part] = reason
        if not results:
            raise NotApplicable("no part of the attack can run: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
        return arena.evidence(self, results, skipped)


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


@dataclass
class Result:
    """What one part found.

    Args:
        part: with its parameters.
        fooled: by epsilon, bool [n].
        without_gradient: how many records withstood it at the gate's epsilon without ever giving a gradient.
        inputs: float32 [n, *shape], at the gate's epsilon: what fooled the deployed model or came closest.
        flags: why its figures may be too optimistic.
    """

    part: Perturber
    inputs: Tensor
    fooled: dict[float, Tensor] = field(default_factory=dict)
    flags: set[Flag] = field(default_factory=set)
    without_gradient: int = 0


@dataclass
class Arena:
    """The records under attack, where the gradients are, and what everything costs."""

    case: Case
    records: Records
    ids: np.ndarray[tuple[int], np.dtype[np.int64]]
    correct: Tensor
    ledger: Ledger

    @classmethod
    def of(cls, attack: Evasion, case: Case) -> Arena:
        count = min(attack.records, len(case.evaluation))
        module = case.twin if case.twin is not None else case.native
        device = case.evaluation.x.device if module is None else device_of(module, case.evaluation.x.device)
        records = Records(case.evaluation.x[:count], case.evaluation.y[:count]).to(device)
        ids = np.asarray(case.ids[:count], dtype=np.int64)
        correct = case.deployed.logits(records.x).argmax(1) == records.y
        return cls(case, records, ids, correct, Ledger(queries=count))

    def search(self, norm: Norm, epsilon: float, among: Tensor, seed: int, *, from_center: bool = False) -> Search:
        return Search(
            self.case.deployed,
            self.records,
            self.ids,
            norm,
            epsilon,
            self.case.bounds.to(self.records.x.device),
            among=among,
            seed=seed,
            ledger=self.ledger,
            from_center=from_center,
        )

    @property
    def labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        labels: np.ndarray[tuple[int], np.dtype[np.int64]] = self.records.y.cpu().numpy()
        return labels

    def evidence(self, attack: Evasion, results: dict[str, Result], skipped: dict[str, str]) -> Evidence:
        arrays: dict[str, np.ndarray[Any, Any]] = {"ids": self.ids, "clean_correct": self.correct.cpu().numpy()}
        access = {part: result.part.access for part, result in results.items()}
        fooled = {
            part: {epsilon: outcome.cpu().numpy() for epsilon, outcome in result.fooled.items()}
            for part, result in results.items()
        }
        for part, result in results.items():
            if access[part] is Access.WHITE_BOX and trust.black_box_wins(part, access, fooled):
                result.flags.add(Flag.BLACK_BOX_WINS)
        flags = {part: sorted(str(flag) for flag in result.flags) for part, result in results.items()}
        worst = ~self.correct.cpu().numpy()
        tried = [epsilon for epsilon in attack.epsilons if any(epsilon in outcomes for outcomes in fooled.values())]
        for epsilon in tried:
            for part in results:
                if epsilon in fooled[part]:
                    arrays[f"fooled/{part}/{epsilon!r}"] = fooled[part][epsilon]
                    worst = worst | fooled[part][epsilon]
            arrays[f"worst/{epsilon!r}"] = worst
        arrays["adversarial"] = self._adversarial(attack.gate, results).cpu().numpy()
        at_gate = {part: outcomes[attack.gate] for part, outcomes in fooled.items()}
        summary = {
            "norm": attack.norm,
            "epsilons": tried,
            "gate_epsilon": attack.gate,
            "parts": list(results),
            "settings": {part: result.part.model_dump(mode="json") for part, result in results.items()},
            "part_access": {part: str(rights) for part, rights in access.items()},
            "use_parent": [part for part, result in results.items() if result.part.uses_parent],
            "union_flags": trust.union_flags(access, flags, at_gate),
            "without_gradient": {
                part: result.without_gradient for part, result in results.items() if result.without_gradient
            },
        }
        return Evidence(
            arrays=arrays,
            summary=summary,
            flags={part: raised for part, raised in flags.items() if raised},
            skipped=skipped,
            ledger=self.ledger,
        )

    def _adversarial(self, gate: float, results: dict[str, Result]) -> Tensor:
        """Per record the input of the first part that fooled the deployed model; of the first part where none did."""
        chosen = next(iter(results.values())).inputs.clone()
        for result in reversed(results.values()):
            chosen[result.fooled[gate]] = result.inputs[result.fooled[gate]]
        chosen[~self.correct] = self.records.x[~self.correct]
        return chosen


def attack_by(part: Perturber, arena: Arena, attack: Evasion, *, seed: int) -> Result:
    """One part at each of its epsilons, smallest first; a record it has fooled once is fooled at larger ones too."""
    count = len(arena.records)
    result = Result(part, arena.records.x.clone())
    fooled, latest = ~arena.correct, arena.records.x.clone()
    for epsilon in attack.epsilons if part.at == "all" else (attack.gate,):
        if not fooled.all():
            search = arena.search(attack.norm, epsilon, ~fooled, derive(seed, repr(epsilon)))
            part.perturb(search, arena.case)
            latest[~fooled] = search.best[~fooled]
            fooled = fooled | search.fooled
            if epsilon == attack.gate:
                result.without_gradient = int((search.flat & ~fooled).sum())
            if trust.gradients_missing(result.without_gradient, count):
                result.flags.add(Flag.NO_GRADIENT)
            if part.access is Access.WHITE_BOX and trust.unfinished(search.found_at.numpy(), count):
                result.flags.add(Flag.UNFINISHED)
        result.fooled[epsilon] = fooled
        if epsilon == attack.gate:
            result.inputs = latest.clone()
    if part.access is Access.WHITE_BOX:
        if not arena.case.twin_agrees:
            result.flags.add(Flag.TWIN_DISAGREES)
        own = isinstance(part, GradientPerturber)  # what ART's classes do without a limit says nothing about gradients
        if own and Flag.NO_GRADIENT not in result.flags and unbounded_fails(part, arena, attack, fooled, seed):
            result.flags.add(Flag.UNBOUNDED_FAILS)
    return result


def unbounded_fails(part: Perturber, arena: Arena, attack: Evasion, fooled: Tensor, seed: int) -> bool:
    """Whether the part, from the clean records and with the whole range to itself, leaves the model above chance."""
    tried = torch.arange(len(arena.records), device=fooled.device) < UNBOUNDED_RECORDS
    labels = arena.labels[:UNBOUNDED_RECORDS]
    if not trust.unbounded_fails(fooled[tried].cpu().numpy(), labels):
        return False  # it got there within epsilon
    epsilon = whole_range(attack.norm, tuple(arena.records.x.shape[1:]))
    search = arena.search(attack.norm, epsilon, tried & ~fooled, derive(seed, "unbounded"), from_center=True)
    part.perturb(search, arena.case)
    return trust.unbounded_fails((fooled | search.fooled)[tried].cpu().numpy(), labels)
