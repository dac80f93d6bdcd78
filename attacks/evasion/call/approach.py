"""From any adversarial input of a record to the nearest one that can be found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....training.ball import per_record
from ...access import Ledger
from ...case import Case
from ..ascent.gradients import Gradients
from ..ascent.losses import Goal, reached
from ..ball import Box
from ..nearest.ddn import ddn
from ..nearest.fewer import fewer
from ..nearest.fmn import fmn
from ..nearest.found import Nearest
from ..nearest.greedy import greedy
from ..nearest.linear import linear
from ..nearest.sigma_zero import sigma_zero
from .question import Question
from .within import Course

MOST = 200  # elements that are added one by one


@dataclass(frozen=True)
class Care:
    """How long a search for the nearest input goes on.

    Args:
        steps: of the search away from the record's class, or to the one that is wanted (L0: twice as many).
        classes: so many of the likeliest others are tried one by one as well, with `each` steps.
        best: of those so many go on from where they were, the nearest ones (L0: sets of elements side by side).
        each: see above (L0: further elements that are tried with each set).
        polish: steps from what was found (L0: elements that are tried without).
    """

    steps: int
    classes: int
    each: int
    best: int
    polish: int


def search_nearest(course: Course, case: Case, question: Question, care: Care, *, batch: int, ledger: Ledger) -> None:
    """Puts in the course the nearest inputs that can be found, from those that it has and without them.

    Args:
        case: the question's records and model; without a twin only the way back to the record is tried.
        batch: records at a time.
    """
    x, wanted, goal, box = case.evaluation.x, question.wanted, question.goal, question.region
    assert isinstance(box, Box)  # as wherever the nearest is looked for
    onto = None if question.on is None else question.on.onto
    found = torch.zeros_like(course.success)
    for rows in torch.arange(len(x), device=x.device).split(batch):

        def right(inputs: Tensor, some: Tensor, wanted: Tensor = wanted[rows]) -> Tensor:
            ledger.queries += len(inputs)  # the model itself is asked: a copy may take the nearest ones otherwise
            return reached(question.searched.deployed.logits(inputs), wanted[some], goal)

        nearest = Nearest(x[rows], box.low[rows], box.high[rows], question.norm, right, onto)
        here = rows.cpu()
        nearest.offer(course.best[here].to(x.device), course.success[here].to(x.device))
        if case.twin is not None:
            search = _fewest if question.norm == "l0" else _shortest
            search(nearest, case.twin, wanted[rows], goal, care, ledger)
        nearest.halve()
        found[here] = nearest.length.isfinite().cpu()
        best = torch.where(per_record(nearest.length.isfinite(), x[rows]), nearest.x, course.best[here].to(x.device))
        course.best[here] = best.cpu()
    course.parts["nearest"] = found & ~course.success
    course.success = course.success | found
    if case.twin is not None:
        course.white |= course.parts["nearest"]


def _shortest(nearest: Nearest, twin: nn.Module, y: Tensor, goal: Goal, care: Care, ledger: Ledger) -> None:
    """A search away from the class, then linear models from what it found, to one class after the other, from these."""
    away = Gradients(twin, "margin", ledger, goal=goal)
    if nearest.distance == "l2":
        ddn(Gradients(twin, "ce", ledger, goal=goal), y, nearest, care.steps)
    else:
        fmn(away, y, nearest, care.steps)
    linear(away, y, nearest, care.polish, start=nearest.x.clone())
    if goal == "targeted" or care.classes == 0:
        return
    to = Gradients(twin, "margin", ledger, goal="targeted")
    every, alone = torch.arange(len(y), device=y.device), []
    targets = away.ranked(nearest.center, y).T[: care.classes]
    for target in targets:
        own = nearest.take(every)
        own.length = torch.full_like(own.length, torch.inf)
        linear(to, target, own, care.each)
        nearer = every[own.length < nearest.length]
        nearest.put(nearer, own.take(nearer))
        alone.append(own)
    order = torch.stack([own.length for own in alone]).argsort(dim=0)
    ends = torch.stack([own.x for own in alone])
    for chosen in order[: care.best]:
        linear(to, targets[chosen, every], nearest, care.polish, start=ends[chosen, every])


def _fewest(nearest: Nearest, twin: nn.Module, y: Tensor, goal: Goal, care: Care, ledger: Ledger) -> None:
    away = Gradients(twin, "margin", ledger, goal=goal)
    greedy(away, y, nearest, MOST, beams=care.best, width=care.each)
    sigma_zero(away, y, nearest, 2 * care.steps)
    fewer(away, y, nearest, care.polish)
    fewer(away, y, nearest, care.polish, swap=True)
