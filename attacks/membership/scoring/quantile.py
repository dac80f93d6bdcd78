"""Membership without shadow models: how high a margin is for a record like this one that was not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....targets.data.records import Records
from ....targets.seeds import derive

Floats = np.ndarray[Any, np.dtype[np.float64]]
Margins = np.ndarray[Any, np.dtype[np.floating[Any]]]

WIDEST = 512  # features; wider records are projected at random
PENALTIES = tuple(10.0**power for power in range(7))  # for features of variance 1, against a sum over the records
LEAST = 0.1  # of the mean distance: below it a distance from the prediction counts as this


def quantile(phi: Margins, records: Records, known_phi: Margins, known: Records, *, seed: int) -> Floats:
    """In which quantile of non-members' margins a record's own margin lies, as a standard normal number; [n].

    Quantile regression on the population (Bertran et al. 2023, "Scalable membership inference attacks via quantile
    regression", arXiv:2307.03694), in its Gaussian form: a margin's mean and the logarithm of its spread are linear in
    a record's values and class, each by ridge regression on the attacker's own records. The penalty is the one with
    the least leave-one-out error there, so nothing is fitted to the attacked records.

    Args:
        phi, records: [n], margins of the attacked records.
        known_phi, known: [m], of the attacker's own records, which the model was not trained on.
    """
    classes = int(max(records.y.max(), known.y.max())) + 1
    draws = np.random.default_rng(derive(seed, "projection"))
    size = known.x[:1].numel()
    project = draws.standard_normal((size, WIDEST)) / np.sqrt(size) if size > WIDEST else None
    mine, theirs = (_features(one, classes, project) for one in (known, records))
    middle, scale = mine.mean(0), mine.std(0)
    scale[scale < 1e-6] = np.inf  # what never varies here tells nothing, and may be anything there
    mine, theirs = (mine - middle) / scale, (theirs - middle) / scale
    centre, off = _ridge(mine, known_phi.astype(np.float64), theirs)
    distance = np.abs(off)
    spread, _ = _ridge(mine, np.log(np.maximum(distance, LEAST * distance.mean() + 1e-9)), theirs)
    score: Floats = (phi.astype(np.float64) - centre) / np.exp(spread)
    return score


def _features(records: Records, classes: int, project: Floats | None) -> Floats:
    values = records.x.cpu().numpy().reshape(len(records), -1).astype(np.float64)
    values = values if project is None else values @ project
    return np.hstack([values, records.y.cpu().numpy()[:, None] == np.arange(classes)])


def _ridge(x: Floats, y: Floats, asked: Floats) -> tuple[Floats, Floats]:
    """Predictions at `asked` [n], and how far each y [m] lies from what the others predict of it."""
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    middle = y.mean()
    part = left.T @ (y - middle)

    def left_out(penalty: float) -> Floats:
        kept = singular**2 / (singular**2 + penalty)
        leverage = (left**2 * kept).sum(1) + 1 / len(y)
        off: Floats = (y - middle - left @ (kept * part)) / np.maximum(1 - leverage, 1e-6)
        return off

    penalty = min(PENALTIES, key=lambda one: float((left_out(one) ** 2).mean()))
    found: Floats = middle + asked @ (right.T @ (singular / (singular**2 + penalty) * part))
    return found, left_out(penalty)
