"""Whether somebody who watches the queries of one client would notice (PRADA, Juuti et al. 2019, arXiv:1805.02628)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used
import torch
from torch import Tensor

from ...targets.seeds import generator

Distances = np.ndarray[Any, np.dtype[np.float32]]

WATCHED = 2000  # of the first queries distances are taken
FEATURES = 1024  # of a record, beyond which distances are those of a random projection
NONE = -1.0  # the distance of the first query of a class, which has none to be near to
ENOUGH = 100  # distances, from which the watcher judges
EVERY = 10  # distances, at which it judges again
DELTA = 0.95  # the threshold where honest queries reach no lower


def shortest_distances(x: Tensor, labels: Tensor) -> Distances:
    """Of each query to the nearest earlier one of its class: float32 [n], `NONE` for the first of a class.

    As in PRADA a query joins those of its class only if it is far enough from them: further than the mean less one
    standard deviation of the distances at which others joined. L2, of the first `WATCHED` queries.

    Args:
        x: float32 [n, *shape], in the order in which they are asked.
        labels: int64 [n], the answers.
    """
    x = x[:WATCHED].flatten(1).cpu()
    if x.shape[1] > FEATURES:  # distances survive it (Johnson and Lindenstrauss 1984)
        stream = generator(0, "watched")
        x = x @ torch.randn(x.shape[1], FEATURES, generator=stream).div_(FEATURES**0.5)
    found = np.full(len(x), NONE, dtype=np.float32)
    kept: dict[int, list[int]] = {}
    joined: dict[int, list[float]] = {}
    limit: dict[int, float] = {}
    for at, label in enumerate(labels[: len(x)].tolist()):
        if label not in kept:
            kept[label], joined[label], limit[label] = [at], [0.0], 0.0
            continue
        nearest = float((x[kept[label]] - x[at]).square().sum(1).min().sqrt())
        found[at] = nearest
        if nearest > limit[label]:
            kept[label].append(at)
            joined[label].append(nearest)
            limit[label] = max(limit[label], float(np.mean(joined[label]) - np.std(joined[label])))
    return found


def normality(distances: Distances) -> list[tuple[int, float]]:
    """(queries asked, the Shapiro-Wilk statistic of their distances so far), at every tenth distance from the 100th on.

    Distances beyond three standard deviations are left out, as in PRADA. An honest client's are about normal: the
    statistic is near 1.
    """
    known = np.flatnonzero(distances >= 0)
    judged = []
    for count in range(ENOUGH, len(known) + 1, EVERY):
        so_far = distances[known[:count]].astype(np.float64)
        usual = so_far[np.abs(so_far - so_far.mean()) <= 3 * so_far.std()]
        same = np.ptp(usual) == 0  # as normal as nothing can be
        judged.append((int(known[count - 1]) + 1, 0.0 if same else float(scipy.stats.shapiro(usual).statistic)))
    return judged


def threshold(honest: Distances) -> float | None:
    """The statistic below which the watcher takes a client for an attacker: `DELTA`, or what these honest ones reach.

    None where they are too few to be judged.
    """
    reached = [statistic for _, statistic in normality(honest)]
    return min(DELTA, *reached) if reached else None


def noticed_after(distances: Distances, below: float) -> int | None:
    """The number of queries after which the watcher would notice; None: it would not."""
    return next((queries for queries, statistic in normality(distances) if statistic < below), None)
