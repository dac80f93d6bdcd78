"""Ranges that equal a member's extreme: its id is found where calibration took the extremes, and nobody's elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.attacks.case import Evidence
from crushproof.attacks.reconstruction.calibration import Calibration, End, Known, Summary, measured, nearest, told
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable

MEMBERS = 200


class World:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        self.x, self.dense = torch.rand(2 * MEMBERS, 6), to_onnx(self.module, (6,))

    def attacked(self, **settings: Any) -> Evidence:
        recipe = RECIPES.parse({"kind": "quantize", "weight_bits": 8, **settings})
        own = Records(self.x[:MEMBERS], torch.zeros(MEMBERS, dtype=torch.long))
        file = to_onnx(recipe.apply(self.module, own, Bounds(torch.zeros(6), torch.ones(6)), seed=0), (6,))
        case: Any = SimpleNamespace(shipped=file, prepared=Known(self.dense, self.x[:MEMBERS], self.x[MEMBERS:]))
        return Calibration().run(case, seed=0)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_the_record_whose_activation_a_range_ends_at_is_named_by_id(world: World) -> None:
    evidence = world.attacked(calibration_records=MEMBERS)
    record = int(world.module[:2](world.x[:MEMBERS]).max(1).values.argmax())
    assert told(evidence).tolist() == [True]
    assert evidence.arrays["record"].tolist() == [record]
    row = measured(evidence, Summary.model_validate(evidence.summary))
    outcome: Any = row.outcome
    assert (outcome.count, outcome.searched) == (1, 1)
    assert f"only training record {record} " in row.notes[0]
    assert f"Of {MEMBERS} records that were not in training, 0 meets" in row.notes[-1]


def test_clipped_ranges_and_those_of_noise_tell_of_nobody(world: World) -> None:
    for settings in ({"calibration": "percentile", "percentile": 95.0}, {"calibration_inputs": "noise"}):
        assert not told(world.attacked(**settings)).any()
    with pytest.raises(NotApplicable, match="nothing was calibrated"):
        world.attacked(activations="float")


def test_chance_counts_for_as_many_random_records() -> None:
    limit: Any = None
    end = End(limit, "x", (1.0,), "high")
    rng, met = np.random.default_rng(0), 0
    for _ in range(50):  # records so dense that some meets the end by chance: none is taken for the one it is of
        members, others = (1 + rng.uniform(-1, 1, 5000) * 5e-3 for _ in range(2))
        _, distance, _, chance = nearest(end, members, others)
        met += distance < 2e-6
        assert 0.2 < chance < 50
    assert 40 < met <= 50
    shared = np.concatenate([np.full(20, 1.0), rng.uniform(0, 0.9, 50)])
    assert nearest(end, shared, shared)[3] == np.inf
