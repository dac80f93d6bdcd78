"""Nearest neighbours among records: which are copies of others but for a small change.

Of images a change of brightness or contrast and a mirror image are small changes too: records are compared as they are
after both (each with mean 0 and deviation 1; values and their mirrored ones as sum and absolute difference).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ..records import Bounds, Records

NEAR = 0.05  # of the median distance of two records of the class
# The same of images. Of MNIST, CIFAR-10 and the 8 x 8 digits at most .1 % are so close to another one of their class by
# nature; with noise of .05 on every pixel 20 to 90 % are.
NEAR_IMAGES = 0.15
TIGHT = 0.001  # the same of rows that nothing is known of: by nature some are neighbours
SPREAD = 0.25  # of the median distance of any two records, that those of a class are taken to be apart at least
ASKED = 1000  # records whose nearest neighbours are looked for
WORK = 1e10  # products for one such search
COLUMNS = 512  # of a record that are compared, drawn at random
CLOSER = 2**13  # the same where those of two are near: of a sparse record few say little
FLAT = 0.01  # deviation of an image's values, in units of the bounds; below it there is only noise
PART = 8192  # records compared at once
PAIRS = 200  # per class, of which that median is


def is_image(records: Records) -> bool:
    """Whether a record is [c, h, w], and no series in that form."""
    return records.x.ndim == 4 and min(records.x.shape[2:]) > 1


class Search:
    """Nearest neighbours within classes, at a cost that is bounded whatever the size of the data.

    Args:
        like: records whose distances say what is near in each class.
        near: times the median of those distances.
        columns: that are compared, at most.
        as_given: of images, too.
    """

    def __init__(
        self, like: Records, bounds: Bounds, near: float, columns: int = COLUMNS, *, as_given: bool = False
    ) -> None:
        self._draw = np.random.default_rng(0x5EED)
        shape = like.x.shape[1:]
        low, scale = bounds.low.expand(shape).flatten(), bounds.scale.expand(shape).flatten()
        few = like.x[:: max(1, len(like) // PART)].flatten(1)
        constant = few.amax(0) <= few.amin(0)
        self._image = is_image(like) and not as_given
        if self._image:  # pixels of the left half; each comes with its mirrored one
            mirrored = torch.arange(len(constant)).reshape(shape).flip(-1)
            constant = constant.cpu() & constant.cpu()[mirrored.flatten()]
            width = (shape[-1] + 1) // 2
            constant = constant.reshape(shape).clone()
            constant[..., width:] = True
        varies = (~constant.flatten()).nonzero().flatten().cpu().numpy()
        most = columns // 2 if self._image else columns
        self._drawn = len(varies) > most
        if self._drawn:
            varies = np.sort(self._draw.choice(varies, most, replace=False))
        self._columns = torch.from_numpy(varies)
        if self._image:
            self._columns = torch.cat([self._columns, mirrored.flatten()[self._columns]])
        self._low, self._scale = low[self._columns].cpu(), scale[self._columns].cpu()
        self._near, self._limits = near, dict[int, float]()
        self._like, self._bounds = like, bounds
        self._least = SPREAD * self._apart(np.arange(len(like)), seed=0)

    def share(self, asked: Records, pool: Records, *, other: bool = False) -> tuple[float, int]:
        """The share of the asked that have a near duplicate of their class in the pool, and of how many that is.

        Args:
            other: of any other class instead.
        """
        of_asked, of_pool = _classes(asked), _classes(pool)
        sizes = np.bincount(of_pool).astype(float)
        against = len(of_pool) - sizes if other else sizes
        typical = float((sizes * against).sum() / len(of_pool)) * max(1, len(self._columns))
        part = 0.25 if other else 1.0  # the other classes are nearly all records
        count = min(len(asked), int(part * ASKED), max(100, int(part * WORK / max(typical, 1))))
        chosen = np.sort(self._draw.choice(len(asked), count, replace=False))
        hits, looked = 0, 0
        # Of other classes all at once: they are nearly all records, which to gather for each class would take minutes.
        groups = [chosen] if other else [chosen[of_asked[chosen] == label] for label in np.unique(of_asked[chosen])]
        for group in groups:
            mine = group[self._limits_of(of_asked[group]) > 0]
            theirs = np.arange(len(of_pool)) if other else np.flatnonzero(of_pool == of_asked[group[0]])
            if not len(mine) or not len(theirs):
                continue
            apart, nearest = self._nearest(asked, mine, pool, theirs, other=other)
            near = apart <= self._limits_of(of_asked[mine]) ** 2
            if near.any() and self._drawn:
                near[near] = self._closer.alike(asked, mine[near], pool, nearest[near])
            hits += int(near.sum())
            looked += len(mine)
        return (hits / looked if looked else 0.0), looked

    @cached_property
    def _closer(self) -> Search:
        return Search(self._like, self._bounds, self._near, CLOSER, as_given=not self._image)

    def alike(
        self, asked: Records, mine: NDArray[np.int64], pool: Records, theirs: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each of these is a near duplicate of one in the pool."""
        apart = (self._values(asked, mine) - self._values(pool, theirs)).astype(np.float64)
        found: NDArray[np.bool_] = (apart**2).sum(1) <= self._limits_of(_classes(asked)[mine]) ** 2
        return found

    def _nearest(
        self,
        asked: Records,
        mine: NDArray[np.int64],
        pool: Records,
        theirs: NDArray[np.int64],
        *,
        other: bool,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The squared distance of each to its nearest other record (inf: there is none), and which that is; it is found
        in single precision.
        """
        own, of_mine, of_pool = self._values(asked, mine), _classes(asked)[mine], _classes(pool)
        best, which = np.full(len(own), np.inf), np.zeros(len(own), dtype=np.int64)
        for first in range(0, len(theirs), PART):
            part = theirs[first : first + PART]
            values = self._values(pool, part)
            distance = np.einsum("nc,nc->n", values, values) - 2 * own @ values.T
            if asked is pool:
                distance[mine[:, None] == part[None]] = np.inf
            if other:
                distance[of_mine[:, None] == of_pool[part][None]] = np.inf
            nearest = distance.argmin(1)
            exact = ((own - values[nearest]).astype(np.float64) ** 2).sum(1)
            exact[np.isinf(distance.min(1))] = np.inf  # all were left out
            closer = exact < best
            best[closer], which[closer] = exact[closer], part[nearest][closer]
        return best, which

    def _limits_of(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([self._limit(int(label)) for label in labels])

    def _limit(self, label: int) -> float:
        """How close two records of this class are near duplicates."""
        if label not in self._limits:
            theirs = np.flatnonzero(_classes(self._like) == label)
            self._limits[label] = self._near * max(self._apart(theirs, label), self._least) if len(theirs) > 1 else 0.0
        return self._limits[label]

    def _apart(self, among: NDArray[np.int64], seed: int) -> float:
        """The median distance of two of these records."""
        one, other = among[np.random.default_rng(seed).integers(0, len(among), (2, PAIRS))]
        apart = self._values(self._like, one[one != other]) - self._values(self._like, other[one != other])
        return float(np.median(np.sqrt((apart.astype(np.float64) ** 2).sum(1)))) if len(apart) else 0.0

    def _values(self, records: Records, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """In units of the bounds, of images after brightness, contrast and mirroring: float32 [n, columns]."""
        taken = records.x.flatten(1)[torch.from_numpy(index)[:, None], self._columns[None]].cpu()
        values: NDArray[np.float32] = ((taken - self._low) / self._scale).numpy()
        if not self._image:
            return values
        values = values - values.mean(1, keepdims=True)
        values /= np.maximum(values.std(1, keepdims=True), FLAT)
        left, right = np.split(values, 2, axis=1)
        both = np.concatenate([left + right, np.abs(left - right)], axis=1)
        return (both / 2**0.5).astype(np.float32)


def _classes(records: Records) -> NDArray[np.int64]:
    """The class of each; 0 for all of a regression."""
    y = records.y.cpu().numpy()
    return np.zeros(len(y), dtype=np.int64) if records.y.is_floating_point() else y
