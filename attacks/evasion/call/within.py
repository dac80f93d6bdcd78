"""The parts of an attack, one after the other, on what those before them left, in the allowed set of each record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ....targets.errors import NotApplicable
from ....targets.model import Target
from ....targets.seeds import derive
from ...access import Access, Ledger
from ...case import Case
from .. import trust
from ..ascent.losses import Goal, margins, reached
from ..ball import Region
from ..blocks import seek
from ..engine import Perturber
from .doubts import ROUNDING, Hope, flags_of_part


@dataclass(eq=False)
class Course:
    """What a call has found so far, n records each, on the CPU.

    Args:
        best: float32 [n, *shape], what fooled the model, or else came closest to it.
        success: bool [n]; white: those that the attacker with gradients, or with nothing at all, has.
        weak: every part that followed gradients gave up too early to mean anything.
        parts: bool [n] by part, what it fooled of what was left; flags: by part; skipped: who could not run, and why.
    """

    best: Tensor
    success: Tensor
    white: Tensor
    weak: bool = True
    parts: dict[str, Tensor] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, x: Tensor, success: Tensor) -> Course:
        """At its beginning: the records, and which of them are as the attacker wants already."""
        return cls(x.cpu().clone(), success.cpu(), success.cpu().clone())


def search_within(
    course: Course,
    parts: Sequence[Perturber],
    case: Case,
    region: Region,
    goal: Goal,
    *,
    seed: int,
    batch: int,
    ledger: Ledger,
) -> None:
    """Tries the parts in turn and enters in the course what they find.

    Args:
        case: its records have the classes to get away from, or to.
        batch: inputs at a time.
    """
    hope, wanted = Hope(len(course.success)), case.evaluation.y
    lowest: dict[str, Tensor] = {}  # margins, by `Perturber.follows`

    def margin(inputs: Tensor, rows: Tensor) -> Tensor:
        ledger.queries += len(rows)
        return margins(case.deployed.logits(inputs.to(wanted.device)), wanted[rows.to(wanted.device)], goal).cpu()

    for part in parts:
        if (reason := part.why_not(case)) is not None:
            course.skipped.append(f"{part.part}: {reason}")
            continue
        try:
            found = seek(
                part,
                case,
                case.evaluation,
                case.ids,
                region,
                among=~course.success & ~hope.lost,
                seed=derive(seed, "evade", part.part),
                ledger=ledger,
                batch=batch,
                goal=goal,
                before=None if part.follows is None else lowest.get(part.follows),
            )
        except NotApplicable as error:
            course.skipped.append(f"{part.part}: {error}")
            continue
        if part.follows is not None:
            lowest[part.follows] = torch.minimum(lowest.get(part.follows, found.margin), found.margin)
        closest = found.fooled if course.parts else ~course.success
        course.best[closest] = found.best[closest]
        course.success = course.success | found.fooled
        course.parts[part.part] = found.fooled
        course.flags[part.part] = flags_of_part(part, found, len(wanted))
        hope.learn(part, found, margin)
        if part.access is Access.WHITE_BOX:
            course.white |= found.fooled
            course.weak &= trust.too_weak(part.model_dump(), region.epsilon)


def confirm(
    course: Course,
    parts: Sequence[Perturber],
    case: Case,
    given: Target,
    region: Region,
    goal: Goal,
    *,
    seed: int,
    batch: int,
    ledger: Ledger,
) -> None:
    """Searches again, on the same ways but asking the model itself, where an input fools the copy that was asked, and
    not the model, by so little that it may be rounding.

    Where the two differ by more than that, the success stays claimed, and is refused with a flag at the end.

    Args:
        parts: that could run; case: as for `search_within`; given: the model that its `deployed` may be a copy of.
    """
    wanted = case.evaluation.y
    rows = course.success.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    logits, aims = given.logits(course.best[rows].to(wanted.device)), wanted[rows.to(wanted.device)]
    ledger.queries += len(rows)
    near = margins(logits, aims, goal) <= ROUNDING * logits.abs().amax(1)
    left = torch.zeros_like(course.success)
    left[rows] = (near & ~reached(logits, aims, goal)).cpu()
    for part in parts:
        if not left.any():
            return
        found = seek(
            part,
            replace(case, deployed=given),
            case.evaluation,
            case.ids,
            region,
            among=left,
            seed=derive(seed, "evade", part.part),
            ledger=ledger,
            batch=batch,
            goal=goal,
        )
        course.best[found.fooled] = found.best[found.fooled]
        left &= ~found.fooled
