"""Losses, margins and input gradients of one module, counted in the ledger."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ....targets.model import BATCH, differentiable, frozen_copy, laid_out
from ....targets.twin.logits import logits_of
from ...access import Ledger
from .losses import Ascended, Goal, losses, margins
from .slopes import SlopesPastClips


class Ascent(NamedTuple):
    """What a gradient attack learns at x [n, *shape]: a direction, and how near to a success it is.

    Args:
        gradient: of the loss, like x; zeros where the module gives none.
        margin: [n]; value: the loss, [n].
        flat: bool [n], the module's own gradient is of no use (the slopes past its clips may have given another).
    """

    gradient: Tensor
    margin: Tensor
    value: Tensor
    flat: Tensor

    def take(self, index: Tensor) -> Ascent:
        """That of the records at `index` (int64 or bool [n])."""
        return Ascent(*(column[index] for column in self))


class Gradients:
    """Losses, margins and input gradients of one module, counted in the ledger.

    They are those of the logits, where the module ends in a softmax or a sigmoid (`targets.twin.logits.logits_of`).

    Args:
        module: differentiated as it is; it is copied and its parameters need no gradient.
        loss: what the gradient ascends.
        goal: whether `y` is the class to get away from, or the one to get to.
        past_clips: a record without a gradient of its own gets one with slopes outside clips (`SlopesPastClips`).
    """

    def __init__(
        self, module: nn.Module, loss: Ascended, ledger: Ledger, *, goal: Goal = "untargeted", past_clips: bool = True
    ) -> None:
        self._given, self._loss, self._ledger, self._past_clips = module, loss, ledger, past_clips
        self._goal: Goal = goal
        self._module: nn.Module | None = None

    def __call__(self, x: Tensor, y: Tensor, towards: Tensor | None = None) -> Ascent:
        """See `Ascent`; `towards`, int64 [n]: the class that each ascends to (`losses`)."""
        gradient, margin, value = self._batches(x, y, towards)
        flat = ~usable(gradient)
        if self._past_clips and flat.any():
            aims = None if towards is None else towards[flat]
            gradient[flat] = self._batches(x[flat], y[flat], aims, past_clips=True)[0]
        return Ascent(gradient, margin, value, flat)

    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        """float32 [n], by a forward pass alone."""
        return margins(self._logits(x), y, self._goal)

    def answers(self, x: Tensor) -> Tensor:
        """int64 [n], the class of the largest logit."""
        return self._logits(x).argmax(1)

    def ranked(self, x: Tensor, y: Tensor) -> Tensor:
        """int64 [n, classes - 1], all classes but `y`, the likeliest first."""
        return self._logits(x).scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]

    def classes(self, x: Tensor) -> int:
        """How many logits there are, by one record of x."""
        return int(self._logits(x[:1]).shape[1])

    def _logits(self, x: Tensor) -> Tensor:
        self._ledger.forwards += len(x)
        module = self._copy(x)
        with torch.no_grad():
            return torch.cat([logits_of(module, batch).float() for batch in torch.split(x, BATCH)])

    def _copy(self, x: Tensor) -> nn.Module:
        """The module as it is differentiated, made when the first inputs [n, *shape] come."""
        if self._module is None:
            self._module = laid_out(frozen_copy(self._given), x)
        return self._module

    def towards(self, x: Tensor, weights: Tensor) -> Tensor:
        """The gradient of `weights` [n, classes] times the logits, like x; zeros where the module gives none."""
        rows = zip(torch.split(x, BATCH), torch.split(weights, BATCH), strict=True)
        return torch.cat([self._derivative(*row) for row in rows])

    def _derivative(self, x: Tensor, weights: Tensor) -> Tensor:
        logits, x = self._forward(x, self._past_clips)
        return self._backward((weights * logits).sum(1), x)

    def _batches(
        self, x: Tensor, y: Tensor, towards: Tensor | None, *, past_clips: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        aims = repeat(None) if towards is None else torch.split(towards, BATCH)
        batches = zip(torch.split(x, BATCH), torch.split(y, BATCH), aims, strict=False)
        columns = zip(*(self._batch(*batch, past_clips) for batch in batches), strict=True)
        gradient, margin, value = (torch.cat(column) for column in columns)
        return gradient, margin, value

    def _batch(self, x: Tensor, y: Tensor, towards: Tensor | None, past_clips: bool) -> tuple[Tensor, Tensor, Tensor]:
        logits, x = self._forward(x, past_clips)
        values = losses(logits, y, self._loss, self._goal, towards)
        return self._backward(values, x), margins(logits, y, self._goal).detach(), values.detach()

    def _forward(self, x: Tensor, past_clips: bool) -> tuple[Tensor, Tensor]:
        """Logits, and the input that they can be differentiated by."""
        x = x.detach().requires_grad_()
        self._ledger.forwards += len(x)
        module = self._copy(x.detach())
        with differentiable(module), SlopesPastClips() if past_clips else nullcontext():
            return logits_of(module, x).float(), x

    def _backward(self, values: Tensor, x: Tensor) -> Tensor:
        gradient = None
        if values.requires_grad:  # some quantised graphs cut the gradient without an error
            self._ledger.backwards += len(x)
            (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        return torch.zeros_like(x) if gradient is None else gradient.detach().contiguous()


def usable(gradient: Tensor) -> Tensor:
    """bool [n]: whether each record's gradient [n, *shape] is finite and not zero throughout."""
    flat = gradient.flatten(1)
    return torch.isfinite(flat).all(1) & (flat != 0).any(1)
