"""What models trained at different shares tell, and how a share is read from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used
from torch import Tensor

Floats = np.ndarray[Any, np.dtype[np.float64]]

PLACES = 16  # at which a distribution is read
PENALTIES = 10.0 ** np.arange(-2, 4)  # beside the mean square of what is told
GRID = np.linspace(0, 1, 1001)  # of shares that are held against what is told


def of_margins(phi: np.ndarray[Any, Any]) -> Floats:
    """Logit margins [models, n], of each model around their mean over their spread: how sure it is at all tells little
    of a share, and depends on how many records it was trained on."""
    values = phi.astype(np.float64)
    spread = np.maximum(values.std(1, keepdims=True), 1e-9)
    found: Floats = (values - values.mean(1, keepdims=True)) / spread
    return found


def of_weights(weights: dict[str, Tensor]) -> Floats:
    """Statistics of a model's matrices that stay when its hidden units change places, [layers * 3 * PLACES].

    Sorted at `PLACES`: the weights, the norms of what units read, and the norms of what they are read with; over the
    layer's root mean square (Ganju et al. 2018, doi:10.1145/3243734.3243834, sort neurons to the same end).
    """
    found = []
    for one in weights.values():
        matrix = one.detach().cpu().double().flatten(1).numpy()
        scale = max(float(np.sqrt((matrix**2).mean())), 1e-30)
        read, given = (np.sqrt((matrix**2).mean(axis)) for axis in (1, 0))
        places = np.linspace(0, 1, PLACES)
        found += [np.quantile(values / scale, places) for values in (matrix, read, given)]
    return np.concatenate(found)


@dataclass(frozen=True)
class Reader:
    """Ridge regression of a share on what is told."""

    centre: Floats
    spread: Floats
    weight: Floats
    share: float

    def read(self, told: Floats) -> Floats:
        """A share for each model, [models], which may lie outside of [0, 1]."""
        found: Floats = self.share + ((told - self.centre) / self.spread) @ self.weight
        return found


def reader(told: Floats, share: Floats) -> tuple[Reader, float]:
    """From what the attacker's own models tell, [m, f], and their shares, and the mean squared error with each model
    left out in turn, as a share of the variance. The penalty is the one of the smallest such error."""
    centre, spread = told.mean(0), np.maximum(told.std(0), 1e-9)
    x, y = (told - centre) / spread, share - share.mean()
    kernel = x @ x.T
    usual = max(float(np.trace(kernel)) / len(x), 1e-12)
    best: tuple[float, Floats] = (np.inf, np.zeros(x.shape[1]))
    for penalty in PENALTIES * usual:
        inverse = np.linalg.inv(kernel + penalty * np.eye(len(x)))
        hat = kernel @ inverse + 1 / len(x)
        error = float((((y - kernel @ inverse @ y) / (1 - np.diag(hat))) ** 2).mean() / max(float(y.var()), 1e-12))
        if error < best[0]:
            best = error, x.T @ inverse @ y
    return Reader(centre, spread, best[1], float(share.mean())), best[0]


def told_right(read: Floats, share: Floats, middle: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [m']: of the models at the smallest and the largest share, whether the right one of the two is told.

    Args:
        middle: of what is read, between the two.
    """
    ends = (share == share.min()) | (share == share.max())
    return np.asarray((read[ends] > middle) == (share[ends] == share.max()))


def estimated(own: float, read: Floats, share: Floats, level: float = 0.95) -> tuple[float, float, float]:
    """The share of the model of which `own` was read, with its interval, in [0, 1]: all shares that do not contradict
    it by what was read of models of known shares (inverse regression, Fieller 1954).

    Args:
        read, share: [m], of models that the reader was not made from.
    """
    slope, start = np.polyfit(share, read, 1)
    left = read - start - slope * share
    freedom = max(1, len(read) - 2)
    error = np.sqrt((left**2).sum() / freedom)
    apart = ((share - share.mean()) ** 2).sum()
    reach = scipy.special.stdtrit(freedom, 0.5 + level / 2) * error
    reach = reach * np.sqrt(1 + 1 / len(read) + (GRID - share.mean()) ** 2 / apart)
    off = np.abs(own - start - slope * GRID)
    nearest, possible = float(GRID[off.argmin()]), GRID[off <= reach]
    if not len(possible) or own < (start + slope * GRID - reach).min() or own > (start + slope * GRID + reach).max():
        return nearest, 0.0, 1.0  # it is like none of them
    return nearest, float(possible.min()), float(possible.max())
