"""The range of each layer's input, differentially private: from noised histograms of what single records reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Bounds
from ...targets.seeds import generator
from ...training.privacy import Noised
from ...training.private_steps import noisy_mean, poisson_sample
from .calibration import Range, input_ranges, watch, watch_first

LEAST, RATIO, EDGES = 2.0**-8, math.sqrt(2), 34  # upper edges of the bins: 2^-8 .. 2^8.5 by half powers of two
BEYOND = 0.02  # of the records may reach beyond a range
SURE = 4.0  # standard deviations by which records must stand out of the noise


def private_ranges(
    module: nn.Module,
    layers: Sequence[nn.Module],
    records: Tensor,
    noise: Tensor,
    bounds: Bounds,
    cost: Noised,
    seed: int,
) -> list[Range]:
    """The range (low, high) of what enters each layer, by one Gaussian release.

    Each record of a Poisson sample counts once per end of a layer's range, in the bin of the furthest value that it
    reaches: a vector of L2 norm sqrt(2 * layers) at most. All counts are released under Gaussian noise; a range ends
    one bin above the first, from the top down, by which more than `BEYOND` of the records expected, and more than the
    noise explains, have been counted. Where no bin stands out, the range is that of `noise`, which no record decided;
    so is that of the first layer and of others that read the same tensor, widened to what the bounds allow.

    Args:
        layers: in the order of their first calls; each is called when `module` runs.
        records: float32 [n, *shape], to be sampled from.
        noise: float32 [m, *shape], on the module's device.
        cost: of the one step; its noise is in units of that norm.
    """
    ranges = input_ranges(module, layers, noise, bounds)
    first = watch_first(module, layers, noise, bounds, lambda position, entering: None)
    places = {position: at for at, position in enumerate(at for at in range(len(layers)) if at not in first)}
    if not places:
        return ranges
    drawn = poisson_sample(len(records), cost.sampling_rate, generator(seed, "poisson sampling"))
    sample = records[drawn.to(records.device)]
    ends = [[[0.0, 0.0] for _ in places] for _ in range(len(sample))]
    for row, record in zip(ends, sample.split(1), strict=True):  # a layer's input need not keep records apart

        def reach(position: int, entering: Tensor, row: list[list[float]] = row) -> None:
            if position in places:
                least, most = torch.aminmax(entering.nan_to_num())
                before = row[places[position]]
                row[places[position]] = [max(before[0], -float(least)), max(before[1], float(most))]

        watch(module, layers, record.to(noise.device), reach)
    furthest = torch.tensor(ends, dtype=torch.float64).view(-1, len(places), 2)
    bins = (torch.log(furthest.clamp_min(LEAST) / LEAST) / math.log(RATIO)).ceil().long().clamp(0, EDGES - 1)
    counts = F.one_hot(bins, EDGES).sum(0).double()
    deviation = cost.noise_multiplier * math.sqrt(2 * len(places))
    noised = noisy_mean(counts, 1.0, deviation, generator(seed, "noised ranges"))
    expected = cost.sampling_rate * len(records)
    for position, at in places.items():
        low, high = (_end(noised[at, side], expected, deviation) for side in (0, 1))
        before = ranges[position]
        ranges[position] = before[0] if low is None else 0.0 - low, before[1] if high is None else high
    return ranges


def _end(counts: Tensor, expected: float, deviation: float) -> float | None:
    """How far a range goes to one side, >= 0, from noised counts float64 [EDGES]; None: they do not say."""
    above = counts.flip(0).cumsum(0)
    needed = torch.maximum(
        torch.tensor(BEYOND * expected, dtype=torch.float64),
        SURE * deviation * torch.arange(1, EDGES + 1, dtype=torch.float64).sqrt(),
    )
    found = (above > needed).nonzero()
    if not len(found):
        return None
    place = EDGES - 1 - int(found[0])
    return 0.0 if place == 0 else LEAST * RATIO ** (place + 1)
