"""The epsilons of an attack: its own, those a probe chooses for it, and what is asked where they leave no room."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from ....targets.errors import NotApplicable
from ....targets.form import Arrays, Document, Form, Share, require
from ....targets.seeds import derive
from ....training.ball import Norm
from ...case import Case
from ...effort import Effort
from ...preparation import Deployed, Inputs, Need, Preparation, Prepared, Ran, Scope
from ..ball import whole_range
from ..categories import not_pixels
from ..radius import LADDERS, LEAST, MOST, RECORDS, choose, curve


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
