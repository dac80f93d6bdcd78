"""The attacker who averages a model's answers to neighbours of a record, where each has noise of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ...targets.data.records import Bounds
from ...targets.model import Target
from ...targets.serving.smoothed import Voted, copies

NEIGHBOURS = 64  # of a record, asked by who knows of noise on answers
VOTES = 8  # the same of a vote under noise: its answers are means already, and each shadow model's cost as much
STEP = 0.004  # standard deviation of what they differ by, in [0, 1] units
LEAST_STEP = 0.002  # the largest of them, in the input's own units: of less it is the same record to who draws noise
FURTHER = 10  # times as far, at most, to reach that
LEAST_WHOLE = 0.25  # the same of whole numbers, which are rounded: of less hardly one becomes another
AT_ONCE = 16  # records


def neighbourhood(bounds: Bounds, shape: tuple[int, ...]) -> Tensor | None:
    """float32 [*shape], standard deviations of what neighbours of a record differ by; None: it has none.

    What an attacker cannot change stays as it is, and so do whole numbers of a small range. Records whose values all
    lie closer together than noise tells apart have no neighbours either.
    """
    step = (STEP * bounds.scale).expand(shape)
    if bounds.held is not None:
        step = step.masked_fill(bounds.held, 0.0)
    if bounds.whole is not None:
        step = step.masked_fill(bounds.whole & (step < LEAST_WHOLE), 0.0)
    largest = float(step.max())
    return step * max(1.0, LEAST_STEP / largest) if FURTHER * largest >= LEAST_STEP else None


class Averaged:
    """A `Target` whose logits of a record are the mean of another's over neighbours of it; of votes the mean share.

    Each answer counts as a query.

    Args:
        step: see `neighbourhood`.
    """

    def __init__(self, target: Target, bounds: Bounds, step: Tensor, neighbours: int, *, seed: int) -> None:
        self.target, self.bounds, self.step, self.neighbours, self.seed = target, bounds, step, neighbours, seed
        self.queries = 0

    def logits(self, x: Tensor) -> Tensor:
        self.queries += self.neighbours * len(x)
        bounds, means = self.bounds.to(x.device), []
        for some in x.split(AT_ONCE):
            near = bounds.clamp(copies(some, self.step, self.neighbours, self.seed).flatten(0, 1))
            near = near if bounds.whole is None else torch.where(bounds.whole, near.round(), near)
            answers = self.target.logits(near).view(self.neighbours, len(some), -1)
            means.append(answers.exp().mean(0).log() if isinstance(self.target, Voted) else answers.mean(0))
        return torch.cat(means)
