"""Evasion as a call: adversarial inputs for one model and some records, without a plan, a store or a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.model import BATCH, Target, TorchTarget, records_at_once
from ..access import Flag, Ledger
from . import trust
from .ascent.losses import margins, reached
from .ascent.walk import falls
from .blocks import COPIES
from .call.approach import Care, search_nearest
from .call.attackable import Attackable, case_of
from .call.doubts import ROUNDING, differ, varies
from .call.question import Question
from .call.within import Course, confirm, search_within
from .engine import Perturber
from .nearest.found import Distance
from .parameters import BUDGETS, Budget, distinct

CARE: dict[Budget, Care] = {
    "quick": Care(steps=30, classes=0, each=10, best=1, polish=20),
    "standard": Care(steps=40, classes=5, each=20, best=1, polish=40),
    "thorough": Care(steps=100, classes=9, each=20, best=2, polish=50),
}


@dataclass(frozen=True, eq=False)
class Evaded:
    """What `evade` found, n records each, on the device of `x`.

    Args:
        adversarial: float32 [n, *shape], inside the allowed set: what fooled the model, or else came closest to it.
        success: bool [n]: the model itself answers it as the attacker wants.
        distance: float64 [n], from the record, in the norm asked for and in x's own units; infinite without success.
        parts: by part of the attack, bool [n]: what it fooled of what those before it had left.
        flags: why failures may say little (`attacks.access.Flag`), by part, and under `all` for the whole.
        ledger: forward and backward passes through gradients, and queries of the model, all in records.
    """

    adversarial: Tensor
    success: Tensor
    distance: Tensor
    parts: dict[str, Tensor]
    flags: dict[str, list[str]]
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def queries(self) -> int:
        """Records that the model answered."""
        return self.ledger.queries

    def __repr__(self) -> str:
        found, n = int(self.success.sum()), len(self.success)
        raised = sorted({flag for flags in self.flags.values() for flag in flags})
        doubts = f", flags: {', '.join(raised)}" if raised else ""
        return f"<Evaded: {found} of {n} records, {self.queries} queries{doubts}>"


def evade(
    target: nn.Module | Path | str | bytes | Target | Attackable,
    x: Tensor,
    y: Tensor,
    *,
    norm: Distance = "linf",
    epsilon: float | None = None,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    target_class: int | Tensor | None = None,
    grid: float | None = None,
    budget: Budget = "standard",
    parts: Sequence[Perturber] | None = None,
    parent: nn.Module | None = None,
    seed: int = 0,
) -> Evaded:
    """Looks for adversarial inputs near records, and asks the model itself about each.

    ```python
    >>> import torch
    >>> from crushproof import evade
    >>> _ = torch.manual_seed(0)
    >>> net, x = torch.nn.Linear(4, 3), torch.rand(20, 4)
    >>> evade(net, x, net(x).argmax(1), epsilon=0.3, budget="quick").success.float().mean() > 0.5
    tensor(True)

    ```

    Args:
        target: see `attackable`.
        x: float32 [n, *shape], clean records; y: int64 [n], their classes.
        norm: of the distance; "l0" counts the elements that differ. epsilon: the largest one, in x's own units. None:
            the nearest input that can be found; with limits for each element (tensors) any input within them.
        lower, upper: what an input may be, with epsilon as well: one number, or float32 broadcastable to x for every
            element of every record (L-inf only). Kept to the bit. Left out: 0 and 1, where x lies within.
        target_class: the class to reach, for all or for each record; None: any but the record's own.
        grid: the step between the values that an input may have, from 0 or `lower` (one number) on: 1 / 255 for 8-bit
            pixels scaled to [0, 1]. Only such inputs are judged and handed out, and distances count in whole steps.
        budget: how hard to try, see `parameters.BUDGETS`, the parts that a plan names so as well; parts: instead of
            those. A `step_size` of theirs counts in widths of what an element may be, of which the radius is half (in
            an L2 ball, in widths of the bounds).
        parent: the uncompressed model that the target came from, for parts that use it (`diva`).
        seed: what is drawn for a record follows from it and from the record's place.

    Raises:
        InputError: shapes do not fit, a record lies outside of the limits, or a number is none.
        NotApplicable: no part can attack this target.
    """
    question = Question.of(target, x, y, norm, epsilon, lower, upper, target_class, grid)
    searched, center, goal = question.searched, question.region.center, question.goal
    case = case_of(searched, Records(center, question.wanted), parent)
    ledger = Ledger(queries=len(x))
    answers = searched.deployed.logits(center)
    course = Course.of(center, reached(answers, question.wanted, goal))
    modules = () if searched.twin is None else (searched.twin,)
    batch = records_at_once(center[:1], *modules, copies=COPIES) if modules else BATCH
    tried = distinct(BUDGETS[budget], case) if parts is None else parts
    search_within(course, tried, case, question.region, goal, seed=seed, batch=batch, ledger=ledger)
    if isinstance(searched.deployed, TorchTarget):  # of which a copy was asked (`case_of`)
        able = [part for part in tried if part.part in course.parts]
        given = searched.deployed
        confirm(course, able, case, given, question.region, goal, seed=seed, batch=batch, ledger=ledger)
    if question.nearest and (course.parts or modules):
        search_nearest(course, case, question, CARE[budget], batch=batch, ledger=ledger)
    if not course.parts:
        raise NotApplicable("no part of the attack can run: " + "; ".join(course.skipped))
    return _judged(question, course, answers, x.device, seed, ledger)


def _judged(
    question: Question, course: Course, answers: Tensor, device: torch.device, seed: int, ledger: Ledger
) -> Evaded:
    """What the model itself says to the inputs that were found; `answers` are those to the records."""
    opened, x, wanted, goal = question.opened, question.x, question.wanted, question.goal
    inputs = question.inputs(course.best)
    logits = opened.deployed.logits(inputs)
    ledger.queries += len(x)
    again = reached(logits, wanted, goal) & question.region.contains(inputs)
    off = margins(logits, wanted, goal) > ROUNDING * logits.abs().amax(1)
    lost = bool((course.success.to(x.device) & ~again & off).any())
    raised = {
        Flag.ANSWERS_VARY: lost or varies(opened.deployed, x, ledger),
        Flag.BELOW_GRID: question.below_grid,
    }
    if opened.twin is None:
        raised[Flag.NO_WHITE_BOX] = True
    else:
        raised[Flag.WEAK_ATTACK] = course.weak
        raised[Flag.TWIN_DISAGREES] = differ(opened.twin, x, answers, ledger)
        raised[Flag.BLACK_BOX_WINS] = trust.beats(course.success.numpy(), course.white.numpy())
        if (epsilon := question.epsilon) is not None:
            nearby = epsilon / 2 if question.norm == "linf" else epsilon / 2 / x[0].numel() ** 0.5
            low, high = question.limits
            fall = falls(opened.twin, x, lambda near: near.minimum(high).maximum(low), nearby, seed, ledger)
            raised[Flag.MARGIN_CLIFF] = trust.cliff(fall.cpu().numpy())
    flags = {part: some for part, some in course.flags.items() if some}
    if whole := sorted(str(flag) for flag in raised if raised[flag]):
        flags["all"] = whole
    distance = question.distances(inputs)
    success = course.success.to(x.device) & again & question.near_enough(distance)
    distance = torch.where(success, distance, torch.inf).to(device)
    return Evaded(inputs.to(device), success.to(device), distance, course.parts, flags, ledger)
