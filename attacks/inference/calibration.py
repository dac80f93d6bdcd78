"""A score that shadow models were never asked about, read on their scale: by ranks, and then as their margins are."""

from __future__ import annotations

import numpy as np

from ..measurement import Floats
from ..membership.case import ShadowSignals
from ..membership.scoring import scores

ENOUGH_FOR_LIRA = 16  # shadows; with fewer the RMIA ratio tells more


def calibrated(score: Floats, shadows: ShadowSignals) -> Floats:
    """How much surer the model is of each record than its shadows let expect, float64 [n].

    Shadow models say how hard a record is, which hides membership from a plain distance or count. They were asked for
    scores, the model for labels alone; both rank the same records, half of them trained on. So the score's r-th
    quantile stands for the r-th quantile of the shadows' margins, and is then scored as a margin is: by LiRA, or with
    few shadows by the RMIA ratio. No record's membership of the model is used.

    Args:
        score: [n], higher for records that the model is surer of; ties share their rank.
        shadows: of the same records.
    """
    _, place, alike = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(alike) - alike / 2)[place] / len(score)
    phi = np.quantile(shadows.phi.astype(np.float64), rank)[None]
    how = scores.lira if len(shadows.phi) >= ENOUGH_FOR_LIRA else scores.rmia
    result: Floats = how(phi, shadows)[0]
    return result
