"""Auto-PGD (Croce & Hein 2020, arXiv:2003.01690): momentum, and steps that halve where progress stalls."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ....training.ball import per_record
from ...case import Case
from ..ascent.gradients import Gradients
from ..engine import PERTURBERS, Search
from .pgd import CREDIBLE, EARLIEST, GradientPerturber

MOMENTUM = 0.75  # alpha in the paper
EARLY = 0.2  # of a run, before any record is called out of reach of it
PROSPECT = 2.5  # see `out_of_reach`
ENOUGH = 0.75  # rho: share of the steps since the last checkpoint that must have raised the loss


def checkpoints(steps: int) -> list[int]:
    """The steps after which progress is judged (section 3.2): the first at 22 %, then ever closer, never below 6 %."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({min(steps, math.ceil(share * steps - 1e-9)) for share in shares[1:]})


@PERTURBERS.register
class Apgd(GradientPerturber):
    """Auto-PGD (Croce & Hein 2020, arXiv:2003.01690) with random starts."""

    kind: Literal["apgd"] = "apgd"
    informs: ClassVar[bool] = True

    def perturb(self, search: Search, case: Case) -> None:
        model = self.model(search, case)
        for restart in range(self.restarts):
            if not ascend(search, model, self.steps, restart, self.restarts):
                return


def ascend(
    search: Search, model: Gradients, steps: int, restart: int, restarts: int, *, gives_up: bool = False
) -> bool:
    """One of several runs of Auto-PGD, from a random start; False when there is nothing left to do.

    Args:
        gives_up: records that the run will not fool (`out_of_reach`) rest until the next one (`Search.resume`).
    """
    progress = restart / restarts
    if len(search.active) == 0:
        return False
    x, found = search.first_ascent(model, restart, progress)
    if len(x) == 0:
        return False
    gradient, margin, value, _ = found
    # Per active record: the best input so far with its loss and gradient, and what the checkpoints compare.
    state = {
        "x": x,
        "before": x,
        "gradient": gradient,
        "best": x,
        "best_gradient": gradient,
        "best_value": value,
        "value": value,
        "size": torch.full_like(value, 2 * search.ball.epsilon),
        "rises": torch.zeros_like(value),
        "halved": torch.ones_like(value, dtype=torch.bool),  # at the last checkpoint; never twice for one stall
        "value_then": value,
        "first": margin,
        "lowest": margin,
    }
    last_checkpoint = 0
    judged = checkpoints(steps)
    for step in range(1, steps + 1):
        size = per_record(state["size"], state["x"]).to(state["x"].dtype)
        ahead = search.ball.step(state["x"], state["gradient"], size)
        if step == 1:
            moved = state["x"] + (ahead - state["x"])
        else:
            moved = state["x"] + MOMENTUM * (ahead - state["x"]) + (1 - MOMENTUM) * (state["x"] - state["before"])
        x = search.ball.project(moved)
        if step == steps:
            search.offer(x, model.margins(x, search.y), progress + 1 / restarts)
            break
        gradient, margin, value, _ = search.ascent(model, x)
        state["rises"] = state["rises"] + (value > state["value"])
        better = value > state["best_value"]
        wide = per_record(better, x)
        state |= {
            "before": state["x"],
            "x": x,
            "gradient": gradient,
            "value": value,
            "best": torch.where(wide, x, state["best"]),
            "best_gradient": torch.where(wide, gradient, state["best_gradient"]),
            "best_value": torch.where(better, value, state["best_value"]),
        }
        state["lowest"] = torch.minimum(state["lowest"], margin)
        if not keep(state, search.offer(x, margin, progress + step / steps / restarts)):
            return False
        if gives_up and step >= max(EARLIEST, EARLY * steps):
            lost = out_of_reach(state["first"], state["lowest"], step / steps)
            if lost.any() and not keep(state, search.pause(lost)):
                return False
        if step in judged:
            halve_where_stalled(state, step - last_checkpoint)
            last_checkpoint = step
    return len(search.active) > 0


def out_of_reach(first: Tensor, lowest: Tensor, progress: float, prospect: float = PROSPECT) -> Tensor:
    """bool [n]: whether what is left of a run towards a class will not make the margins negative.

    As `pgd.hopeless`: what a margin still falls by is at most a share of its fall so far, which the steps use up. Of
    13 nets for digits (8x8 and 16x16, plain, adversarially trained, pruned, distilled, of 8, 4 and 3 bits), 150 records
    each at L-inf radii from .05 to .16 and L2 radii of .8 and 1, five runs of 20 steps a record, none of 3,643 that are
    fooled is lost, and 46 % of the gradients are taken. What the last of them still fell by is .9 of the fall after a
    fifth of a run, .5 after .3, .22 after half, .12 after .7; the share is above that throughout.

    Args:
        first: [n], the margins at the start; lowest: [n], the lowest ones since.
        progress: of the run, in [0, 1]; prospect: the share, at its beginning.
    """
    fall = first - lowest
    return (lowest > prospect * math.exp(-4 * progress) * fall) & (lowest < CREDIBLE * fall)


def keep(state: dict[str, Tensor], stay: Tensor | None) -> bool:
    """Drops the rows of the records that left; whether any is left."""
    if stay is not None:
        for key, rows in state.items():
            state[key] = rows[stay]
    return len(state["x"]) > 0


def halve_where_stalled(state: dict[str, Tensor], since: int) -> None:
    """The paper's two conditions: too few of the steps since the last checkpoint rose, or no new best without halving.

    Such a record halves its step and goes back to its best input.
    """
    few = state["rises"] < ENOUGH * since
    stuck = ~state["halved"] & (state["best_value"] <= state["value_then"])
    halve = few | stuck
    wide = per_record(halve, state["x"])
    state |= {
        "size": torch.where(halve, state["size"] / 2, state["size"]),
        "x": torch.where(wide, state["best"], state["x"]),
        "before": torch.where(wide, state["best"], state["before"]),
        "gradient": torch.where(wide, state["best_gradient"], state["gradient"]),
        "value": torch.where(halve, state["best_value"], state["value"]),
        "halved": halve,
        "value_then": state["best_value"],
        "rises": torch.zeros_like(state["rises"]),
    }
