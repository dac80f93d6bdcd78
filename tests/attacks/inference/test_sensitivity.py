"""Sensitivity: steadier answers on members are found, chance is not, and nobody but the record decides its noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from crushproof.attacks.inference.choosing import over_shadows
from crushproof.attacks.inference.probing import count_of, features
from crushproof.attacks.inference.sensitivity import JOINT, MARGIN, SAMIA, scored
from crushproof.attacks.membership.population import masks
from crushproof.attacks.statistics.ranking import auc
from crushproof.targets.data.data import Data
from crushproof.targets.model import TorchTarget

N, SHADOWS = 200, 8


def test_steadier_answers_on_members_are_found_and_chance_is_not() -> None:
    for gap in (1.5, 0.0):
        stream, inside, truth = np.random.default_rng(0), masks(N, SHADOWS, 0), np.arange(N) < N // 2
        known = stream.normal(size=(SHADOWS + 1, N, 4)).astype(np.float32)
        known[:, :, 1] -= gap * np.vstack([inside, truth])
        found, of_shadows = scored(known[-1], known[:-1], inside, 0)
        means = over_shadows(of_shadows, inside)
        for name in (SAMIA, JOINT):
            low, estimate = auc(found[name], truth).low, auc(found[name], truth).estimate
            assert (low > 0.6 and means[name].auc_mean > 0.65) if gap else abs(estimate - 0.5) < 0.12
        assert abs(means[MARGIN].auc_mean - 0.5) < 0.06


def test_features_are_of_each_record_alone(digits: Data) -> None:
    torch.manual_seed(0)
    records = digits.evaluation.take(torch.arange(6))
    steady = TorchTarget(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    whole = features(steady, records, digits, 3, seed=1)
    assert whole.shape == (6, count_of(10))
    np.testing.assert_allclose(features(steady, records.take(torch.arange(2)), digits, 3, seed=1), whole[:2], rtol=1e-5)
    with torch.no_grad():
        steady.module[1].weight.zero_()  # type: ignore[index,union-attr]  # a layer: it answers all alike
    still = features(steady, records, digits, 3, seed=1)
    assert (still[:, 1] < whole[:, 1]).all()
    np.testing.assert_allclose(still[:, 1], np.log(1e-6), rtol=1e-6)
