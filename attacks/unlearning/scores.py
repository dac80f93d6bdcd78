"""How much better a model knows a record than models that were not trained on it do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...targets.data.records import Records
from ..membership.scoring.bavaria import shrinkage
from ..statistics.roc import placements

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Margins = np.ndarray[Any, np.dtype[np.floating[Any]]]

FEWEST = 4  # shadows: of each asked in turn, one pair is left out


@dataclass(frozen=True)
class ForgettingCase:
    """The records to forget, f of them, then h that the model never saw, and what others say of them.

    Args:
        records: f + h, those to forget first.
        forgotten: f.
        ids: int64 [h], of the others among `Data.non_members`.
        inside: bool [k, f + h], what each of k shadow models was trained on: none of the first f. None: no shadows.
        phi: float32 [k, f + h], their logit margins; None: no shadows.
        control: float32 [f + h], the margins of a model retrained without the records; None: there is none.
    """

    records: Records
    forgotten: int
    ids: np.ndarray[Any, np.dtype[np.int64]]
    inside: Bools | None
    phi: Margins | None
    control: Margins | None

    @property
    def is_forgotten(self) -> Bools:
        return np.arange(len(self.records)) < self.forgotten


@dataclass(frozen=True)
class Null:
    """The same questions asked of shadow models, none of which was trained on the records to forget.

    Args:
        targets: shadows, each asked in turn and compared with the others.
        auc_mean, auc_sd, auc_most: of the AUC of their scores.
        spread: how much that AUC varies between models beyond what the records explain, a standard deviation.
        recall_mean, recall_sd: of the share of the records to forget that they recall.
    """

    targets: int
    auc_mean: float
    auc_sd: float
    auc_most: float
    spread: float
    recall_mean: float
    recall_sd: float


def known_beyond(phi: Margins, shadows: Margins, outside: Bools, keep: Bools | None = None) -> Floats:
    """How far margins lie above those of models not trained on the record, in standard deviations; float64 [t, n].

    LiRA's offline score (Carlini et al. 2022, arXiv:2112.03570) with the error of the mean, and with variances shrunk
    towards a common one (`membership.bavaria.shrinkage`). 0 where fewer than two such models are left.

    Args:
        phi: [t, n], of the models asked.
        shadows: [k, n].
        outside: bool [k, n], whether shadow i was not trained on record j.
        keep: bool [t, k], the shadows each may be compared with; None: all.
    """
    chosen = np.ones((len(phi), len(shadows))) if keep is None else keep.astype(float)
    shadow, weight = shadows.astype(np.float64), outside.astype(float)
    centre = shadow.mean(0)  # sums of squares keep their digits around it
    shadow = shadow - centre
    count = np.einsum("tk,kn->tn", chosen, weight)
    enough, count = count >= 2, np.maximum(count, 2)
    mean = np.einsum("tk,kn->tn", chosen, weight * shadow) / count
    squares = np.einsum("tk,kn->tn", chosen, weight * shadow**2) - count * mean**2
    squares = np.maximum(squares, 1e-12)
    prior_freedom, prior = shrinkage(squares, count - 1, np.zeros_like(squares), np.ones_like(squares, dtype=bool))
    shrunk = (squares + prior_freedom * prior) / (count - 1 + prior_freedom)
    found: Floats = (phi.astype(np.float64) - centre - mean) / np.sqrt(shrunk * (1 + 1 / count))
    return np.where(enough, found, 0.0)


def null_of(case: ForgettingCase) -> Null | None:
    """What shadows as targets give, each without itself and the one trained on the other half; None: too few."""
    if case.phi is None or case.inside is None or len(case.phi) < FEWEST:
        return None
    count, own = len(case.phi), np.arange(len(case.phi))
    keep = (own[:, None] // 2) != (own[None, :] // 2)
    scores = known_beyond(case.phi, case.phi, ~case.inside, keep)
    areas, errors = [], []
    for score, inside in zip(scores, case.inside, strict=True):
        members, others = placements(score[~inside], case.is_forgotten[~inside])
        areas.append(float(members.mean()))
        errors.append(float(members.var(ddof=1) / len(members) + others.var(ddof=1) / len(others)))
    recalled = (case.phi[:, : case.forgotten] > 0).mean(1)
    varies = float(np.var(areas, ddof=1))
    return Null(
        targets=count,
        auc_mean=float(np.mean(areas)),
        auc_sd=varies**0.5,
        auc_most=float(np.max(areas)),
        spread=max(0.0, varies - float(np.mean(errors))) ** 0.5,
        recall_mean=float(recalled.mean()),
        recall_sd=float(recalled.std(ddof=1)),
    )
