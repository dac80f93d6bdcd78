"""The search in the space of embeddings: what is looked up for each token moves along the gradient, and the nearest
tokens that are allowed are tried in its place.

After projected optimisation of prompts (Wen et al. 2023, arXiv:2302.03668): the gradient is taken at real tokens, the
point that it moves lies between them. Where first-order scores (`guidance`) look at one step through the whole space,
this one goes in many short ones. A point between tokens is no input and never counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....targets.model import Target
from ....training.ball import SMALLEST
from ...access import Ledger
from ..ascent.losses import margins
from .features import AT_ONCE, Features
from .guidance import Guide
from .search import Sought

STEP = 0.25  # of the radius, at the place with the steepest gradient


def seek_softly(
    target: Target,
    features: Features,
    x: Tensor,
    y: Tensor,
    guide: Guide,
    *,
    most: int,
    shown: int,
    steps: int,
    epsilon: float,
    ledger: Ledger,
    told: Callable[[int], None] = lambda cost: None,
) -> Sought:
    """Searches up to a cost of `most`, cheapest first, with so many steps at each; see `search.seek`.

    Args:
        x: float32 [n, F], token ids that are classified right; y: int64 [n].
        epsilon: radius of the ball around each embedding (L2), in root mean square distances of the allowed ones from
            their mean.

    Raises:
        NotApplicable: nothing in the module looks tokens up.
    """
    table, known = guide.table(x), features.values[features.feature == 0, 0]  # the same tokens at every place
    near = table[known.long()]
    radius = epsilon * float((near - near.mean(0)).square().sum(1).mean().sqrt())
    places = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)  # what a change there costs; 0: none may be
    places[features.columns[:, 0]] = features.cost[features.feature]
    level = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    inputs, later, best = x.clone(), x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    flat = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for cost in range(1, most + 1):
        told(cost)
        rows = (level == 0).nonzero().squeeze(1)
        moved, tokens = torch.zeros(len(rows), x.shape[1], table.shape[1], device=x.device), x[rows]
        for _ in range(steps if len(rows) else 0):
            clean, home = x[rows], table[x[rows].long()]
            free = (places > 0) & (clean != (-1 if features.padding is None else features.padding))
            slope = guide.ascent(tokens, y[rows]) * free.unsqueeze(2)
            flat[rows] &= (slope.flatten(1) == 0).all(1)
            steepest = slope.norm(dim=2).amax(1).clamp_min(SMALLEST)
            moved = moved + STEP * radius * slope / steepest[:, None, None]
            moved = moved * (radius / moved.norm(dim=2, keepdim=True).clamp_min(SMALLEST)).clamp_max(1)
            instead = _nearest(home + moved, clean, near, known)
            worth = (slope * (table[instead.long()] - home)).sum(2).masked_fill(~free | (instead == clean), -torch.inf)
            tokens = torch.where(_best(worth, places, cost), instead, clean)
            ledger.queries += len(rows)
            logits = target.logits(tokens.view(-1, *features.shape))
            margin, wrong = margins(logits, y[rows]).nan_to_num(torch.inf), logits.argmax(1) != y[rows]
            nearer = margin < best[rows] if cost <= shown else torch.zeros_like(wrong)
            inputs[rows[nearer | (wrong & (cost <= shown))]] = tokens[nearer | (wrong & (cost <= shown))]
            best[rows[nearer]] = margin[nearer]
            later[rows[wrong]], level[rows[wrong]] = tokens[wrong], cost
            rows, moved, tokens = rows[~wrong], moved[~wrong], tokens[~wrong]
            if not len(rows):
                break
    later = torch.where((level > 0).unsqueeze(1), later, inputs)
    return Sought(level, inputs, later, flat & (level == 0))


def _nearest(points: Tensor, clean: Tensor, near: Tensor, known: Tensor) -> Tensor:
    """Of each point [n, F, size] the nearest token, like clean [n, F], that is not the record's own there."""
    flat, own = points.flatten(0, 1), clean.flatten()
    found = []
    for some in torch.arange(len(flat), device=flat.device).split(max(1, AT_ONCE // len(near))):
        apart = torch.cdist(flat[some], near).masked_fill(own[some, None] == known, torch.inf)
        found.append(known[apart.argmin(1)])
    return torch.cat(found).view_as(clean)


def _best(worth: Tensor, places: Tensor, cost: int) -> Tensor:
    """bool [n, F]: the places worth most that cost no more together; what is worth nothing is left alone."""
    order = worth.argsort(dim=1, descending=True, stable=True)
    price = places[order].masked_fill(worth.gather(1, order) <= 0, cost + 1)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, price.cumsum(1) <= cost)
