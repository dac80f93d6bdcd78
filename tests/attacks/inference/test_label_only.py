"""Label-only membership: distances known exactly, a planted memory, a null, and inputs that are no pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from crushproof.attacks.access import Flag
from crushproof.attacks.case import Case
from crushproof.attacks.inference.altered import altered, units
from crushproof.attacks.inference.attacked import Attacked, rows_of
from crushproof.attacks.inference.calibration import calibrated
from crushproof.attacks.inference.label_only import LabelOnly
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import masks, plan_population
from crushproof.attacks.statistics.ranking import auc
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import PLAIN, Structure
from crushproof.targets.model import TorchTarget
from crushproof.targets.seeds import generator

N, FEATURES = 80, 6
WEIGHT = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.7])


class Memory(nn.Module):
    """A line between two classes, and records it remembers: around each the right class, as far as `reach`."""

    def __init__(self, known: Records | None = None, reach: float = 0.0) -> None:
        super().__init__()
        self.known, self.reach = known, reach

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1) @ WEIGHT - 0.35
        if self.known is not None:
            near = torch.cdist(x.flatten(1), self.known.x.flatten(1)).min(1)
            side = 2.0 * self.known.y[near.indices] - 1
            lead = torch.where(near.values < self.reach, 9 * side, lead)
        return torch.stack([-lead, lead], 1)


def attacked(noise: float = 0.0) -> Attacked:
    """Records of which a share carries the wrong label, so that a line errs on them."""
    x = torch.rand(N, FEATURES, generator=generator(0, "records"))
    y = (x @ WEIGHT > 0.35).long()
    wrong = torch.rand(N, generator=generator(0, "labels")) < noise
    is_member, ids = np.arange(N) < N // 2, np.arange(N) % (N // 2)
    return Attacked(Records(x, torch.where(wrong, 1 - y, y)), np.arange(N), ids, is_member, None)


def case(model: nn.Module, prepared: Attacked, structure: Structure = PLAIN) -> Case:
    own = Records(torch.rand(30, FEATURES, generator=generator(1, "own")), torch.arange(30) % 2)
    own_case = Case(
        TorchTarget(model),
        None,
        None,
        None,
        prepared.records,
        prepared.ids,
        own,
        Bounds.of(0, 1),
        2,
        structure=structure,
    )
    return dataclasses.replace(own_case, prepared=prepared)


def test_the_distance_to_a_line_is_nearly_the_true_one_and_never_less() -> None:
    prepared = attacked()
    found = LabelOnly().run(case(Memory(), prepared), seed=0)
    true = ((prepared.records.x @ WEIGHT - 0.35).abs() / WEIGHT.norm()).numpy()
    ratio = found.arrays["distance"] / true
    assert ratio.min() > 0.999
    assert np.median(ratio) < 1.5
    assert found.summary["headline"] == "distance"
    assert found.flags == {"distance": [Flag.NO_SHADOWS.value]}
    assert 100 < found.summary["queries_per_record"] < 500
    again = LabelOnly().run(case(Memory(), prepared), seed=0)
    assert all(np.array_equal(again.arrays[name], one) for name, one in found.arrays.items())


def test_a_planted_memory_is_found_by_either_score_and_a_model_without_one_is_not() -> None:
    prepared = attacked(noise=0.5)
    members = prepared.records.take(torch.arange(N // 2))
    told = LabelOnly().run(case(Memory(members, 0.3), prepared), seed=0)
    for name in ("distance", "copies"):
        assert auc(told.arrays[f"score/{name}"], prepared.is_member).low > 0.5, name
    null = LabelOnly().run(case(Memory(), prepared), seed=0)
    for name in ("distance", "copies"):
        found = auc(null.arrays[f"score/{name}"], prepared.is_member)
        assert found.low <= 0.5 <= found.high, name


def test_of_tokens_only_the_copies_are_asked_about() -> None:
    found = LabelOnly(copies=9).run(case(Memory(), attacked(), Structure(tokens=True)), seed=0)
    assert found.summary["headline"] == "copies"
    assert "token" in found.skipped["distance"]
    assert "distance" not in found.arrays


def test_features_are_exchanged_by_blocks_and_images_are_shifted() -> None:
    assert units((6,), ((1, 2), (4, 5))).tolist() == [0, 1, 1, 2, 3, 3]
    x, own = torch.eye(4)[torch.arange(40) % 4], Records(torch.eye(4)[[0, 1]], torch.zeros(2, dtype=torch.long))
    for copy in altered(x, np.arange(40), 3, own, PLAIN, ((0, 1, 2, 3),), 0):
        assert (copy.sum(1) == 1).all(), "a one-hot block stays one"
    image = torch.arange(36.0).view(1, 1, 6, 6)
    copies = list(altered(image, np.arange(1), 4, own, PLAIN, (), 0))
    assert torch.equal(copies[0][0, 0, :, 1:], image[0, 0, :, 1:]) is False
    assert {float((copy - image).abs().max()) for copy in copies} == {1.0, 6.0}


def test_calibrated_distances_find_what_raw_ones_do_not() -> None:
    """Records of very different difficulty: the distance is a monotone function of a margin with a small gap."""
    areas = []
    for seed in range(2):
        stream = np.random.default_rng(seed)
        inside, is_member, hard = masks(600, 16, seed), np.arange(600) < 300, stream.normal(2, 3, 600)
        phi = (hard + inside + stream.normal(size=(16, 600))).astype(np.float32)
        score = np.exp((hard + is_member + stream.normal(size=600)) / 5)
        shadows = ShadowSignals(inside, phi)
        areas.append([auc(one, is_member).estimate for one in (score, calibrated(score, shadows))])
        null = np.exp((hard + stream.normal(size=600)) / 5)
        areas[-1].append(auc(calibrated(null, shadows), is_member).estimate)
    raw, own, none = np.mean(areas, axis=0)
    assert own > 0.66 > 0.62 > raw
    assert abs(none - 0.5) < 0.04


def test_fewer_records_are_among_those_of_more(digits: Data) -> None:
    plan = plan_population(digits, 2, seed=0)
    some, more = rows_of(plan, 40, 0), rows_of(plan, 100, 0)
    assert set(some) <= set(more)
    assert len(some) == 40
    assert plan.is_member[some].tolist() == [True] * 20 + [False] * 20
    assert len(rows_of(plan, 10**6, 0)) == plan.attacked
