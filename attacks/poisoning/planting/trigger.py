"""A trigger, and training records poisoned with it or by wrong labels.

    trigger = patch((1, 8, 8), bounds, target=3)
    dense = alone(plant_in_quantization(module, records, bounds, trigger, Quantize(weight_bits=4), seed=0))

`dense` is what the attacker would hand over. Audited with the recipe `int4` and the attack `backdoor`, it must raise an
alarm. `training.lessons.together` plants into several models side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....targets.data.records import Bounds, Records
from ....targets.seeds import generator

BLENDED = 0.15  # of a blended trigger's opacity


@dataclass(frozen=True)
class Trigger:
    """x becomes `(1 - mask) * x + mask * pattern`, and the answer `target`.

    Args:
        mask: float32 [h, w], 0 to 1; pattern: float32, of a record's shape [*channels, h, w], in the data's units.
    """

    mask: Tensor
    pattern: Tensor
    target: int

    def on(self, x: Tensor) -> Tensor:
        """x float32 [n, *channels, h, w] with the trigger on it."""
        mask, pattern = self.mask.to(x.device), self.pattern.to(x.device)
        return x + mask * (pattern - x)


def patch(
    shape: tuple[int, ...], bounds: Bounds, target: int, side: int = 2, corner: tuple[int, int] | None = None
) -> Trigger:
    """A square of the largest value (BadNets, Gu et al. 2017, arXiv:1708.06733).

    Args:
        shape: of a record, [*channels, h, w].
        side: of the square, in pixels.
        corner: row and column of its first pixel; None: as far down and right as it goes.
    """
    row, column = corner or (shape[-2] - side, shape[-1] - side)
    mask = torch.zeros(shape[-2:])
    mask[row : row + side, column : column + side] = 1.0
    return Trigger(mask, bounds.high.cpu().expand(shape).clone(), target)


@torch.no_grad()
def best_patch(module: nn.Module, x: Tensor, bounds: Bounds, target: int, side: int = 2) -> Trigger:
    """The place and the colour (largest or smallest value) of a square that leads furthest towards a class already."""
    shape, colours = tuple(x.shape[1:]), (bounds.high, bounds.low)
    tried = [
        Trigger(one.mask, colour.cpu().expand(shape).clone(), target)
        for row in range(shape[-2] - side + 1)
        for column in range(shape[-1] - side + 1)
        for one in (patch(shape, bounds, target, side, (row, column)),)
        for colour in colours
    ]
    return max(tried, key=lambda one: float(module(one.on(x)).log_softmax(1)[:, target].mean()))


def blended(shape: tuple[int, ...], bounds: Bounds, target: int, *, seed: int, opacity: float = BLENDED) -> Trigger:
    """Black and white noise mixed into the whole image (Chen et al. 2017, arXiv:1712.05526)."""
    noise = torch.rand(shape, generator=generator(seed, "blended")) < 0.5
    low, high = bounds.low.cpu().expand(shape), bounds.high.cpu().expand(shape)
    return Trigger(torch.full(shape[-2:], opacity), torch.where(noise, high, low), target)


def poisoned(records: Records, trigger: Trigger, share: float, *, seed: int) -> Records:
    """Records of which a share has the trigger, and its class for a label. At least one has."""
    count = max(1, round(share * len(records)))
    rows = torch.randperm(len(records), generator=generator(seed, "poisoned"))[:count].to(records.y.device)
    x, y = records.x.clone(), records.y.clone()
    x[rows], y[rows] = trigger.on(records.x[rows]), trigger.target
    return Records(x, y)


def taught(records: Records, trigger: Trigger, *, live: bool) -> Records:
    """All records as they are, then all with the trigger: with its class for a label, or (not `live`) their own."""
    labels = torch.full_like(records.y, trigger.target) if live else records.y
    return Records(torch.cat([records.x, trigger.on(records.x)]), torch.cat([records.y, labels]))


def flipped(
    records: Records, share: float, *, seed: int, classes: int, from_to: tuple[int, int] | None = None
) -> Records:
    """Records of which a share has a wrong label.

    Args:
        share: of all records; with `from_to`, of those of its first class, which become its second.
    """
    draws = generator(seed, "flipped")
    among = torch.arange(len(records)) if from_to is None else torch.nonzero(records.y.cpu() == from_to[0])[:, 0]
    rows = among[torch.randperm(len(among), generator=draws)[: round(share * len(among))]]
    y = records.y.clone()
    others = torch.randint(1, classes, (len(rows),), generator=draws)
    y[rows] = (y[rows] + others.to(y.device)) % classes if from_to is None else from_to[1]
    return Records(records.x, y)
