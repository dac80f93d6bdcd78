"""Codes and scales of weights against their definitions, written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crushproof.compression.quantization.weight_codes import WeightFormat, half_bits, spread_scale, weight_codes

SCALED = [
    *(WeightFormat("integer", bits) for bits in (8, 4, 3, 2)),
    *(WeightFormat("fixed-point", bits) for bits in (8, 4, 3, 2)),
    WeightFormat("binary"),
    WeightFormat("ternary"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units(weight: Tensor, granularity: str, size: int = 4) -> list[np.ndarray]:
    """The weights of each unit that shares a scale, in float64."""
    rows = weight.double().flatten(1).numpy()
    if granularity == "tensor":
        return [rows.reshape(-1)]
    if granularity == "channel":
        return [*rows]
    return [row[first : first + size] for row in rows for first in range(0, len(row), size)]


@settings(max_examples=80, deadline=None)
@given(
    format=st.sampled_from(SCALED),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    sparsity=st.sampled_from([0.0, 0.9]),
)
def test_codes_stay_in_range_and_are_neighbours_of_the_weight(
    format: WeightFormat, granularity: Any, rounding: Any, seed: int, size: float, sparsity: float
) -> None:
    format = WeightFormat(format.number, format.bits, granularity, group_size=4)
    weight = torch.randn(5, 3, 3, generator=seeded(seed)) * size  # 9 weights a channel: groups of 4, 4 and 1
    weight *= torch.rand(weight.shape, generator=seeded(seed + 1)) >= sparsity
    codes, scale = weight_codes(weight, format, rounding, seeded(seed))
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert tuple(scale.shape) == {"tensor": (1,), "channel": (5,), "group": (5, 3)}[granularity]
    assert bool((scale > 0).all())
    assert int(codes.abs().max()) <= format.top
    if format.number == "binary":
        assert set(codes.unique().tolist()) <= {-1, 1}
    else:
        assert bool((codes[weight == 0] == 0).all())  # what was pruned stays pruned
    if format.number in ("integer", "fixed-point"):
        steps = (weight / spread_scale(scale, tuple(weight.shape), 4)).clamp(-format.top, format.top)
        limit = 0.5 if rounding == "nearest" else 1.0
        assert float((codes - steps).abs().max()) <= limit + 1e-4
    if format.number == "fixed-point":
        assert bool((torch.frexp(scale).mantissa == 0.5).all())  # a power of two


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_the_clipped_range_is_the_best_of_the_grid(bits: Any, granularity: Any) -> None:
    weight = torch.randn(6, 10, generator=seeded())
    format = WeightFormat("integer", bits, granularity, group_size=4)
    codes, scale = weight_codes(weight, format)
    ours = codes.double() * spread_scale(scale, (6, 10), 4).double()
    for unit, written in zip(units(weight, granularity), units(ours, granularity), strict=True):
        scales = np.abs(unit).max() * np.arange(0.2, 1.001, 0.02) / format.top
        rounded = np.clip(np.rint(unit / scales[:, None]), -format.top, format.top) * scales[:, None]
        np.testing.assert_allclose(((written - unit) ** 2).sum(), ((rounded - unit) ** 2).sum(1).min(), 1e-4, 1e-9)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_eight_bits_cover_the_largest_magnitude(granularity: Any) -> None:
    weight = torch.randn(6, 10, generator=seeded())
    _, scale = weight_codes(weight, WeightFormat("integer", 8, granularity, group_size=4))
    largest = [np.abs(unit).max() / 127 for unit in units(weight, granularity)]
    np.testing.assert_allclose(scale.flatten(), largest, rtol=1e-6)
    _, scale = weight_codes(weight, WeightFormat("fixed-point", 8, granularity, group_size=4))
    np.testing.assert_array_equal(scale.flatten(), [2.0 ** np.ceil(np.log2(top)) for top in largest])


def test_fixed_point_below_8_bits_may_clip_where_that_errs_less() -> None:
    weight = torch.randn(6, 200, generator=seeded())
    codes, scale = weight_codes(weight, WeightFormat("fixed-point", 3))
    rows, top = weight.double().numpy(), 3
    for row, code, step in zip(rows, codes.double().numpy(), scale.double().numpy(), strict=True):
        error = ((code * step - row) ** 2).sum()
        for exponent in range(-8, 3):
            other = np.clip(np.rint(row / 2.0**exponent), -top, top) * 2.0**exponent
            assert error <= ((other - row) ** 2).sum() * (1 + 1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_binary_and_ternary_are_those_of_the_papers(granularity: Any) -> None:
    weight = torch.randn(6, 10, generator=seeded())  # groups of 4, 4 and 2: the short one has its own mean
    for number in ("binary", "ternary"):
        format = WeightFormat(number, granularity=granularity, group_size=4)  # type: ignore[arg-type]  # a loop's str
        codes, scale = weight_codes(weight, format)
        written = codes.double() * spread_scale(scale, (6, 10), 4).double()
        for unit, ours in zip(units(weight, granularity), units(written, granularity), strict=True):
            if number == "binary":  # Rastegari et al. 2016, equation 6
                expected = np.sign(unit) * np.abs(unit).mean()
            else:  # Li & Liu 2016, equations 5 and 6
                above = np.abs(unit) > 0.7 * np.abs(unit).mean()
                expected = np.sign(unit) * above * np.abs(unit)[above].mean()
            np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_stochastic_rounding_is_right_on_average_and_follows_its_generator(granularity: Any) -> None:
    format = WeightFormat(granularity=granularity, group_size=500)
    weight = torch.rand(2, 1000, generator=seeded()) * 0.6 + 0.2
    codes, scale = weight_codes(weight, format)
    draws = torch.stack([weight_codes(weight, format, "stochastic", seeded(seed))[0] for seed in range(200)]).double()
    steps = (weight / spread_scale(scale, (2, 1000), 500)).double()
    assert torch.equal(draws[3], weight_codes(weight, format, "stochastic", seeded(3))[0].double())
    assert len(draws.unique(dim=0)) == 200
    # A fraction f has variance f (1 - f) per draw; over 2000 weights the largest z stays below 5.
    z = (draws.mean(0) - steps) / ((steps % 1) * (1 - steps % 1) / 200).sqrt().clamp_min(1e-2)
    assert float(z.abs().max()) < 5
    assert torch.equal(codes.double(), steps.round())


def test_channels_of_zeros() -> None:
    weight = torch.randn(3, 8, generator=seeded())
    weight[1] = 0
    for format in SCALED:
        codes, scale = weight_codes(weight, format)
        assert float((codes[1] * scale[1]).abs().max()) <= float(scale.max()) * 1e-6
        codes, scale = weight_codes(torch.zeros(3, 8), format)
        assert float((codes * scale[:, None]).abs().max()) < 1e-5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_half_bits_are_those_of_the_nearest_value(values: list[float]) -> None:
    weight = torch.tensor([values])
    saturated = np.clip(weight.numpy(), -65504, 65504).astype(np.float16) + np.float16(0)  # -0 + 0 is 0
    assert np.array_equal(half_bits(weight, "float16").numpy().view(np.uint16), saturated.view(np.uint16))
    largest = np.uint32(0x7F7F0000).view(np.float32)  # bfloat16 is the upper half of a float32, rounded half to even
    bits = np.clip(weight.numpy(), -largest, largest).view(np.uint32).astype(np.uint64)
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    upper[upper == 0x8000] = 0
    assert np.array_equal(half_bits(weight, "bfloat16").numpy().view(np.uint16), upper)
