"""From any adversarial input of a record to the nearest one that can be found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...access import Ledger
from ...case import Case
from ..ascent.gradients import Gradients
from ..ascent.losses import reached
from ..ball import Box, per_record
from ..nearest.fewer import fewer
from ..nearest.fmn import fmn
from ..nearest.found import Nearest
from ..nearest.greedy import greedy
from ..nearest.linear import linear
from ..nearest.sigma_zero import sigma_zero
from .question import Question
from .within import Course


@dataclass(frozen=True)
class Care:
    """How long a search for the nearest input goes on.

    Args:
        steps: of the search away from the record's class, or to the one that is wanted.
        classes: so many of the likeliest others are tried one by one as well, with `each` steps (L0: elements at most).
        best: of those so many go on, the nearest ones, with `polish` steps from where they were (L0: `polish` elements
            are tried without).
    """

    steps: int
    classes: int = 0
    each: int = 0
    best: int = 0
    polish: int = 0


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
            ledger.queries += len(inputs)
            return reached(case.deployed.logits(inputs), wanted[some], goal)

        nearest = Nearest(x[rows], box.low[rows], box.high[rows], question.norm, right, onto)
        here = rows.cpu()
        nearest.offer(course.best[here].to(x.device), course.success[here].to(x.device))
        if case.twin is not None:
            away = Gradients(case.twin, "margin", ledger, goal=goal)
            to = Gradients(case.twin, "margin", ledger, goal="targeted")
            targets = away.ranked(x[rows], wanted[rows]).T[: care.classes if goal == "untargeted" else 0]
            search = _fewest if question.norm == "l0" else _shortest
            search(nearest, away, wanted[rows], to, list(targets), care)
        nearest.halve()
        found[here] = nearest.length.isfinite().cpu()
        best = torch.where(per_record(nearest.length.isfinite(), x[rows]), nearest.x, course.best[here].to(x.device))
        course.best[here] = best.cpu()
    course.parts["nearest"] = found & ~course.success
    course.success = course.success | found
    if case.twin is not None:
        course.white |= course.parts["nearest"]


def _shortest(nearest: Nearest, away: Gradients, y: Tensor, to: Gradients, targets: list[Tensor], care: Care) -> None:
    fmn(away, y, nearest, care.steps)
    every = torch.arange(len(y), device=y.device)
    alone = []
    for target in targets:
        own = nearest.take(every)
        own.length = torch.full_like(own.length, torch.inf)
        linear(to, target, own, care.each)
        nearer = every[own.length < nearest.length]
        nearest.put(nearer, own.take(nearer))
        alone.append(own)
    if not targets:
        linear(away, y, nearest, care.polish, start=nearest.x.clone())
        return
    order = torch.stack([own.length for own in alone]).argsort(0)
    for place in range(min(care.best, len(targets))):
        chosen = order[place], every
        start = torch.stack([own.x for own in alone])[chosen]
        linear(to, torch.stack(targets)[chosen], nearest, care.polish, start=start)


def _fewest(nearest: Nearest, away: Gradients, y: Tensor, to: Gradients, targets: list[Tensor], care: Care) -> None:
    sigma_zero(away, y, nearest, care.steps)
    for target in targets:
        greedy(to, target, nearest, care.each)
    if care.polish:
        fewer(away, y, nearest, care.polish)
        fewer(away, y, nearest, care.polish, swap=True)
