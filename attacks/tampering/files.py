"""The file with some of its bits flipped, as ONNX Runtime answers with it; and flips by chance, the control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.data.records import Records
from ...targets.errors import CrushproofError
from ...targets.interface.assumptions import Assumptions
from ...targets.interface.finished_model import Deployed
from ...targets.model import Target
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.seeds import generator
from ...targets.untrusted.model_file import CheckedOnnx
from ..access import Ledger
from .stored import Flip, Stored, flipped
from .surrogate import correct


@dataclass
class Files:
    """Runs the file with bits flipped, on the attacker's own records and on those that are evaluated."""

    checked: CheckedOnnx
    tensors: list[Stored]
    assumptions: Assumptions | None
    evaluation: Records
    ledger: Ledger = field(default_factory=Ledger)

    def opened(self, flips: Sequence[Flip]) -> Target:
        data = flipped(self.checked, self.tensors, flips)
        output = None if self.assumptions is None else self.assumptions.output
        target: Target = OnnxTarget(data, output=output)
        return target if self.assumptions is None else Deployed(target, self.assumptions)

    def answers(self, flips: Sequence[Flip], own: Tensor) -> tuple[Tensor, Tensor] | None:
        """Logits on `own`, and bool [m]: which evaluation records are right; None: it no longer loads, or fails."""
        try:
            logits = self.opened(flips).logits(torch.cat([own, self.evaluation.x]).cpu())
        except CrushproofError:
            return None
        self.ledger.queries += len(logits)
        return logits[: len(own)], correct(logits[len(own) :], self.evaluation.y.cpu())


def random_flips(tensors: Sequence[Stored], count: int, seed: int) -> list[Flip]:
    """So many different bits of all that the tensors store, each as likely."""
    sizes = np.array([len(one.raw) * one.width for one in tensors])
    total = int(sizes.sum())
    drawn: dict[int, Any] = {}
    stream = generator(seed, "random flips")
    while len(drawn) < min(count, total):
        drawn |= dict.fromkeys(torch.randint(total, (count,), generator=stream).tolist())
    ends = np.cumsum(sizes)
    flips = []
    for place in list(drawn)[:count]:
        number = int(np.searchsorted(ends, place, side="right"))
        element, bit = divmod(place - int(ends[number] - sizes[number]), tensors[number].width)
        flips.append(Flip(number, element, bit))
    return flips
