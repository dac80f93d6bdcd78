"""Whether the audited model answers as models made like it do: as often right, and with scores on the same scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few
from torch import Tensor

from .case import ShadowSignals
from .signals import margin

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Margins = np.ndarray[Any, np.dtype[np.floating[Any]]]

# Times that scores of a model may be spread more or less than its shadows' (see masked). MNIST, 2 layers, 8 models:
# models made alike .9 to 1.05, 8, 4 and 3 bits .9 to 1.1, trained four times as long 1.7, a temperature of 2 .5; masked
# by arg-max and 10 % of the logits .11, 1 % of them .01, probabilities in 8 bits .03.
LIKE_SHADOWS = 4.0
SCALES = 24  # a mask is undone down to 2^-24 of the logits: a float32 keeps no more


def unlike(phi: np.ndarray[Any, Any], is_member: Bools, own: ShadowSignals) -> bool:
    """Whether the audited model gets records right at another rate than its shadows do, on either sort of record.

    Shadows of another training (a wrong learning rate, a loop that does nothing) make an attack that finds nothing.
    Different means by more than 5 points and more than four standard deviations of the shadows' own rates; of one
    shadow's, of what so many records explain.
    """
    right = own.phi > 0
    for target, side in ((phi[is_member] > 0, own.inside), (phi[~is_member] > 0, ~own.inside)):
        rates = np.array([row[chosen].mean() for row, chosen in zip(right, side, strict=True)])
        usual = float(rates.mean())
        spread = rates.std(ddof=1) if len(rates) > 1 else np.sqrt(2 * usual * (1 - usual) / len(target))
        if abs(target.mean() - usual) > max(0.05, 4 * spread):
            return True
    return False


def masked(phi: Margins, shadows: Margins, labels: Ids) -> bool:
    """Whether a model's scores differ far less, or far more, within a class than its shadows' do.

    "Arg-max plus a small share of the logits" keeps every label and blinds what is calibrated on shadows. The better
    half of each class is looked at, which a model that is any good gets right: how often it errs plays no part.

    Args:
        phi: [n]; shadows: [k, n]; labels: int64 [n].
    """
    own, theirs = _spread(phi, labels), [_spread(row, labels) for row in shadows]
    usual = float(np.median(theirs))
    return not usual / LIKE_SHADOWS <= own <= usual * LIKE_SHADOWS


def _spread(phi: Margins, labels: Ids) -> float:
    """Between the quartiles of phi among the better half of a class, less their median, over all classes."""
    centred = []
    for label in np.unique(labels):
        mine = np.sort(phi[labels == label])
        centred.append(mine[len(mine) // 2 :] - np.median(mine[len(mine) // 2 :]))
    low, high = np.quantile(np.concatenate(centred), (0.25, 0.75))
    return float(high - low)


def restored(logits: Tensor, y: Tensor, shadows: Margins) -> Margins:
    """The margins of a model that masks its scores, put back on its shadows' scale; float32 [n].

    What a mask leaves is an order. A temperature is found at which margins spread as the shadows' do, which undoes a
    share of the logits that was added to the answer; then, class by class, the k-th of n margins becomes that quantile
    of the shadows': they are made like the model, and half of the records were in training there as here.

    Args:
        logits: [n, classes]; y: int64 [n], labels.
        shadows: [k, n], margins.
    """
    labels = y.cpu().numpy()
    usual = float(np.median([_spread(row, labels) for row in shadows]))
    values = logits.detach().double()
    low, high = -float(SCALES), float(SCALES)
    for _ in range(SCALES + 6):
        middle = (low + high) / 2
        low, high = (low, middle) if _spread(margin(values * 2.0**middle, y), labels) > usual else (middle, high)
    return on_scale_of(margin(values * 2.0**low, y), labels, shadows)


def on_scale_of(phi: Margins, labels: Ids, shadows: Margins) -> Margins:
    """Margins with their order in each class and the distribution of the shadows'; float32 [n]."""
    result = np.empty(len(phi), dtype=np.float32)
    for label in np.unique(labels):
        mine = labels == label
        place = (scipy.stats.rankdata(phi[mine]) - 0.5) / mine.sum()
        result[mine] = np.quantile(shadows[:, mine], place)
    return result
