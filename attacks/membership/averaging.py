"""The attacker who averages a model's answers to neighbours of a record, where each has noise of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ...targets.data.records import Bounds
from ...targets.model import Target
from ...targets.serving.smoothed import copies

NEIGHBOURS = 64  # of a record, asked by who knows of noise on answers
STEP = 0.004  # standard deviation of what they differ by, in [0, 1] units
LEAST_STEP = 0.002  # the same in the input's own units: what makes a record another one to who draws the noise
AT_ONCE = 16  # records


class Averaged:
    """A `Target` whose logits of a record are the mean of another's over neighbours of it.

    Each answer counts as a query. What an attacker cannot change, and whole numbers, stay as they are.
    """

    def __init__(self, target: Target, bounds: Bounds, neighbours: int, *, seed: int) -> None:
        self.target, self.bounds, self.neighbours, self.seed, self.queries = target, bounds, neighbours, seed, 0
        self.step = (STEP * bounds.scale).clamp_min(LEAST_STEP)

    def logits(self, x: Tensor) -> Tensor:
        self.queries += self.neighbours * len(x)
        step = self.step.to(x.device).expand(x.shape[1:])
        for fixed in (self.bounds.held, self.bounds.whole):
            step = step if fixed is None else step.masked_fill(fixed.to(x.device), 0.0)
        means = []
        for some in x.split(AT_ONCE):
            near = self.bounds.to(x.device).clamp(copies(some, step, self.neighbours, self.seed).flatten(0, 1))
            means.append(self.target.logits(near).view(self.neighbours, len(some), -1).mean(0))
        return torch.cat(means)
