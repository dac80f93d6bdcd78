"""How far adversarial inputs are from their records, how alike they look, and who fell first: oracles and plants."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import RADII, case_of
from scipy import ndimage
from torch import nn

from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.evasion.likeness import distances as measured
from crushproof.attacks.evasion.likeness.described import first_wrong, fragile, quantities, smallest
from crushproof.attacks.evasion.likeness.distances import consistent, distances, layout
from crushproof.attacks.evasion.likeness.similarity import similarity
from crushproof.attacks.measurement import Fragile
from crushproof.audit.findings.estimates import quantity
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds
from crushproof.targets.form import MisfitError, check_arrays

STREAM = np.random.default_rng(0)


def published(x: np.ndarray, y: np.ndarray, radius: int) -> float:
    """scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1)` of one channel, written with scipy's filter as it is written there; its radius is 5.
    """

    def blurred(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, radius=radius)

    ux, uy = blurred(x), blurred(y)
    vx, vy, vxy = blurred(x * x) - ux * ux, blurred(y * y) - uy * uy, blurred(x * y) - ux * uy
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return float(found[radius:-radius, radius:-radius].mean())


@pytest.mark.parametrize(("shape", "radius"), [((3, 16, 21), 5), ((1, 28, 28), 5), ((1, 8, 8), 3), ((2, 10, 40), 4)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_similarity_is_the_published_one(shape: tuple[int, int, int], radius: int, noise: float) -> None:
    x = ndimage.gaussian_filter(STREAM.random((5, *shape)), (0, 0, 1, 1))
    y = np.clip(x + noise * STREAM.normal(size=x.shape), 0, 1)
    one_by_one = [
        np.mean([published(*pair, radius) for pair in zip(a, b, strict=True)]) for a, b in zip(x, y, strict=True)
    ]
    assert similarity(x, y) == pytest.approx(one_by_one, abs=1e-9)
    assert similarity(x, x) == pytest.approx(1)


def test_similarity_of_flat_images_is_that_of_their_brightness() -> None:
    one, other = np.full((1, 1, 12, 12), 0.2), np.full((1, 1, 12, 12), 0.6)
    assert similarity(one, other) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


@pytest.mark.parametrize("shape", [(3, 9, 8), (3, 7, 30), (2, 40), (6,)], ids=str)
def test_distances_count_in_units_of_the_range_and_change_with_no_batch(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = (shape[0], *[1] * (len(shape) - 1))
    low = torch.full(channel, -3.0)
    scale = torch.arange(1.0, shape[0] + 1).view(channel)  # another range in each channel
    pixels = torch.rand((7, *shape), generator=torch.Generator().manual_seed(0))
    moved = pixels.clone()
    moved[0].view(-1)[:2] = pixels[0].view(-1)[:2] + torch.tensor([0.3, -0.4])
    moved[1:] += 0.01
    found = distances(pixels * scale + low, moved * scale + low, Bounds(low, low + scale))
    assert found["change/values"][0] == 2
    assert found["change/linf"] == pytest.approx([0.4, *[0.01] * 6], abs=1e-5)
    assert found["change/l2"] == pytest.approx([0.5, *[0.01 * pixels[0].numel() ** 0.5] * 6], abs=1e-4)
    assert ("change/similarity" in found) == (shape == (3, 9, 8)), "of images only"
    check_arrays(found, layout(7, shape))
    monkeypatch.setattr(measured, "AT_ONCE", 1)
    again = distances(pixels * scale + low, moved * scale + low, Bounds(low, low + scale))
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert consistent(found)
    assert not consistent({**found, "change/linf": 0 * found["change/linf"]})
    assert not consistent({**found, "change/values": 0 * found["change/values"]})
    with pytest.raises(MisfitError):
        check_arrays(found, layout(6, shape))


def test_of_token_ids_only_their_number_is_told() -> None:
    x = torch.randint(0, 30, (4, 12)).float()
    other = x.clone()
    other[2, 3:5] = 31
    found = distances(x, other, Bounds.of(0, 31), tokens=True)
    assert {name: own.tolist() for name, own in found.items()} == {"change/values": [0, 0, 2, 0]}


def test_only_inputs_that_had_to_be_changed_are_described() -> None:
    arrays = {"change/l2": np.array([9.0, 1, 2, 6, 0]), "change/similarity": np.array([0.0, 0.9, 0.8, 0.4, 1])}
    fooled = np.array([False, True, True, True, False])  # the first was wrong as it was, the last withstood
    told = [(one.name, one.statistic, one.value, one.n) for one in quantities(arrays, fooled)]
    assert told[:2] == [("L2 change", "median", 2.0, 3), ("L2 change", "largest", 6.0, 3)]
    assert told[2:] == [("SSIM", "mean", pytest.approx(0.7), 3), ("SSIM", "lowest", 0.4, 3)]
    assert quantities(arrays, np.zeros(5, dtype=bool)) == ()


def test_the_smallest_that_fools_and_who_fell_first() -> None:
    outcomes = [[True] * 9 + [False], [True] * 9 + [False], [True, True] + [False] * 8, [True] + [False] * 9]
    robust = [np.array(one) for one in outcomes]
    first = first_wrong(robust)
    assert first.tolist() == [4, 3, 2, 2, 2, 2, 2, 2, 2, 0]
    settings, ids = (0.0, 0.1, 0.2, 0.3), np.arange(20, 30)
    ways = [np.zeros(10, dtype=np.int64), *[np.array([0, 0, 1, 1, 1, 3, 1, 2, 1, 3])] * 3]
    assert fragile(settings, first, ids, ways) == Fragile(0.2, 7, (25, 27, 22, 23, 24, 26, 28))
    assert fragile(settings, np.array([0, 4, 4]), ids[:3], ways) is None, "nobody fell"
    many = fragile(settings, np.full(40, 1), np.arange(40), [np.ones(40, dtype=np.int64)] * 4)
    assert many is not None
    assert (many.count, many.ids) == (40, tuple(range(10)))
    row = quantity(smallest("smallest epsilon that fools", settings, first), seed=0)
    assert (row.value, row.above, row.n) == (0.2, 0.3, 10)
    assert row.low == 0.1, "a step below, since nothing was tried in between"
    beyond = quantity(smallest("smallest epsilon that fools", settings, np.full(10, 4)), seed=0)
    assert (beyond.value, beyond.low, beyond.high, beyond.above) == (None, 0.3, None, 0.3)


def test_evidence_holds_its_distances_and_is_held_to_them(digits: Data, dense: nn.Module) -> None:
    attack, case = Evasion(epsilons=RADII, records=30, parts=(Pgd(steps=5),)), case_of(digits, dense)
    evidence = attack.run(case, seed=0)
    arrays, x = evidence.arrays, digits.evaluation.x[:30]
    moved = torch.from_numpy(arrays["adversarial"]) - x
    assert arrays["change/linf"] == pytest.approx(moved.abs().amax((1, 2, 3)).numpy(), abs=1e-6)
    assert arrays["change/linf"].max() <= 0.1 + 1e-6
    assert len(arrays["change/similarity"]) == 30
    assert attack.asked_again(evidence, case) == []
    for name in ("change/l2", "change/similarity"):
        forged: Any = copy.deepcopy(evidence)
        forged.arrays[name][3] /= 2
        assert attack.asked_again(forged, case) == [f"{name} is not that of the stored adversarial inputs"]
