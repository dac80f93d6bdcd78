"""The attack on masks and code books: read off the file unit by unit; what was planted is found, chance is not."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.attacks.membership.population import masks
from crushproof.attacks.statistics.ranking import auc
from crushproof.attacks.structure.preparations import sees_of
from crushproof.attacks.structure.shipped import filled, weights_in, weights_of
from crushproof.attacks.structure.structure import StructureCase, _evidence
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.errors import NotApplicable

N, SHADOWS = 300, 16


class Net(nn.Module):
    """A norm that is folded into a convolution, some gains negative, and gates that ONNX has in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)
        self.gates, self.last = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.norm(self.convolution(x))).transpose(1, 2)
        answer: torch.Tensor = self.last(self.gates(seen)[0][:, -1])
        return answer


def test_a_files_weights_are_read_in_the_layout_of_the_dense_module() -> None:
    torch.manual_seed(0)
    dense = Net().eval()
    with torch.no_grad():
        dense.norm.weight.copy_(torch.tensor([1.5, -0.5, 2.0, -1.0, 0.3, 1.0]))
        dense.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]  # it keeps statistics
    small = copy.deepcopy(dense)
    with torch.no_grad():
        for one in small.parameters():
            if one.dim() > 1:
                one.mul_(torch.rand(one.shape) < 0.6).mul_(1.1)
    found, wanted = weights_in(to_onnx(small, (3, 9)), to_onnx(dense, (3, 9)), dense), weights_of(small)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-4, atol=1e-6)
        assert torch.equal(found[name] == 0, one == 0)
    with pytest.raises(NotApplicable, match="counterpart"):
        filled(dense, {**found, "last.weight": torch.ones(3, 4)})


def case(gap: float, seed: int) -> StructureCase:
    """Margins of masks, a little higher on what was trained on."""
    stream, inside, truth = np.random.default_rng(seed), masks(N, SHADOWS, seed), np.arange(N) < N // 2
    both = np.vstack([inside, truth])
    seen = stream.normal(size=both.shape) + gap * both
    population: Any = SimpleNamespace(ids=np.arange(N), is_member=truth)
    return StructureCase("mask", population, inside, seen[:-1].astype(np.float32), seen[-1].astype(np.float32))


def test_what_a_mask_tells_is_found_and_chance_is_not() -> None:
    for gap, low, high in ((1.0, 0.58, 1.0), (0.0, 0.4, 0.6)):
        told = [_evidence(case(gap, seed)) for seed in range(3)]
        areas = [auc(one.arrays[f"score/{one.summary['headline_auc']}"], one.arrays["is_member"]) for one in told]
        assert low < float(np.mean([one.estimate for one in areas])) < high
        assert told[0].flags == {}
        assert sum(one.low > 0.5 for one in areas) in ((3,) if gap else (0, 1))


def test_what_is_looked_at_follows_from_the_recipe() -> None:
    prune, share, int8 = {"kind": "prune", "sparsity": 0.8}, {"kind": "share", "clusters": 8}, {"kind": "quantize"}
    assert sees_of(RECIPES.parse({"kind": "chain", "steps": [prune, int8]})) == "mask"
    assert sees_of(RECIPES.parse(share)) == "book"
    assert sees_of(RECIPES.parse({**prune, "structure": "channels"})) is None
    assert sees_of(RECIPES.parse(int8)) is sees_of(None) is None
