"""The intervals that values are kept within: by Relu and Clip, or by the codes of a quantiser."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...targets.onnx_graph.constants import Graph

if TYPE_CHECKING:
    import onnx

INFINITE = (-math.inf, math.inf)


@dataclass(frozen=True)
class Limit:
    """An interval that a tensor is kept within: by a Relu or Clip, or by the codes of a quantiser.

    Attributes:
        step: of the quantiser, in real values; 0: no quantiser.
        gain: what the tensor is multiplied by behind it.
    """

    low: float
    high: float
    step: float
    node: onnx.NodeProto
    tensor: str
    gain: float = 1.0

    @property
    def cuts(self) -> bool:
        return not self.step and (self.low, self.high) != INFINITE


def codes_limit(graph: Graph, node: onnx.NodeProto, scale: str, zero: str, name: str, gain: float) -> Limit:
    held, middle = graph.constant(scale), graph.constant(zero) if zero else None
    stored = "uint8" if middle is None else middle.stored
    if held is None or held.values.size != 1 or not stored.lstrip("u").startswith("int"):
        return Limit(*INFINITE, 0.0, node, name)
    step = float(held.values.ravel()[0])
    offset = 0 if middle is None else int(middle.values.ravel()[0])
    width = int(stored.lstrip("uint"))
    low, high = (0, 2**width - 1) if stored.startswith("u") else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    return Limit((low - offset) * step, (high - offset) * step, step, node, name, gain)


def within(limits: Iterable[Limit]) -> tuple[float, float]:
    low, high = INFINITE
    for limit in limits:
        low, high = max(low, limit.low), min(high, limit.high)
    return low, high


def near(one: tuple[float, float], other: tuple[float, float], close: float) -> bool:
    return all(a == b or abs(a - b) <= close for a, b in zip(one, other, strict=True))


def interval(ends: tuple[float, float]) -> str:
    low, high = ("no end" if math.isinf(end) else f"{end:.4g}" for end in ends)
    return f"[{low}, {high}]"
