"""A passive fingerprint: records off the data or just beyond the boundary, where only copies decide as a model does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import scipy  # its parts load where they are first used: a worker needs few
import torch
from torch import Tensor, nn

from ...targets.data.records import Bounds
from ...targets.seeds import generator

STEPS = 60  # towards the boundary, at most
STEP = 0.05  # of the largest step, a record's L2 length per root of its features, in units of the data's scale
HALVINGS = 10  # of the way to the boundary
PAST = 1.02  # times the way to the boundary
SURE = 1e-4  # p-value below which a model is said to be the owner's: hundreds of pairs are to show no false match
FEWEST = 4  # controls
FEW = 20  # records of a kind, below which they say nothing
SCATTERED, BOUNDARY = "scattered", "boundary"

Questions = dict[str, tuple[Tensor, Tensor]]


def questions(module: nn.Module, x: Tensor, bounds: Bounds, *, seed: int, moved: bool = True) -> Questions:
    """Records on which a model's decisions are its own, by kind, with its labels: float32 [m, *shape], int64 [m].

    Scattered: each feature's value is another record's, so that nothing was learnt there and the initial weights show.
    Boundary: see `boundary_records`.

    Args:
        moved: whether features are numbers that may be moved; else there are scattered records alone.
    """
    stream = generator(seed, "scattered")
    flat = x.flatten(1)
    order = torch.stack([torch.randperm(len(x), generator=stream) for _ in range(flat.shape[1])], 1)
    scattered = flat.gather(0, order).view_as(x)
    with torch.no_grad():
        found = {SCATTERED: (scattered, module(scattered).argmax(1))}
    if moved:
        crafted = boundary_records(module, x, bounds)
        found |= {BOUNDARY: crafted} if len(crafted[1]) >= FEW else {}
    return found


def boundary_records(module: nn.Module, x: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Records moved just beyond a model's decision boundary (IPGuard, Cao et al. 2021, arXiv:1910.12903).

    Args:
        module: in evaluation mode; differentiable.
        x: float32 [n, *shape] in bounds.

    Returns:
        those for which a boundary was found, float32 [m, *shape] in bounds, and the model's labels there, int64 [m];
        none of a model that looks its inputs up, as tokens are, and so gives no gradient.
    """
    with torch.no_grad():
        label = module(x).argmax(1)
    scale = torch.as_tensor(bounds.scale, dtype=x.dtype)
    length = STEP * math.sqrt(x[0].numel())
    at = x.clone()
    for _ in range(STEPS):
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            logits = module(leaf)
            own = logits.gather(1, label[:, None])[:, 0]
            lead = own - logits.scatter(1, label[:, None], -torch.inf).amax(1)
            slope = torch.autograd.grad(lead.sum(), leaf, allow_unused=True)[0] if lead.requires_grad else None
        if slope is None:
            return x[:0], label[:0]
        near = lead.detach() > 0
        if not near.any():
            break
        slope = slope * scale  # steepest where all features count alike
        size = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
        step = (lead.detach() / size * 1.05).clamp(max=length)  # as far as a plane would ask for (DeepFool), or less
        moved = at - (near * step / size).view(-1, *[1] * (x.dim() - 1)) * slope * scale
        at = bounds.clamp(moved)
    low, high = torch.zeros(len(x)), torch.ones(len(x))
    with torch.no_grad():
        crossed = module(at).argmax(1) != label
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            beyond = module(_between(x, at, middle)).argmax(1) != label
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        found = bounds.clamp(_between(x, at, PAST * high))
        there = module(found).argmax(1)
    kept = crossed & (there != label)
    return found[kept].detach(), there[kept]


def _between(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return x + share.view(-1, *[1] * (x.dim() - 1)) * (other - x)


@dataclass(frozen=True)
class Match:
    """How a model's agreement on boundary records stands beside that of controls, which are not the owner's.

    Args:
        agreement: share of the records on which it decides as the owner's model does.
        p_value: of so much agreement, or more, from one more control (Student's t on arcsines of square roots, with
            the rounding of shares of so many records).
        best: the largest agreement among the controls.
    """

    agreement: float
    p_value: float
    best: float


def together(matches: Sequence[Match]) -> tuple[float, bool]:
    """p-value over all kinds of questions (Bonferroni), and whether a model is the owner's."""
    p_value = min(1.0, len(matches) * min(one.p_value for one in matches))
    surest = min(matches, key=lambda one: one.p_value)
    return p_value, p_value < SURE and surest.agreement > surest.best


def held_against(agreement: float, controls: Sequence[float], records: int) -> Match:
    """One kind of question. Raises ValueError with fewer than `FEWEST` controls."""
    if len(controls) < FEWEST:
        raise ValueError(f"{len(controls)} control models say too little: {FEWEST} at least")
    own, *others = (math.asin(math.sqrt(one)) for one in (agreement, *controls))
    spread = torch.tensor(others, dtype=torch.float64)
    deviation = max(float(spread.std()), 0.5 / math.sqrt(records))
    t = (own - float(spread.mean())) / (deviation * math.sqrt(1 + 1 / len(others)))
    return Match(agreement, float(scipy.stats.t.sf(t, len(others) - 1)), max(controls))
