"""When to doubt that a record which was not fooled cannot be, and when to give it up all the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ....targets.certificate import AGREEMENT
from ....targets.model import Target
from ....targets.steadiness import variation
from ...access import Access, Flag, Ledger
from .. import trust
from ..ascent.gradients import Gradients
from ..blocks import Sought
from ..engine import Perturber

ROUNDING = 1e-4  # of the largest logit: by so much an answer may differ from that in another batch


class Hope:
    """Which records need no further search, bool [n] `lost`.

    Those that gradients left on a plateau (`Search.plateau`), unless a search that sees no gradients came nearer to a
    success: where gradients mislead, that they agree says nothing.
    """

    def __init__(self, n: int) -> None:
        self.lost = torch.zeros(n, dtype=torch.bool)
        self._nearest = torch.full((n,), -torch.inf)  # the model's own margin at the end of a plateau

    def learn(self, part: Perturber, found: Sought, margin: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Takes in what a part found; `margin` gives the model's own for inputs and the rows (int64) they stand for."""
        if part.access is Access.WHITE_BOX:
            rows = found.plateau.nonzero().squeeze(1)
            if len(rows):
                self._nearest[rows] = margin(found.best[rows], rows)
        else:
            self.lost |= (self._nearest > -torch.inf) & (found.margin >= self._nearest)


def differ(twin: nn.Module, x: Tensor, answers: Tensor, ledger: Ledger) -> bool:
    """Whether what gradients are taken of has other largest values than the answers that count."""
    followed = Gradients(twin, "margin", ledger).margins(x, answers.argmax(1))
    return float((followed < -ROUNDING).double().mean()) > 1 - AGREEMENT


def varies(target: Target, x: Tensor, ledger: Ledger) -> bool:
    """Whether it answers a record otherwise when it is asked again, or beside others."""
    before = target.queries
    varies = variation(target, x if len(x) > 1 else x.repeat(2, *[1] * (x.dim() - 1)), together=None) is not None
    ledger.queries += target.queries - before
    return varies


def flags_of_part(part: Perturber, found: Sought, count: int) -> list[str]:
    """What its own course says about a part that was tried on `count` records."""
    raised = []
    if trust.gradients_missing(int((found.flat & ~found.fooled).sum()), count):
        raised.append(str(Flag.NO_GRADIENT))
    if part.access is Access.WHITE_BOX and trust.unfinished(found.found_at.numpy(), count):
        raised.append(str(Flag.UNFINISHED))
    return raised
