"""Triggers found by gradients: the smallest change, the same for all records, that makes a model answer a class.

Neural Cleanse (Wang et al. 2019) inverts triggers of one model. Here a model may stand beside the one it was compressed
from, which must go on answering as before: what then stays small was not there before the compression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Bounds
from ...targets.model import differentiable, frozen_copy, laid_out, records_at_once
from ...targets.seeds import generator
from ...targets.steps import pulse
from ...targets.twin.logits import logits_of
from ...training.optimizers import AdamW
from ..access import Ledger

Kind = Literal["patch", "blended"]
KINDS: tuple[Kind, ...] = ("patch", "blended")  # a few pixels, and all of them a little

RATE, STEPS = 0.15, 150
WEIGHT = 2.0  # of a mask's mean opacity, beside cross-entropies
FIRST = -1.0  # logit of the opacity at first
REACHED = 0.8  # share of the records for which a trigger has to work; the smallest that does is taken
COPIES = 8  # of a record, held at a time


@dataclass(frozen=True)
class Inverted:
    """Triggers, k of them.

    Args:
        targets: int64 [k]; size: float32 [k], the mean opacity of the mask, 1 where none was found that works.
        masks: float32 [k, h, w], 0 to 1; patterns: float32 [k, *shape], in the data's units.
    """

    targets: Tensor
    size: Tensor
    masks: Tensor
    patterns: Tensor

    def on(self, x: Tensor, number: int) -> Tensor:
        """x float32 [n, *shape] with one of them."""
        return x + self.masks[number].to(x.device) * (self.patterns[number].to(x.device) - x)


def invert(
    module: nn.Module,
    parent: nn.Module | None,
    x: Tensor,
    y: Tensor,
    bounds: Bounds,
    targets: Sequence[int],
    kind: Kind,
    *,
    steps: int = STEPS,
    seed: int,
    ledger: Ledger,
) -> Inverted:
    """For each target the smallest trigger that makes `module` answer it, all in one batch.

    Args:
        parent: must go on answering `y` under the trigger; None: there is nobody to compare with.
        x: float32 [n, *channels, h, w]; y: int64 [n], what the models answer without a trigger.
    """
    modules = [laid_out(frozen_copy(one), x) for one in (module, parent) if one is not None]
    at_once = max(1, records_at_once(x[:1], *modules, copies=COPIES) // len(x))
    parts = []
    for first in range(0, len(targets), at_once):
        pulse("class", first, len(targets))
        some = torch.tensor(targets[first : first + at_once], device=x.device)
        parts.append(_inverted(modules, x, y, bounds.to(x.device), some, kind, steps, seed, ledger))
    return Inverted(*(torch.cat([getattr(part, name) for part in parts]).cpu() for name in Inverted.__annotations__))


def _inverted(
    modules: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    bounds: Bounds,
    targets: Tensor,
    kind: Kind,
    steps: int,
    seed: int,
    ledger: Ledger,
) -> Inverted:
    k, n, shape = len(targets), len(x), tuple(x.shape[1:])
    low, scale = (torch.broadcast_to(one, shape).to(x) for one in (bounds.low, bounds.scale))
    noise = torch.stack([torch.randn(shape, generator=generator(seed, kind, int(one))) for one in targets]).to(x)
    spread = (k, *(shape[-2:] if kind == "patch" else (1, 1)))
    opacity, colour = torch.full(spread, FIRST).to(x), noise.clone()
    variables = [opacity.requires_grad_(), colour.requires_grad_()]
    optimizer = AdamW(variables)
    others = (y[None] != targets[:, None]).float()  # a record of the class itself says nothing
    goal, kept = targets[:, None].expand(k, n).flatten(), y[None].expand(k, n).flatten()
    best = torch.ones(k).to(x)
    masks, patterns = torch.ones(k, *shape[-2:]).to(x), torch.zeros(k, *shape).to(x)

    def share(answers: Tensor) -> Tensor:
        """[k]: the mean over the records of other classes, of values [k * n]."""
        return (answers.view(k, n) * others).sum(1) / others.sum(1).clamp_min(1)

    for step in range(steps + 1):
        mask, pattern = opacity.sigmoid(), low + scale * colour.sigmoid()
        wide = mask.view(k, *[1] * (len(shape) - 2), *mask.shape[1:])
        shown = (x[None] + wide[:, None] * (pattern[:, None] - x[None])).flatten(0, 1)
        ledger.forwards += len(shown) * len(modules)
        with differentiable(modules[0]):
            logits = [logits_of(one, shown).float() for one in modules]
        size = mask.flatten(1).mean(1)
        with torch.no_grad():
            works = logits[0].argmax(1) == goal
            if len(logits) > 1:
                works &= logits[1].argmax(1) == kept
            better = (share(works.float()) >= REACHED) & (size < best)
            best = torch.where(better, size, best)
            masks[better], patterns[better] = mask[better].expand(-1, *shape[-2:]), pattern[better]
        if step == steps:
            break
        loss = share(F.cross_entropy(logits[0], goal, reduction="none"))
        if len(logits) > 1:
            loss = loss + share(F.cross_entropy(logits[1], kept, reduction="none"))
        ledger.backwards += len(shown) * len(modules)
        gradients = torch.autograd.grad((loss + WEIGHT * size).sum(), variables, allow_unused=True)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = torch.zeros_like(variable) if gradient is None else gradient.nan_to_num(0.0)
        optimizer.step(RATE)
    return Inverted(targets, best, masks, patterns)
