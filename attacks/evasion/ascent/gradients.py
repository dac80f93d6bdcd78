"""Losses, margins and input gradients of one module, counted in the ledger."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ....targets.model import BATCH, frozen_copy, laid_out, recurrent
from ....targets.twin.logits import noted
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


@dataclass
class _Seen:
    """What is known of a module that is differentiated as it is: a copy that nobody changes.

    Args:
        hides: whether a softmax or a sigmoid was met in its passes, or none was made yet.
        convolves: on a CPU, where a pass of a new size costs several times as much as one of a size that was met.
    """

    recurrent: bool
    convolves: bool
    hides: bool = True

    def logits(self, module: nn.Module, x: Tensor) -> Tensor:
        """float32 [n, classes]."""
        n = len(x)
        if self.convolves and (more := round_size(n) - n):
            x = torch.cat([x, x[:1].expand(more, *x.shape[1:])])
        if self.hides:
            _, logits, self.hides = noted(module, x)
        else:
            logits = module(x)
        return logits[:n].float()


def round_size(n: int) -> int:
    """The next of few sizes, of which there are four from a power of two to the next, and none between multiples of 8.

    oneDNN prepares each convolution anew for each number of records, which takes as long as a small net's whole pass,
    and an attack's records become fewer with nearly every step.
    """
    step: int = max(8, 2 ** max(0, n.bit_length() - 3))
    return -(-n // step) * step


_followed: WeakKeyDictionary[nn.Module, _Seen] = WeakKeyDictionary()


def followed(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the module that the `Gradients` of any number of attacks differentiate without copying it once more.

    Nobody may change its weights.

    Args:
        x: [n, *shape], n >= 1, what it is to be asked, on the module's device.
    """
    if module in _followed:
        return module
    copied = laid_out(frozen_copy(module), x)
    convolves = any(weight.dim() > 2 and weight.device.type == "cpu" for weight in copied.parameters())
    _followed[copied] = _Seen(recurrent(copied), convolves)
    return copied


class Gradients:
    """Losses, margins and input gradients of one module, counted in the ledger.

    They are those of the logits, where the module ends in a softmax or a sigmoid (`targets.twin.logits.logits_of`).

    Args:
        module: differentiated as it is; it is copied, where it is not `followed`, and its parameters need no gradient.
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
        module, seen = self._followed(x)
        with torch.no_grad():
            if len(x) <= BATCH:
                return seen.logits(module, x)
            return torch.cat([seen.logits(module, batch) for batch in torch.split(x, BATCH)])

    def _followed(self, x: Tensor) -> tuple[nn.Module, _Seen]:
        """The module as it is differentiated, made when the first inputs [n, *shape] come."""
        if self._module is None:
            self._module = followed(self._given, x)
        return self._module, _followed[self._module]

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
        if len(x) <= BATCH:
            return self._batch(x, y, towards, past_clips)
        aims = repeat(None) if towards is None else torch.split(towards, BATCH)
        batches = zip(torch.split(x, BATCH), torch.split(y, BATCH), aims, strict=False)
        columns = zip(*(self._batch(*batch, past_clips) for batch in batches), strict=True)
        gradient, margin, value = (torch.cat(column) for column in columns)
        return gradient, margin, value

    def _batch(self, x: Tensor, y: Tensor, towards: Tensor | None, past_clips: bool) -> tuple[Tensor, Tensor, Tensor]:
        logits, x = self._forward(x, past_clips)
        values = losses(logits, y, self._loss, self._goal, towards)
        return self._backward(values, x), margins(logits.detach(), y, self._goal), values.detach()

    def _forward(self, x: Tensor, past_clips: bool) -> tuple[Tensor, Tensor]:
        """Logits, and the input that they can be differentiated by."""
        module, seen = self._followed(x)
        x = x.detach().requires_grad_()
        self._ledger.forwards += len(x)
        with ExitStack() as inside:
            if seen.recurrent:  # see `targets.model.differentiable`
                inside.enter_context(torch.backends.cudnn.flags(enabled=False))
            if past_clips:
                inside.enter_context(SlopesPastClips())
            return seen.logits(module, x), x

    def _backward(self, values: Tensor, x: Tensor) -> Tensor:
        gradient = None
        if values.requires_grad:  # some quantised graphs cut the gradient without an error
            self._ledger.backwards += len(x)
            (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        return torch.zeros_like(x) if gradient is None else gradient.detach().contiguous()


def usable(gradient: Tensor) -> Tensor:
    """bool [n]: whether each record's gradient [n, *shape] is finite and not zero throughout."""
    largest: Tensor = torch.linalg.vector_norm(gradient.flatten(1), torch.inf, dim=1)  # NaN where there is one
    return (largest > 0) & (largest < torch.inf)
