"""What is to go wrong with a file, and the aims by which it is searched: each a loss to climb and a value to lower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...targets.data.records import Records
from .evidence_form import MISSED, WORKING
from .stored import Floats
from .surrogate import correct, right_probability

WRONG_ALREADY = 0.1  # weight of a record that is wrong, in the gradient: it should stay so
BEYOND = 0.5  # logits by which a record is to be wrong: more of it helps nobody

Loss = Callable[[Tensor, slice], Tensor]  # of the logits of some of the records, and which these are


@dataclass(frozen=True)
class Aim:
    """One way to a goal.

    Args:
        loss: its gradient ranks the bits; the larger the better for the attacker.
        value: of the logits of all records; the lower the better for the attacker.
        enough: a value that is as good as any: no further flip is tried beside one that promises it.
        there: whether logits of all records are what is wanted, whatever their value.
    """

    loss: Loss
    value: Callable[[Tensor], float]
    enough: float
    there: Callable[[Tensor], bool] = lambda logits: False


@dataclass
class Intact:
    """What is known before any flip: all searches for a goal begin alike.

    Args:
        logits, twins: of the file and of its twin, on the attacker's records.
        gradients: of an aim's loss, for each tensor; by the aim's class (-1: none).
    """

    logits: Tensor
    twins: Tensor
    gradients: dict[int, list[Floats | None]] = field(default_factory=dict)


@dataclass(eq=False)
class Goal:
    """What is to go wrong.

    Args:
        records: the attacker's own.
        weights: float32 [n]; above 0: this record is to be wrong; below: it is to stay right.
        reached: whether these answers on the evaluation records, bool [m] (right or not), are what is wanted.
        enough: a `value` that is as good as any.
        intact: once it is known.
    """

    records: Records
    weights: Tensor
    reached: Callable[[Tensor], bool]
    enough: float
    intact: Intact | None = None

    def value(self, logits: Tensor) -> float:
        """The probability of the right classes, as it is weighed: the lower the better for the attacker, at most 1."""
        right = right_probability(logits, self.records.y)
        return float((right * self.weights).sum() / self.weights.abs().sum())

    def there(self, logits: Tensor) -> bool:
        """Whether these records are as they are to be, where some are to stay right: half of them are enough, so that
        the lowest value is not the only way there.
        """
        right, wrong = correct(logits, self.records.y).double(), self.weights > 0
        return not wrong.all() and bool(right[wrong].mean() <= MISSED and right[~wrong].mean() >= WORKING)

    def away(self) -> Aim:
        """From the right classes, to whichever other: by the gradient of the margins, weighed."""

        def loss(logits: Tensor, rows: slice) -> Tensor:
            y, weights = self.records.y[rows], self.weights[rows]
            margin = -_lead(logits, y).nan_to_num(0.0, 0.0, 0.0)
            as_wanted = (margin > 0) == (weights > 0)
            return (weights * torch.where(as_wanted, WRONG_ALREADY * margin, margin)).sum()

        return Aim(loss, self.value, self.enough, self.there)

    def towards(self, wanted: int) -> Aim:
        """Every record to one class: flips of many layers add up to that, where those away from the right classes
        undo each other. A record that is there by `BEYOND` counts no more.
        """
        label = torch.tensor([wanted])

        def loss(logits: Tensor, rows: slice) -> Tensor:
            lead = _lead(logits, label.expand(len(logits)))
            return torch.where(lead > BEYOND, 0 * lead, lead).sum()

        def value(logits: Tensor) -> float:
            lead = _lead(logits, label.expand(len(logits)))
            return -float(lead.nan_to_num(BEYOND, BEYOND, BEYOND).clamp(max=BEYOND).mean())

        return Aim(loss, value, -0.9 * BEYOND)


def _lead(logits: Tensor, label: Tensor) -> Tensor:
    """By how much a class is ahead of the best other one, [n]."""
    own = logits.gather(1, label[:, None])
    return (own - logits.scatter(1, label[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
