"""The ranges of a file's quantised activations beside the dense model's activations on an attacker's records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...targets.onnx_graph.observed import Array, blank, observe
from .limits import Limit

if TYPE_CHECKING:
    import onnx

CLIPPED = 0.01  # share of the typical activations beyond a range
WIDER = 4.0  # times the range of the typical activations


@dataclass(frozen=True)
class Range:
    """What the codes of one activation can hold, and what it is in the dense model.

    Attributes:
        tensor, dense_tensor: names in the two files.
        low, high: the ends that the codes reach, real values.
        dense_low, dense_high: the least and the largest that the dense model's tensor was on the records.
        clipped: 0 .. 1: the share of its values beyond the range, by more than half a step.
        wider: width of the range / width of the dense model's, zero taken in; 0 where the dense model's is a point.
    """

    tensor: str
    dense_tensor: str
    low: float
    high: float
    dense_low: float
    dense_high: float
    clipped: float
    wider: float

    @property
    def clips(self) -> bool:
        return self.clipped > CLIPPED

    @property
    def odd(self) -> bool:
        return self.clips or self.wider > WIDER


def compare_ranges(dense: onnx.ModelProto, pairs: Sequence[tuple[Limit, str]], records: Array | None) -> list[Range]:
    """Every quantiser's range beside the dense model's activations.

    Args:
        pairs: quantisers of the file, and the tensor of the dense model that each rounds.
        records: as the dense model takes them: an attacker's own; None: there are none.

    Raises:
        InputError: the dense model does not answer these.
    """
    if records is None:
        return []
    made = {name for node in dense.graph.node for name in node.output} | {item.name for item in dense.graph.input}
    wanted = [(limit, name) for limit, name in pairs if name in made and np.isfinite([limit.low, limit.high]).all()]
    names = sorted({name for _, name in wanted})
    if not names:
        return []
    seen = observe(dense, feeds(dense, records), names, keep=names)
    found, told = [], set()
    for limit, name in wanted:
        values = seen.values.get(name)
        if (limit.tensor, name) in told or values is None or not values.size:
            continue
        told.add((limit.tensor, name))
        if limit.rest is not None:
            times, plus, spatial = limit.rest
            channels = (-1, *[1] * spatial)
            if values.ndim <= spatial or values.shape[-1 - spatial] != times.size or not times.all():
                continue
            values = (values - plus.reshape(channels)) / times.reshape(channels)
        slack = limit.step / 2
        clipped = float(((values < limit.low - slack) | (values > limit.high + slack)).mean())
        low, high = float(values.min()), float(values.max())
        width = max(high, 0.0) - min(low, 0.0)
        wider = (limit.high - limit.low) / width if width > 0 else 0.0
        found.append(Range(limit.tensor, name, limit.low, limit.high, low, high, clipped, round(min(wider, 1e9), 3)))
    return found


def feeds(model: onnx.ModelProto, records: Array) -> dict[str, Array]:
    """The records as its inputs take them: as many as fit a fixed batch; states, as further inputs, stay zero."""
    feeds = blank(model, len(records), records.shape[1:])
    name = next(iter(feeds))
    wanted = feeds[name]
    feeds[name] = records[: len(wanted)].reshape(wanted.shape).astype(wanted.dtype)
    return feeds
