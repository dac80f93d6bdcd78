"""The blind baseline: can members be told from non-members without asking the model at all?

If so, training and test records differ (another camera, another year), and a membership attack may be riding on that
difference instead of the model's memory (Das et al. 2024, "Blind baselines beat membership inference attacks").
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...targets.data.records import Records
from ...targets.seeds import derive

FOLDS = 5
WIDEST = 128  # features; wider records are projected at random


def blind_scores(
    records: Records, is_member: np.ndarray[Any, np.dtype[np.bool_]], *, seed: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Out-of-fold probabilities of being a member, float64 [n], from a record's values and label alone.

    The mean of a logistic regression (a shift of the means) and a small random forest (other differences), each fitted
    on four fifths of the records and asked about the last fifth.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    values = records.x.cpu().numpy().reshape(len(records), -1).astype(np.float64)
    if values.shape[1] > WIDEST:
        rng = np.random.default_rng(derive(seed, "projection"))
        values = values @ rng.standard_normal((values.shape[1], WIDEST))
    label = records.y.cpu().numpy()
    features = np.hstack([StandardScaler().fit_transform(values), label[:, None] == np.unique(label)])
    state = derive(seed, "blind") % 2**32
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=state)
    scores = np.zeros(len(records))
    for fit, ask in folds.split(features, is_member):
        for model in (
            LogisticRegression(C=0.01, max_iter=200),
            RandomForestClassifier(40, max_depth=6, min_samples_leaf=5, n_jobs=1, random_state=state),
        ):
            scores[ask] += model.fit(features[fit], is_member[fit]).predict_proba(features[ask])[:, 1] / 2
    return scores
