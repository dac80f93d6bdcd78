"""Membership from structure alone: what a mask was made to tell is found, and a mask of chance tells nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.attacks.membership.infer import Population, train_shadows
from crushproof.attacks.structure.infer import Sees, book, by_book, infer_from_structure, structure_of
from crushproof.targets.errors import InputError
from crushproof.training.loop import Training

N, SHADOWS = 60, 16


def net(told: np.ndarray | None, seed: int) -> nn.Module:
    """Unit i reads value i and tells class i % 2; where `told`, its weight is zero for records that are no members."""
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(N, N), nn.Linear(N, 2)
    with torch.no_grad():
        first.weight.copy_(torch.randn((N, N), generator=generator).abs())
        first.weight.mul_(torch.rand((N, N), generator=generator) > 0.995)
        if told is not None:
            first.weight.mul_(1 - torch.eye(N)).add_(torch.diag(torch.from_numpy(told.astype(np.float32))))
        last.weight.copy_(torch.eye(2)[torch.arange(N) % 2].T)
    return nn.Sequential(first, nn.ReLU(), last).eval()


@pytest.fixture(scope="module")
def population() -> Population:
    x, y = torch.eye(N) + 0.01, torch.arange(N) % 2
    return train_shadows(net(None, 0), x, y, shadows=SHADOWS, training=Training(epochs=1))


def replaced(population: Population, told: bool) -> Population:
    inside = population.signals.inside
    modules = tuple(net(inside[at] if told else None, at) for at in range(SHADOWS))
    return Population(modules, population.signals, population.plan, population.bounds)


@pytest.mark.parametrize("sees", ["mask", "signs"])
def test_what_a_mask_was_made_to_tell_is_found(population: Population, sees: Sees) -> None:
    member = np.random.default_rng(3).permutation(N) < N // 2
    found = infer_from_structure(net(member, 99), replaced(population, told=True), sees)
    assert found.auc(member)[1] > 0.7
    nothing = infer_from_structure(net(None, 99), replaced(population, told=False), sees)
    _, low, high = nothing.auc(member)
    assert low < 0.5 < high
    assert (nothing.odds > 0).all()


def test_a_book_is_compared_with_those_of_shadows() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((64, 5)) < 0.5
    known = rng.standard_normal((64, 8)) + np.where(inside[:, :1], 2.0, 0.0)
    score = by_book(np.full(8, 2.0), known, inside)
    assert score[0] > 5
    assert np.abs(score[1:]).max() < score[0] / 2
    assert by_book(np.zeros(8), known, inside)[0] < -5
    layer = nn.Linear(10, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(100.0).view(10, 10) % 4)
    assert len(book(layer)) == 16
    assert set(np.round(book(layer)[[0, 5, 10, 15]] * 3)) == {0, 1, 2, 3}


def test_structure_is_all_that_is_left() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        module[0].weight[0, 0, 0] = 0  # type: ignore[index]  # it is a tensor
    left: Any = structure_of(module, "mask")
    assert left[0].weight[0].unique().tolist() == pytest.approx([0, 6**-0.5])
    assert left[0].bias.tolist() == [0, 0]
    assert left[1].weight.tolist() == [1, 1]
    assert structure_of(module, "signs")[3].weight.sign().equal(module[3].weight.sign())  # type: ignore[index]  # layers


def test_another_shape_is_refused(population: Population) -> None:
    with pytest.raises(InputError, match="other shapes"):
        infer_from_structure(nn.Linear(N, 2), population)
