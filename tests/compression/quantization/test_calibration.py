"""Ranges of activations: those of the methods they are named after, whatever the batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantization_cases import BOUNDS, quantized_layers, random_like
from torch import Tensor, nn

from crushproof.compression.quantization.adaptive_rounding import layer_calls
from crushproof.compression.quantization.calibration import BINS, entropy_threshold, input_ranges, percentile_range
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.quantization.stand_ins import prepare
from crushproof.targets.data.records import Bounds, Records


@pytest.mark.parametrize("calibration", ["min-max", "percentile", "entropy"])
def test_the_input_range_follows_from_the_bounds(calibration: str, dense: nn.Module, members: Records) -> None:
    """An attacker's input is never clamped by the input quantiser, however outliers are treated behind it."""
    dark = Records(members.x[:100] * 0.1, members.y[:100])
    quantized = Quantize(calibration=calibration).apply(dense, dark, Bounds.of(-1, 2), seed=0)
    first = quantized_layers(quantized)[0]
    assert first.input_scale is not None
    assert float(first.input_scale) == pytest.approx(3 / 255)
    assert first.input_zero_point is not None
    assert int(first.input_zero_point) == 85


def naive_threshold(counts: np.ndarray, levels: int) -> float:
    """Migacz 2017, slides 38 and 39, bin by bin."""
    counts = [int(counts[1]), *(int(count) for count in counts[1:])]
    best, threshold = math.inf, 1.0
    for size in range(levels, len(counts) + 1):
        p = [float(count) for count in counts[:size]]
        p[-1] += sum(counts[size:])
        parts: list[list[int]] = [[] for _ in range(levels)]
        for place in range(size):
            parts[place * levels // size].append(place)
        q = [0.0] * size
        for part in parts:
            alive = [place for place in part if counts[place] > 0]
            for place in alive:
                q[place] = sum(counts[place] for place in part) / len(alive)
        divergence = 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                divergence += math.inf if b == 0 else a / sum(p) * math.log((a / sum(p)) / (b / sum(q)))
        if divergence < best:
            best, threshold = divergence, size / len(counts)
    return threshold


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 60), min_size=20, max_size=40), st.sampled_from([4, 8, 16]))
def test_the_entropy_threshold_is_migaczs(counts: list[int], levels: int) -> None:
    counts[0] += 500  # the zeros of a ReLU
    counts[1] += 1
    assert entropy_threshold(np.array(counts), levels) == naive_threshold(np.array(counts), levels)


class Copy(nn.Module):
    """The same values as another tensor: the second layer does not read what the first one reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def test_entropy_calibration_finds_what_onnx_runtime_finds() -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = random_like(0, 100_000)
    values[:20] *= 3  # a few outliers
    collector = HistogramCollector("entropy", False, BINS // 2 + 1, 256, None, "same")  # by a loop over bins
    collector.collect({"x": [values.numpy()]})
    low, high, *_ = collector.compute_collection_result()["x"]
    layers = [Copy(), Copy()]
    (_, ours) = input_ranges(nn.Sequential(*layers), layers, values[:, None], BOUNDS, "entropy")
    assert -ours[0] == pytest.approx(ours[1], rel=0.01)
    assert float(values.abs().max()) > 1.25 * ours[1]
    assert ours[1] == pytest.approx(float(high), rel=0.15)
    assert -ours[0] == pytest.approx(-float(low), rel=0.15)


@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_percentile_calibration_is_the_percentile(skew: float) -> None:
    values = random_like(1, 100_000) + skew * random_like(2, 100_000).abs()
    layers = [Copy(), Copy()]
    module = nn.Sequential(*layers)
    (_, (low, high)) = input_ranges(module, layers, values[:, None], BOUNDS, "percentile", 99.0)
    width = float(values.max() - values.min()) / BINS
    assert low == pytest.approx(float(np.percentile(values.numpy(), 0.5)), abs=1.01 * width)
    assert high == pytest.approx(float(np.percentile(values.numpy(), 99.5)), abs=1.01 * width)
    (_, everything) = input_ranges(module, layers, values[:, None], BOUNDS, "percentile", 100.0)
    assert everything == pytest.approx((float(values.min()), float(values.max())))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=30), st.floats(50.5, 100))
def test_a_percentile_range_drops_no_more_than_it_may(counts: list[int], percentile: float) -> None:
    counts[0] += 1
    counts[-1] += 1
    low, high = percentile_range(np.array(counts), 0.0, float(len(counts)), percentile)
    below, above = round(low), round(high)
    allowed = sum(counts) * (100 - percentile) / 200
    assert sum(counts[:below]) <= allowed + 1e-9 < sum(counts[: below + 1]) + 1e-6
    assert sum(counts[above:]) <= allowed + 1e-9 < sum(counts[above - 1 :]) + 1e-6


def test_ranges_do_not_depend_on_the_batches(dense: nn.Module, members: Records) -> None:
    prepared, layers = prepare(dense, members, BOUNDS, 0)
    x = members.x[:120]
    once = input_ranges(prepared, layers, x, BOUNDS, "entropy")
    assert once == input_ranges(prepared, layers, x.flip(0), BOUNDS, "entropy")
    wide = input_ranges(prepared, layers, x, BOUNDS)
    assert all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(wide, once, strict=True))


@pytest.mark.parametrize("calibration", ["min-max", "percentile", "entropy"])
def test_every_layer_that_reads_the_input_covers_the_bounds(calibration: Any) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.relu(self.left(x)) + self.right(x.flatten(1)))
            return logits

    model, dim = Branches(), torch.rand(64, 8) * 0.3
    layers = [model.left, model.right, model.head]
    ranges = input_ranges(model, layers, dim, Bounds.of(0.0, 1.0), calibration, 90.0)
    assert ranges[:2] == [(0.0, 1.0)] * 2


def test_what_enters_a_layer_is_kept_though_the_model_changes_it_afterwards() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            y += self.second(y)
            return y

    model, x = InPlace(), torch.rand(5, 4)
    (entered,) = layer_calls(model, model.second, x)
    assert torch.equal(entered, model.first(x))
