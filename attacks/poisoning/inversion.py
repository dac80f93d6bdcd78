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

RATE, STEPS = 0.15, 90
ALONE = 2  # times those steps in a model alone: a small trigger still shrinks then, and other classes' hardly
BATCH, CHECK = 8, 10  # records a step; steps between two looks at all of them
WEIGHT = 2.0  # of a mask's mean opacity, beside cross-entropies, at first
HARDER, LIGHTEST, HEAVIEST = 1.7, 0.5, 60.0  # by what it changes at each look: up where the trigger works, else down
PATIENCE, HOPEFUL = 0.35, 0.4  # from this share of the steps on: a trigger that never worked so often is given up
FINALISTS, HEATS = 4, 0.2  # beside a parent so many targets, the most suspicious, go on after this share of the steps
FIRST = -1.0  # logit of the opacity at first
REACHED = 0.8  # share of the records for which a trigger has to work; the smallest that does is taken
COPIES = 8  # of a record, held at a time


@dataclass(frozen=True)
class Inverted:
    """Triggers, k of them.

    Args:
        targets: int64 [k]; size: float32 [k], the mean opacity of the mask, 1 where none was found that works.
        masks: float32 [k, h, w], 0 to 1; patterns: float32 [k, *shape], in the data's units.
        early: float32 [k], the size before the `further` steps.
    """

    targets: Tensor
    size: Tensor
    masks: Tensor
    patterns: Tensor
    early: Tensor

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
    further: int = 0,
    seed: int,
    ledger: Ledger,
) -> Inverted:
    """For each target the smallest trigger that makes `module` answer it, all in one batch.

    Beside a parent all are sought for a fifth of the steps, and then those that are called most easily so far.

    Args:
        parent: must go on answering `y` under the trigger; None: there is nobody to compare with.
        x: float32 [n, *channels, h, w]; y: int64 [n], what the models answer without a trigger.
        further: steps after those.
    """
    modules = [laid_out(frozen_copy(one), x) for one in (module, parent) if one is not None]
    at_once = max(1, records_at_once(x[:1], *modules, copies=COPIES) // len(x))
    parts = []
    for first in range(0, len(targets), at_once):
        pulse("class", first, len(targets))
        some = torch.tensor(targets[first : first + at_once], device=x.device)
        parts.append(_inverted(modules, x, y, bounds.to(x.device), some, kind, steps, further, seed, ledger))
    return Inverted(*(torch.cat([getattr(part, name) for part in parts]).cpu() for name in Inverted.__annotations__))


def _inverted(
    modules: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    bounds: Bounds,
    targets: Tensor,
    kind: Kind,
    steps: int,
    further: int,
    seed: int,
    ledger: Ledger,
) -> Inverted:
    n, shape = len(x), tuple(x.shape[1:])
    low, scale = (torch.broadcast_to(one, shape).to(x) for one in (bounds.low, bounds.scale))
    noise = torch.stack([torch.randn(shape, generator=generator(seed, kind, int(one))) for one in targets]).to(x)
    spread = (len(targets), *(shape[-2:] if kind == "patch" else (1, 1)))
    variables = [torch.full(spread, FIRST).to(x), noise.clone()]  # logits of opacities and patterns
    optimizer, weight = AdamW(variables), torch.full((len(targets),), WEIGHT).to(x)
    best, closest = torch.ones(len(targets)).to(x), torch.zeros(len(targets)).to(x)
    masks, patterns = torch.ones(len(targets), *shape[-2:]).to(x), torch.zeros(len(targets), *shape).to(x)
    going = torch.arange(len(targets), device=x.device)  # places of those that are still sought
    order = torch.randperm(n, generator=generator(seed, kind, "batches")).to(x.device)
    every, batches = torch.arange(n, device=x.device), order.split(BATCH)

    def asked(opacity: Tensor, colour: Tensor, rows: Tensor) -> list[Tensor]:
        """Logits [k * rows, classes] of each model, of these records with each trigger."""
        mask, pattern = opacity.sigmoid(), low + scale * colour.sigmoid()
        wide = mask.view(len(mask), *[1] * (len(shape) - 2), *mask.shape[1:])
        shown = (x[rows][None] + wide[:, None] * (pattern[:, None] - x[rows][None])).flatten(0, 1)
        ledger.forwards += len(shown) * len(modules)
        with differentiable(modules[0]):
            return [logits_of(one, shown).float() for one in modules]

    def wanted(rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the model is to answer, and what its parent, int64 [k * rows]."""
        called, kept = torch.broadcast_tensors(targets[going, None], y[rows][None])
        return called.flatten(), kept.flatten()

    def share(values: Tensor, rows: Tensor) -> Tensor:
        """[k]: the mean over the records of other classes, of values [k * rows]; one of the class says nothing."""
        others = (y[rows][None] != targets[going, None]).float()
        return (values.view(others.shape) * others).sum(1) / others.sum(1).clamp_min(1)

    early, last = best, steps + further
    for step in range(last + 1):
        if step % CHECK == 0 or step in (steps, last):
            chosen = [one[going] for one in variables]
            with torch.no_grad():
                found, wishes = asked(chosen[0], chosen[1], every), wanted(every)
                works = torch.stack([one.argmax(1) == wish for one, wish in zip(found, wishes, strict=False)]).all(0)
                reached, size = share(works.float(), every), chosen[0].sigmoid().flatten(1).mean(1)
            better = (reached >= REACHED) & (size < best[going])
            places, (opacity, colour) = going[better], (one[better] for one in chosen)
            best[places], patterns[places] = size[better], low + scale * colour.sigmoid()
            masks[places] = opacity.sigmoid().expand(-1, *shape[-2:])
            weight[going] *= torch.where(reached >= REACHED, HARDER, 1 / HARDER)
            weight.clamp_(LIGHTEST, HEAVIEST)
            closest[going] = torch.maximum(closest[going], reached)
            if step >= PATIENCE * steps:
                going = going[closest[going] >= HOPEFUL]
            if len(modules) > 1 and step >= HEATS * steps:
                going = going[(best - closest)[going].argsort(stable=True)[:FINALISTS].sort().values]
        if step <= steps:
            early = best.clone()
        if step == last or not len(going):
            break
        rows, chosen = batches[step % len(batches)], [one[going].requires_grad_() for one in variables]
        logits, wishes = asked(chosen[0], chosen[1], rows), wanted(rows)
        losses = [F.cross_entropy(*pair, reduction="none") for pair in zip(logits, wishes, strict=False)]
        loss = share(torch.stack(losses).sum(0), rows) + weight[going] * chosen[0].sigmoid().flatten(1).mean(1)
        ledger.backwards += len(logits) * len(logits[0])
        gradients = torch.autograd.grad(loss.sum(), chosen, allow_unused=True)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = torch.zeros_like(variable)
            if gradient is not None:  # a model that rounds without a straight-through gradient has none
                variable.grad[going] = gradient.nan_to_num(0.0)
        optimizer.step(RATE)
    return Inverted(targets, best, masks, patterns, early)
