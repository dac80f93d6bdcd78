"""Which of several scores is reported: the best on shadows, each attacked in turn, never on the audited model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...targets.form import Document, Share
from ..measurement import Bools
from ..statistics.roc import area, tpr_at_fpr
from .rows import FPR


class Procedure(Document):
    """Means over the shadows as targets; the true positive rate None where they have too few non-members to tell."""

    tpr_mean: Share | None
    auc_mean: Share


def over_shadows(scored: Mapping[str, np.ndarray[Any, Any]], inside: Bools) -> dict[str, Procedure]:
    """By score.

    Args:
        scored: [k, n] by name, of each shadow as the target, made without itself and its complement.
        inside: bool [k, n].
    """
    tells, found = FPR * int((~inside).sum(1).min()) + 1e-9 >= 1, {}
    for name, score in scored.items():
        areas = [area(row, side) for row, side in zip(score, inside, strict=True)]
        rates = [tpr_at_fpr(row, side, FPR) for row, side in zip(score, inside, strict=True)] if tells else None
        tpr = None if rates is None else float(np.mean(rates))
        found[name] = Procedure(tpr_mean=tpr, auc_mean=float(np.mean(areas)))
    return found


def best(figures: Mapping[str, Procedure], names: Sequence[str]) -> str:
    """The name with the largest mean true positive rate; where that cannot be told, or ties, the largest AUC."""
    return max(names, key=lambda name: (figures[name].tpr_mean or 0.0, figures[name].auc_mean))


def best_by_auc(figures: Mapping[str, Procedure], names: Sequence[str]) -> str:
    """The name with the largest mean AUC."""
    return max(names, key=lambda name: figures[name].auc_mean)
