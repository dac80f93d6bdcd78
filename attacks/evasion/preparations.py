"""The shared work of evasion: the radius, inputs crafted on a parent, and what a fair comparison needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Share, require
from ...targets.seeds import derive
from ..case import Case
from ..effort import Effort
from ..preparation import Deployed, Inputs, Need, Preparation, Prepared, Ran, Scope, Weights
from .ball import Ball, Norm, whole_range
from .black_box.transfer import replayed
from .categories import not_pixels
from .gradient.pgd import craft
from .radius import LADDERS, LEAST, MOST, RECORDS, choose, curve

CRAFT_STEPS = 40  # of `craft`


class Chosen(Document):
    """The fields of `radius.Radius`; the radii of the probe as JSON has keys."""

    epsilon: PositiveFloat
    epsilons: tuple[PositiveFloat, ...]
    kept: Share
    records: PositiveInt
    how: Literal["ladder", "bisected", "nearest"]
    probe: dict[str, Share]


class Probed(Document):
    """`radius`; None: nothing was probed."""

    radius: Chosen | None


def form_of_radius(norm: Norm, scope: Scope, *, may_lack: bool) -> Form:
    """What a chosen radius looks like; its curve and what is kept there follow from epsilon and probe."""

    def holds(document: Probed, arrays: Arrays, files: Any) -> None:
        found = document.radius
        require(found is not None or may_lack, "there is no radius")
        if found is None:
            return
        limit = whole_range(norm, scope.data.shape)
        require(found.epsilons == curve(found.epsilon, limit), "the curve is not drawn around epsilon")
        clean, there = found.probe["0.0"], found.probe[repr(found.epsilon)]
        require(abs(found.kept - (there / clean if clean else 0.0)) < 1e-9, "kept does not follow from the probe")
        require(found.records <= RECORDS and found.epsilon <= limit, "more than a probe can be")
        require(found.how == "nearest" or LEAST <= found.kept <= MOST, "a radius that keeps too much or too little")
        require(found.how != "ladder" or found.epsilon in (*LADDERS[norm], limit), "a radius that is no rung")

    return Form(Probed, {}, holds=holds)


@dataclass(frozen=True)
class RadiusProbe(Preparation):
    """The epsilon that the reference model's own curve asks for.

    Document: `radius`, the fields of `radius.Radius`.
    """

    phase: ClassVar[str] = "evasion"
    norm: Norm
    reference: str

    @property
    def name(self) -> str:
        return f"radius/{self.norm}"

    @property
    def words(self) -> str:
        return f"probing for a fitting epsilon on {self.reference}"

    @property
    def identity(self) -> Any:
        return ["radius", self.norm]

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Deployed(self.reference),)

    def compute(self, inputs: Inputs) -> Prepared:
        return chosen_radius(inputs.case(self.reference), self.norm, inputs.scope.seed)

    def form(self, scope: Scope) -> Form:
        return form_of_radius(self.norm, scope, may_lack=False)


def chosen_radius(case: Case, norm: Norm, seed: int) -> Prepared:
    """The epsilon at which the probed model keeps about half of its accuracy, and the probe it follows from.

    Raises:
        NotApplicable: the inputs are no pixels.
    """
    why_not = not_pixels(case)
    if why_not is not None:
        raise NotApplicable(why_not)
    return Prepared(document={"radius": asdict(choose(case, norm, seed=derive(seed, "radius")))})


@dataclass(frozen=True)
class Radii:
    """The epsilons of an attack: its own, or those around the radius that is chosen for it.

    Args:
        gate: the one a policy judges; None: it is still to be chosen.
    """

    norm: Norm
    epsilons: tuple[float, ...]
    gate: float | None
    reference: str

    @property
    def needs(self) -> tuple[RadiusProbe, ...]:
        return (RadiusProbe(self.norm, self.reference),) if self.gate is None else ()

    def resolved(self, inputs: Inputs) -> tuple[float, tuple[float, ...]]:
        """The gate's epsilon, and all of them."""
        if self.gate is not None:
            return self.gate, self.epsilons
        return radii_of(inputs.prepared(self.needs[0]))


def radii_of(chosen: Prepared) -> tuple[float, tuple[float, ...]]:
    """The gate's epsilon and all epsilons of a chosen radius."""
    radius = chosen.document["radius"]
    return radius["epsilon"], tuple(radius["epsilons"])


class Crafted(Preparation):
    """Adversarial inputs made on one model, which others are asked.

    Arrays: by the `repr` of an epsilon, float32 [records, *shape].
    """

    phase: ClassVar[str] = "evasion"
    radii: Radii
    records: int

    @property
    def identity(self) -> Any:
        return [*self.sharing, self.records]

    def form(self, scope: Scope) -> Form:
        inputs = Array("float32", (min(self.records, len(scope.data.evaluation_ids)), *scope.data.shape))
        return Form(Document, {f"{epsilon!r}": inputs for epsilon in self.epsilons} or {"*": inputs})

    @property
    def epsilons(self) -> tuple[float, ...]:
        """At which it is crafted; none as long as they are still to be chosen."""
        return self.radii.epsilons

    def crafted(self, inputs: Inputs, module: nn.Module, epsilons: tuple[float, ...]) -> Prepared:
        data = inputs.scope.data
        records = data.evaluation.take(torch.arange(min(self.records, len(data.evaluation))))
        seed = derive(inputs.scope.seed, "transfer")
        found = craft(module, records, epsilons, self.radii.norm, data.bounds, seed=seed)
        return Prepared(arrays={f"{epsilon!r}": x.cpu().numpy() for epsilon, x in found.items()})


@dataclass(frozen=True)
class CraftedOnParent(Crafted):
    """Made on a dense model at every epsilon, for all its candidates."""

    parent: str
    radii: Radii
    records: int

    @property
    def name(self) -> str:
        epsilons = "-".join(f"{epsilon!r}" for epsilon in self.radii.epsilons) or "auto"
        return f"transfer/{self.parent}/{self.radii.norm}-{epsilons}-{self.records}"

    @property
    def words(self) -> str:
        return f"inputs that fool {self.parent}, to be tried on its candidates ({self.records} records)"

    @property
    def sharing(self) -> Any:
        return [self.radii.norm, self.radii.epsilons]

    @property
    def effort(self) -> Effort:
        return Effort(gradients=CRAFT_STEPS * len(self.radii.epsilons) * self.records)

    @property
    def needs(self) -> tuple[Need, ...]:
        return Weights(self.parent), *self.radii.needs

    def compute(self, inputs: Inputs) -> Prepared:
        return self.crafted(inputs, inputs.weights(self.parent), self.radii.resolved(inputs)[1])


@dataclass(frozen=True)
class CraftedOnCandidate(Crafted):
    """Made on a model at the gate's epsilon, for those it is compared with."""

    label: str
    candidate: str
    radii: Radii
    records: int

    @property
    def name(self) -> str:
        return f"crafted/{self.label}/{self.candidate}"

    @property
    def words(self) -> str:
        return f"inputs that fool {self.candidate}, to be tried on what it comes from ({self.records} records)"

    @property
    def sharing(self) -> Any:
        return ["crafted", self.radii.norm, self.radii.gate]

    @property
    def epsilons(self) -> tuple[float, ...]:
        return () if self.radii.gate is None else (self.radii.gate,)

    @property
    def effort(self) -> Effort:
        return Effort(gradients=CRAFT_STEPS * self.records, through=self.candidate)

    @property
    def needs(self) -> tuple[Need, ...]:
        return Deployed(self.candidate), *self.radii.needs

    def compute(self, inputs: Inputs) -> Prepared:
        twin = inputs.case(self.candidate).twin
        if twin is None:
            raise NotApplicable("nothing can be crafted on it: it has no differentiable twin")
        return self.crafted(inputs, twin, (self.radii.resolved(inputs)[0],))


@dataclass(frozen=True)
class ReplayedBothWays(Preparation):
    """Which records the inputs crafted on each of two models, at the gate's epsilon, fool on the other.

    Arrays `on_candidate` and `on_baseline`, bool [n] (clean errors count): the one part of an attack that a model and
    the one it came from can both face alike. Both are crafted by the same steps from the same starts.
    """

    phase: ClassVar[str] = "evasion"
    label: str
    candidate: str
    baseline: str
    radii: Radii
    records: int

    @property
    def name(self) -> str:
        return f"replay/{self.label}/{self.candidate}/{self.baseline}"

    @property
    def words(self) -> str:
        return f"what fools {self.candidate} tried on {self.baseline}, and back ({self.records} records)"

    @property
    def identity(self) -> Any:
        return [*self.sharing, self.records]

    @property
    def sharing(self) -> Any:
        return ["replay", self.radii.norm, self.radii.gate]

    @property
    def effort(self) -> Effort:
        return Effort(answers=2 * self.records)

    @property
    def _crafted(self) -> tuple[CraftedOnParent, CraftedOnCandidate]:
        return (
            CraftedOnParent(self.baseline, self.radii, self.records),
            CraftedOnCandidate(self.label, self.candidate, self.radii, self.records),
        )

    @property
    def needs(self) -> tuple[Need, ...]:
        return Deployed(self.candidate), Deployed(self.baseline), *self._crafted, *self.radii.needs

    def compute(self, inputs: Inputs) -> Prepared:
        gate, _ = self.radii.resolved(inputs)
        theirs, mine = (torch.from_numpy(np.array(inputs.prepared(one).arrays[f"{gate!r}"])) for one in self._crafted)
        candidate, baseline = inputs.case(self.candidate), inputs.case(self.baseline)
        records = candidate.evaluation.take(torch.arange(min(self.records, len(candidate.evaluation))))
        ball = Ball(self.radii.norm, gate, records.x, candidate.bounds)
        return Prepared(
            arrays={
                "on_candidate": replayed(candidate.deployed, theirs, records, ball).cpu().numpy(),
                "on_baseline": replayed(baseline.deployed, mine, records, ball).cpu().numpy(),
            }
        )

    def form(self, scope: Scope) -> Form:
        outcomes = Array("bool", (min(self.records, len(scope.data.evaluation_ids)),))
        return Form(Document, {"on_candidate": outcomes, "on_baseline": outcomes})


@dataclass(frozen=True)
class RoomToFall(Preparation):
    """Where a dense model is left with less than a third of its accuracy: the epsilon at which it keeps about half.

    The document's `radius` is None where there is room enough, and nothing was probed.
    """

    phase: ClassVar[str] = "evasion"
    label: str
    dense: str
    norm: Norm

    @property
    def name(self) -> str:
        return f"room/{self.label}/{self.dense}"

    @property
    def words(self) -> str:
        return f"how far {self.dense} can still fall"

    @property
    def identity(self) -> Any:
        return ["room", self.norm]

    @property
    def effort(self) -> Effort:
        """Nothing as a rule: the radius was chosen so that there is room; else a probe at about four radii."""
        return Effort(gradients=0.25 * 4 * 20 * RECORDS)

    @property
    def needs(self) -> tuple[Need, ...]:
        return Ran(self.dense), Deployed(self.dense)

    def compute(self, inputs: Inputs) -> Prepared:
        attacked = inputs.evidence(Ran(self.dense))
        gate = attacked.summary["gate_epsilon"]
        robust, clean = 1 - attacked.arrays[f"worst/{gate!r}"].mean(), attacked.arrays["clean_correct"].mean()
        if robust >= LEAST * clean:
            return Prepared(document={"radius": None})
        return chosen_radius(inputs.case(self.dense), self.norm, inputs.scope.seed)

    def form(self, scope: Scope) -> Form:
        return form_of_radius(self.norm, scope, may_lack=True)
