"""The range of each layer's input, measured on calibration inputs: all of it, its bulk, or what keeps its distribution.

Every method works on exact extremes and on histograms of whole numbers, so that a range does not depend on how the
inputs were cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.data.records import Bounds
from ...targets.model import FEW, records_at_once

Calibration = Literal["min-max", "percentile", "entropy"]
Range = tuple[float, float]
Counts = np.ndarray[Any, np.dtype[np.int64]]

BINS = 2048  # of a histogram, as in TensorRT
LEVELS = 128  # of an 8-bit code on either side of zero


@torch.no_grad()
def input_ranges(
    module: nn.Module,
    layers: Sequence[nn.Module],
    x: Tensor,
    bounds: Bounds,
    calibration: Calibration = "min-max",
    percentile: float = 99.99,
) -> list[Range]:
    """The range (low, high) of what enters each layer while `module` runs on `x` float32 [n, *shape].

    min-max: the smallest and the largest value. percentile: the range of which (100 - `percentile`) / 2 % of the values
    lie below and as many above, to a bin of 1/2048 of all of it. entropy: |value| <= the threshold of
    `entropy_threshold`. The latter two clip outliers, and lie within the first.

    The range of the first layer, and of others that read the same tensor, is never clipped, and inputs all low and all
    high widen it: it covers what the bounds allow, seen through whatever the model does before it, so that an
    attacker's input is not clamped by the input quantiser.

    Args:
        layers: in the order of their first calls; each is called when `module` runs.
    """
    lows = np.full(len(layers), np.inf)
    highs = np.full(len(layers), -np.inf)

    def widen(position: int, entering: Tensor) -> None:
        least, most = torch.aminmax(entering)
        lows[position], highs[position] = min(lows[position], float(least)), max(highs[position], float(most))

    watch(module, layers, x, widen)
    first = watch_first(module, layers, x, bounds, widen)
    ranges = [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]
    if calibration == "min-max":
        return ranges

    histograms = np.zeros((len(layers), BINS), np.int64)
    spans = [(low, high) if calibration == "percentile" else (0.0, max(-low, high)) for low, high in ranges]

    def count(position: int, entering: Tensor) -> None:
        low, high = spans[position]
        values = entering.flatten() if calibration == "percentile" else entering.flatten().abs()
        places = ((values.double() - low) * (BINS / max(high - low, 1e-30))).floor().clamp(0, BINS - 1)
        histograms[position] += places.long().bincount(minlength=BINS).cpu().numpy()

    watch(module, layers, x, count)
    clipped: list[Range] = []
    for position, ((low, high), counts) in enumerate(zip(ranges, histograms, strict=True)):
        if position in first:
            clipped.append((low, high))
        elif calibration == "percentile":
            clipped.append(percentile_range(counts, low, high, percentile))
        else:
            sides = 1 if low >= 0 or high <= 0 else 2
            threshold = max(-low, high) * entropy_threshold(counts, 2 * LEVELS // sides)
            clipped.append((max(low, -threshold), min(high, threshold)))
    return clipped


def watch_first(
    module: nn.Module, layers: Sequence[nn.Module], x: Tensor, bounds: Bounds, see: Callable[[int, Tensor], None]
) -> set[int]:
    """Positions of the layers that read what the first reads; `see` is called for them on inputs all low and all high.

    Args:
        x: of which the shape and the device are taken.
    """
    inside = bounds.to(x.device)
    extremes = torch.stack([inside.low.expand(x.shape[1:]), inside.high.expand(x.shape[1:])])
    entered: list[Tensor] = []  # what the first layer reads; it stays alive, so that no other tensor takes its place
    first: set[int] = set()

    def widen_first(position: int, entering: Tensor) -> None:
        if position == 0 and not entered:
            entered.append(entering)
        if entered and entering.untyped_storage().data_ptr() == entered[0].untyped_storage().data_ptr():
            first.add(position)
            see(position, entering)

    watch(module, layers, extremes, widen_first)
    return first


def watch(module: nn.Module, layers: Sequence[nn.Module], x: Tensor, see: Callable[[int, Tensor], None]) -> None:
    """Runs `module` on `x` in batches; `see(position, input)` is called for every call of each of `layers`."""

    def hook(position: int) -> torch.utils.hooks.RemovableHandle:
        return layers[position].register_forward_pre_hook(lambda _, inputs: see(position, inputs[0].detach()))

    size = records_at_once(x, module) if len(x) > FEW else FEW
    handles = [hook(position) for position in range(len(layers))]
    try:
        with torch.no_grad():
            for batch in torch.split(x, size):
                module(batch)
    finally:
        for handle in handles:
            handle.remove()


def percentile_range(counts: Counts, low: float, high: float, percentile: float) -> Range:
    """The narrowest range of whole bins outside which at most (100 - percentile) / 2 % of the values lie on each side.

    Args:
        counts: int64 [bins], a histogram over [low, high].
        percentile: 0 < percentile <= 100; the share of the values to keep, in percent.
    """
    allowed = counts.sum() * (100 - percentile) / 200
    below = int(np.searchsorted(np.cumsum(counts), allowed, side="right"))  # bins that may go from the left
    above = int(np.searchsorted(np.cumsum(counts[::-1]), allowed, side="right"))
    width = (high - low) / len(counts)
    return low + below * width, high - above * width


def entropy_threshold(counts: Counts, levels: int) -> float:
    """The share of the histogram's span at which clipping loses the least information when the rest is rounded.

    For every threshold of at least `levels` bins: p is the histogram up to it, with everything beyond in its last bin;
    q is the same without what lies beyond, merged into `levels` equal parts and spread evenly over those bins of a part
    that are not empty. The threshold with the smallest Kullback-Leibler divergence of p and q wins (S. Migacz, "8-bit
    inference with TensorRT", GTC 2017). Zero is a grid point at any threshold, so the first bin, where the zeros of a
    ReLU lie, counts as much as the second.

    Args:
        counts: int64 [bins], a histogram of magnitudes from 0 on.
        levels: of the rounded magnitudes.

    Returns:
        In (0, 1]; 1 where no value lies beyond the first `levels` bins' span, or nothing is gained.
    """
    counts = counts.copy()
    counts[0] = counts[1]
    totals = np.cumsum(counts)
    best, threshold = np.inf, 1.0
    for size in range(levels, len(counts) + 1):
        kept = counts[:size]
        if kept[-1] == 0 and totals[-1] > totals[size - 1]:
            continue  # q would say that what p clips to its last bin cannot be: an infinite divergence
        p = kept.astype(np.float64)
        p[-1] += totals[-1] - totals[size - 1]
        part = np.arange(size) * levels // size
        filled = kept > 0
        alive = np.bincount(part, filled, levels)
        mean = np.bincount(part, kept, levels) / np.maximum(alive, 1)
        q = mean[part][filled]
        if not len(q):
            continue
        p = p[filled] / p.sum()
        divergence = float((p * np.log(p / (q / q.sum()))).sum())
        if divergence < best:
            best, threshold = divergence, size / len(counts)
    return threshold
