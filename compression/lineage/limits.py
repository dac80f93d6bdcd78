"""The intervals that values are kept within, by Relu and Clip or by codes; and what else is left out of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...targets.onnx_graph.constants import Array, Graph, attribute
from ...targets.onnx_graph.weights import CONVOLUTIONS, Stage, Weight
from .operators import groups

if TYPE_CHECKING:
    import onnx

INFINITE = (-math.inf, math.inf)


@dataclass(frozen=True)
class Limit:
    """An interval that a tensor is kept within: by a Relu or Clip, or by the codes of a quantiser.

    Attributes:
        step: of the quantiser, in real values; 0: no quantiser.
        gain: what the tensor is multiplied by behind it.
        rest: of a quantiser between a product and the end of what was compared with its weight: by what each output
            channel is multiplied and what is added behind it, and how many dimensions stand behind the channels'.
    """

    low: float
    high: float
    step: float
    node: onnx.NodeProto
    tensor: str
    gain: float = 1.0
    rest: tuple[Array, Array, int] | None = field(default=None, compare=False)

    @property
    def cuts(self) -> bool:
        return not self.step and (self.low, self.high) != INFINITE


def codes_limit(graph: Graph, node: onnx.NodeProto, scale: str, zero: str, name: str, gain: float) -> Limit:
    """The range of the codes that a node writes; none where it is not `followed`."""
    held, middle = graph.constant(scale), graph.constant(zero) if zero else None
    stored = _code_type(node) if middle is None else middle.stored
    if held is None or held.values.size != 1 or not stored.lstrip("u").startswith("int"):
        return Limit(*INFINITE, 0.0, node, name)
    step = float(held.values.ravel()[0])
    offset = 0 if middle is None else int(middle.values.ravel()[0])
    width = int(stored.lstrip("uint"))
    low, high = (0, 2**width - 1) if stored.startswith("u") else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    return Limit((low - offset) * step, (high - offset) * step, step, node, name, gain)


def of_output(graph: Graph, node: onnx.NodeProto, name: str, gain: float = 1.0) -> Iterator[Limit]:
    """The range of the codes that an operator such as QLinearAdd writes."""
    placed = groups(node)[1] if node.op_type.startswith(("QLinear", "QGemm")) else None
    if placed is not None:
        yield codes_limit(graph, node, node.input[placed[0]], (*node.input, "", "")[placed[1]], name, gain)


def inside(graph: Graph, weight: Weight, end: str, gain: float, fixed: Callable[[str], bool]) -> Iterator[Limit]:
    """The ranges of the quantisers between a product and the end of what was compared with its weight."""
    node = graph.producers.get(end)
    chain = [] if node is None else [(end, node)]
    while chain and chain[-1][1] is not weight.node:
        before = [item for item in chain[-1][1].input if not fixed(item) and item in graph.producers]
        if not before or len(chain) > 64:
            break
        chain.append((before[0], graph.producers[before[0]]))
    stages = {stage.end: stage for stage in weight.stages}
    last, spatial = stages.get(end), len(weight.constant.shape) - 2 if weight.node.op_type in CONVOLUTIONS else 0
    for place, (name, step) in enumerate(chain):
        within = [*of_output(graph, step, name, gain)]
        if step.op_type == "QuantizeLinear":
            within.append(codes_limit(graph, step, step.input[1], (*step.input, "")[2], name, gain))
        here = next((stages[item] for item, _ in chain[place:] if item in stages), None)
        for limit in within:
            if last is here or last is None or here is None:
                yield limit if last is here else replace(limit, gain=0.0)
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = _gains(last) / _gains(here)
            yield replace(limit, rest=(factor, last.shift - factor * here.shift, spatial))


def _gains(stage: Stage) -> Array:
    return np.ones(len(stage.shift)) if stage.gain is None else stage.gain


def followed(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether the range of the codes that a QuantizeLinear writes is known: one scale, whole numbers."""
    return codes_limit(graph, node, node.input[1], (*node.input, "")[2], node.output[0], 1.0).step > 0


def _code_type(node: onnx.NodeProto) -> str:
    """What a quantiser without a zero point writes."""
    from onnx import helper

    wanted = int(attribute(node, "output_dtype", 0)) if node.op_type == "QuantizeLinear" else 0
    return helper.tensor_dtype_to_np_dtype(wanted).name if wanted else "uint8"


@dataclass(frozen=True)
class Stripped:
    """A tensor's source behind what only rounds, limits, moves or scales it; the outermost of each first."""

    base: str
    limits: tuple[Limit, ...] = ()
    moves: tuple[tuple[onnx.NodeProto, str], ...] = ()
    gain: float = 1.0
    scaled: tuple[onnx.NodeProto, ...] = ()  # by what it is multiplied
    partial: tuple[tuple[float, str], ...] = ()  # by how much so far, at casts and products on the way


@dataclass(frozen=True)
class Core:
    """What makes a source: an operator, a product with the dense model's weights, a constant, or the input."""

    kind: str
    detail: tuple[Any, ...] = ()
    operands: tuple[str, ...] = ()
    node: onnx.NodeProto | None = None


def behind(outer: Stripped, inner: Stripped) -> Stripped:
    """What is stripped of a tensor that is taken from one source to that behind it."""
    limits, moves = outer.limits + inner.limits, outer.moves + inner.moves
    partial = tuple((gain * inner.gain, name) for gain, name in outer.partial) + inner.partial
    return Stripped(inner.base, limits, moves, outer.gain * inner.gain, outer.scaled + inner.scaled, partial)


def within(limits: Iterable[Limit]) -> tuple[float, float]:
    low, high = INFINITE
    for limit in limits:
        low, high = max(low, limit.low), min(high, limit.high)
    return low, high


def ranges(left: Stripped, right: Stripped, name: str) -> Iterator[tuple[Limit, str]]:
    """The quantisers of a tensor of the file, in the units of the dense model's that each rounds; and that.

    Args:
        left, right, name: the file's tensor, the dense model's, and what the latter is called.
    """
    cut = False
    for limit in left.limits:
        cut = cut or not limit.step
        factor = limit.gain / left.gain * (1.0 if cut else right.gain)
        if limit.step and factor:  # behind a Clip: what it clips
            if limit.rest is not None:  # in its own units: what is behind it is taken off the dense model's
                times, plus, spatial = limit.rest
                yield replace(limit, rest=(times * factor, plus * factor, spatial)), right.base if cut else name
                continue
            low, high, step = (factor * part for part in (limit.low, limit.high, limit.step))
            yield replace(limit, low=low, high=high, step=step), right.base if cut else name


def near(one: tuple[float, float], other: tuple[float, float], close: float) -> bool:
    return all(a == b or abs(a - b) <= close for a, b in zip(one, other, strict=True))


def interval(ends: tuple[float, float]) -> str:
    low, high = ("no end" if math.isinf(end) else f"{end:.4g}" for end in ends)
    return f"[{low}, {high}]"
