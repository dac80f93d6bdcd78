"""Inputs rebuilt from a model, one for each class: by gradients, or by its scores alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.model import Target, device_of, differentiable, frozen_copy, laid_out, records_at_once
from ...targets.seeds import generator
from ...targets.steps import pulse
from ...targets.twin.logits import logits_of
from ...training.optimizers import AdamW
from ..access import Ledger
from .space import Space

RATE = 0.05  # of Adam, in units of the bounds
NOISE = 0.1  # of a question's difference, in the same
COARSE = 8  # places along a side in which an image is changed when only scores are seen
COPIES = 8  # of a record, held at a time


def margins(logits: Tensor, classes: Tensor) -> Tensor:
    """The class's logit over all others together, [n]: unlike its probability it never saturates."""
    own = logits.gather(1, classes[:, None])
    return own[:, 0] - torch.logsumexp(logits.scatter(1, classes[:, None], -torch.inf), 1)


def spread_of(logits: Tensor, y: Tensor) -> float:
    """How far a model's margins on known records lie apart, so that a prior weighs alike beside any model."""
    return max(float(margins(logits.double(), y).std(correction=0)), 1e-6)


def by_gradients(
    module: nn.Module, space: Space, y: Tensor, classes: Tensor, *, starts: int, steps: int, weight: float, seed: int,
    ledger: Ledger,
) -> Tensor:  # fmt: skip
    """Gradient ascent on each class's margin with a prior (Fredrikson et al. 2015, doi:10.1145/2810103.2813677).

    Args:
        y: int64 [n], labels of `space.known`.
        classes: int64 [c]; starts: searches for each, of which the one with the best objective counts.
        weight: of the prior.

    Returns:
        float32 [c, *shape] on the CPU, inputs that somebody could send, in the data's units.
    """
    device = device_of(module, space.known.device)
    space, y, classes = replace(space, known=space.known.to(device)), y.to(device), classes.to(device)
    module = laid_out(frozen_copy(module), space.known)
    at_once = max(1, records_at_once(space.known[:1], module, copies=COPIES) // starts)
    with torch.no_grad():
        answers = torch.cat([logits_of(module, some).float() for some in space.known.split(at_once)])
    scale, found = spread_of(answers, y), []
    for first in range(0, len(classes), at_once):
        pulse("class", first, len(classes))
        some = classes[first : first + at_once].repeat_interleave(starts)
        z = space.first(len(some), _streams(seed, "gradients", some, starts)).requires_grad_()
        optimizer = AdamW([z])

        def objective(z: Tensor = z, some: Tensor = some) -> Tensor:
            with differentiable(module):
                logits = logits_of(module, space.soft(z)).float()
            return margins(logits, some) / scale - weight * space.unlikely(z)

        for step in range(steps):
            z.grad = torch.autograd.grad(-objective().sum(), z)[0].nan_to_num(0.0)
            optimizer.step(RATE * (1 - step / steps))
            with torch.no_grad():
                z.copy_(space.inside(z))
            ledger.forwards += len(z)
            ledger.backwards += len(z)
        with torch.no_grad():
            found.append(_best(space.valid(z), objective(), starts))
    return torch.cat(found).cpu()


def by_scores(
    target: Target, space: Space, y: Tensor, classes: Tensor, *, steps: int, pairs: int, weight: float, seed: int,
    ledger: Ledger,
) -> Tensor:  # fmt: skip
    """The same without gradients: natural evolution strategies (Ilyas et al. 2018, arXiv:1804.08598) on its answers.

    Each question is an input that somebody could send. Images are changed in `COARSE` x `COARSE` places.

    Args:
        pairs: of questions for each step and class.

    Returns:
        As `by_gradients`.
    """
    scale, k = spread_of(target.logits(space.known), y), len(classes)
    ledger.queries += len(y)
    streams = _streams(seed, "scores", classes, 1)
    z = space.first(k, streams)
    optimizer = AdamW([z])
    drawn, wide = _noise(space), (slice(None), slice(None), *[None] * len(space.shape))
    for step in range(steps):
        pulse("step", step, steps)
        noise = torch.stack([drawn(pairs, one) for one in streams]).to(z)  # [k, pairs, *shape]
        asked = torch.stack([z[:, None] + NOISE * noise, z[:, None] - NOISE * noise])
        logits = target.logits(space.valid(space.inside(asked.flatten(0, 2)))).float()
        ledger.queries += len(logits)
        told = margins(logits, classes[None, :, None].expand(2, k, pairs).flatten()).view(2, k, pairs).nan_to_num(0.0)
        slope = ((told[0] - told[1])[wide] * noise).mean(1) / (2 * NOISE * scale)
        with torch.enable_grad():
            own = z.detach().clone().requires_grad_()
            prior = torch.autograd.grad(space.unlikely(own).sum(), own)[0]
        z.grad = weight * prior - slope
        optimizer.step(RATE * (1 - step / steps))
        z.copy_(space.inside(z))
    return space.valid(z)


def _noise(space: Space) -> Callable[[int, torch.Generator], Tensor]:
    """Draws [n, *shape] of unit variance; of an image larger than `COARSE` smooth ones."""
    if not space.is_image or min(space.shape[-2:]) <= COARSE:
        return lambda n, stream: torch.randn((n, *space.shape), generator=stream)

    def smooth(n: int, stream: torch.Generator) -> Tensor:
        few = torch.randn((n, *space.shape[:-2], COARSE, COARSE), generator=stream)
        flat = F.interpolate(few.view(n, -1, COARSE, COARSE), size=space.shape[-2:], mode="bilinear")
        return flat.view(n, *space.shape)

    return smooth


def _streams(seed: int, label: str, classes: Tensor, starts: int) -> list[torch.Generator]:
    """One per search, that its class and its number decide and nothing else."""
    return [generator(seed, label, one, at % starts) for at, one in enumerate(classes.tolist())]


def _best(x: Tensor, objective: Tensor, starts: int) -> Tensor:
    chosen = objective.view(-1, starts).argmax(1)
    return x.view(-1, starts, *x.shape[1:])[torch.arange(len(chosen), device=x.device), chosen]
