"""Pictures of records: which, how large the difference is drawn, and that only images have any."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from crushproof.attacks.evasion.likeness.distances import distances
from crushproof.attacks.evasion.likeness.pictures import SIDE, pictures_of
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records


def evidence(shape: tuple[int, ...], change: float) -> tuple[dict[str, np.ndarray[Any, Any]], Data]:
    """Four records of which the evidence has three, each value of one row's first channel changed by so much."""
    x = 255 * torch.full((4, *shape), 0.5)
    bounds = Bounds.of(0, 255)
    adversarial = x[1:].clone()
    adversarial[:, 0, ..., 0] += 255 * change
    arrays = {"ids": np.array([1, 2, 3]), "clean_correct": np.array([True, False, True])}
    arrays |= {"adversarial": adversarial.numpy(), **distances(x[1:], adversarial, bounds)}
    records = Records(x, torch.tensor([0, 1, 0, 1]))
    return arrays, cast(Data, SimpleNamespace(non_members=records, bounds=bounds, class_names=("cat", "dog")))


def test_the_difference_is_drawn_around_grey_and_its_scale_is_said() -> None:
    arrays, data = evidence((3, 8, 10), 0.1)
    (first, second) = pictures_of(arrays, np.ones(3, dtype=bool), [3, 2, 1, 9], data)
    assert [(one.record, one.label) for one in (first, second)] == [(3, "dog"), (1, "dog")], "2 was wrong as it is"
    assert first.clean.shape == first.changed.shape == first.difference.shape == (8, 10, 3)
    assert (first.magnified, first.linf) == (5, pytest.approx(0.1, abs=1e-6))
    assert first.difference[:, 0, 0].tolist() == [255] * 8, "a fifth of the range brighter, five times"
    assert (first.difference[:, 1:] == 128).all()
    assert (first.clean == 128).all()
    assert pictures_of(arrays, np.zeros(3, dtype=bool), [1, 3], data) == ()


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 4, 4), (3, 8)])
def test_what_is_no_image_has_no_picture(shape: tuple[int, ...]) -> None:
    arrays, data = evidence(shape, 0.1)
    assert pictures_of(arrays, np.ones(3, dtype=bool), [1], data) == ()


def test_a_large_image_is_shown_small() -> None:
    arrays, data = evidence((1, 300, 290), 0.01)
    (one,) = pictures_of(arrays, np.array([True, False, False]), [1, 2], data)
    assert max(one.clean.shape) <= SIDE
    assert one.magnified == 100, "by the means of tiles"
