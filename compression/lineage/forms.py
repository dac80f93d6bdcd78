"""One graph in a form in which two that compute the same look the same: operators between what only rounds or moves.

Left out are quantisers, casts between floats, and what stands between a product and the end of what follows it and was
compared with the weights. Moves (transposes, slices, reshapes ...) become one map of places; Relu and Clip become an
interval, and so does a quantiser, since a quantiser may take a Relu's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from ...targets.onnx_graph.constants import FRACTION_BITS, Constant, Graph, attribute, coded
from ...targets.onnx_graph.live import reached
from ...targets.onnx_graph.observed import Observed
from ...targets.onnx_graph.weights import RECURRENT, Weight
from .limits import Core, Limit, Stripped, codes_limit, inside, of_output
from .operators import (
    COMMUTATIVE,
    ELEMENTWISE,
    MOVES,
    ON_CODES,
    SAME_ORDER,
    SIZES,
    attributes,
    captured,
    counting,
    groups,
    plain_name,
    products,
    trimmed,
)

if TYPE_CHECKING:
    import onnx


@dataclass
class Form:
    """A graph's tensors by need.

    Args:
        held: the weights by the tensor at which what was compared of them ends; all of one node together.
        classes: of each of `weights`: which weight of the dense model it is.
        changing: tensors of other shapes or values when it answers one record more.
        parts: which third of it, where it is query, key or value of an attention that the dense model packs.
        seen: shapes, types and small values when the model answers blank records.
        with_sizes: False: the other graph's layers may be smaller, so sizes are left out of what is compared.
    """

    graph: Graph
    weights: Sequence[Weight]
    ends: Mapping[str, tuple[int, ...]]
    classes: Mapping[int, str]
    seen: Observed
    inputs: tuple[str, ...]
    changing: frozenset[str] = frozenset()
    parts: Mapping[int, int] = field(default_factory=dict)
    with_sizes: bool = True
    _stripped: dict[str, Stripped] = field(default_factory=dict)
    _cores: dict[str, Core] = field(default_factory=dict)
    _skeletons: dict[str, str] = field(default_factory=dict)
    _constants: dict[str, Constant | None] = field(default_factory=dict)

    @cached_property
    def shaped(self) -> set[str]:
        """Tensors that follow from the shapes of others and from constants."""
        found: set[str] = set()
        for node in self.graph.nodes:
            derived = any(name in found for name in node.input) and not any(
                item.HasField("g") for item in node.attribute
            )
            known = all(not name or name in found or name not in self.graph.varying for name in node.input)
            if node.op_type in ("Shape", "Size") or (derived and known):
                found.update(node.output)
        return found

    @cached_property
    def coded(self) -> set[str]:
        """Tensors of codes that stand for real values."""
        found: set[str] = set()
        for node in self.graph.nodes:
            writes = node.op_type.startswith(("QLinear", "QGemm")) and groups(node)[1] is not None
            if writes or node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
                found.add(node.output[0])
            elif node.op_type in ON_CODES and node.input and node.input[0] in found:
                found.update(node.output)
        return found

    def step(self, name: str) -> float:
        """The largest step of the codes that a tensor's values were moved from; 0: it holds no codes."""
        largest = 0.0
        for item in reached([name], self._moved_from):
            codes = (found := self.graph.constant(item)) and found.codes
            node = self.graph.producers.get(item)
            scale = codes.scale if codes else None
            if node is not None and node.op_type == "DequantizeLinear" and (by := self.graph.constant(node.input[1])):
                scale = by.values
            largest = max(largest, 0.0 if scale is None else float(np.abs(scale).max(initial=0.0)))
        return largest

    def _moved_from(self, name: str) -> list[str]:
        node = self.graph.producers.get(name)
        if node is None or self.graph.constant(name) is not None:
            return []
        if node.op_type == "Concat":
            return list(node.input)
        same = node.op_type in ("Identity", "QuantizeLinear", "DequantizeLinear")
        return [node.input[0]] if same or node.op_type in SAME_ORDER | MOVES else []

    def constant(self, name: str) -> Constant | None:
        """A tensor that does not depend on the input's values; on the sizes of a record it may."""
        if name not in self._constants:
            self._constants[name] = self.value(name) if self.fixed(name) else None
        return self._constants[name]

    def value(self, name: str) -> Constant | None:
        """As `constant`, of a tensor that may count the records too: with as many as were looked at."""
        found = self.graph.constant(name) if self.sized(name) else None
        if found is None and name in self.seen.values and self.sized(name):
            value = self.seen.values[name]
            found = Constant(name, value.dtype.name, value)
        return found

    @cached_property
    def weighted(self) -> set[str]:
        """Tensors that a weight goes into: a table that is looked up by position depends on no input, and is one."""

        def onward(name: str) -> list[str]:
            users = self.graph.consumers.get(name, ())
            return [to for node in users if node.op_type not in ("Shape", "Size") for to in node.output]

        return set(reached(self.ends, onward))

    @cached_property
    def counting(self) -> tuple[frozenset[str], frozenset[str]]:
        return counting(self.graph, self.shaped, self.changing, self.seen.types)

    def fixed(self, name: str) -> bool:
        """Whether a tensor has the same values whatever the input is, and however many records."""
        if name in self.weighted or name not in self.graph.varying:
            return name not in self.weighted
        return name in self.shaped and name in self.seen.values and name not in self.counting[0]

    def sized(self, name: str) -> bool:
        """Whether a tensor depends on the input by its shape at most: what a reshape goes by."""
        return (name not in self.graph.varying or name in self.shaped) and name not in self.weighted

    def strip(self, name: str) -> Stripped:
        if name not in self._stripped:
            self._stripped[name] = self._strip(name)
        return self._stripped[name]

    def _strip(self, name: str) -> Stripped:
        limits: list[Limit] = []
        moves: list[tuple[onnx.NodeProto, str]] = []
        gain = 1.0
        scaled: list[onnx.NodeProto] = []
        partial: list[tuple[float, str]] = []
        while name not in self.ends and not self.fixed(name):
            node = self.graph.producers.get(name)
            if node is None:
                break
            kind, first = node.op_type, node.input[0] if node.input else ""
            if kind in ("Identity", "Dropout", "DequantizeLinear", "DynamicQuantizeLinear") or self._is_wide_cast(node):
                if list(node.output).index(name):
                    break  # a dropout's mask, a scale
                if kind == "Dropout" and (*node.input, "", "")[2]:
                    training = self.graph.constant(node.input[2])
                    if training is None or training.values.any():
                        break  # it drops at random
                if kind == "Cast":
                    partial.append((gain, name))
            elif kind == "QuantizeLinear":
                limits.append(codes_limit(self.graph, node, node.input[1], (*node.input, "")[2], name, gain))
            elif kind in SAME_ORDER or (kind in MOVES and all(map(self._places(kind), filter(None, node.input[1:])))):
                wild = kind != "Expand" and not self.counting[1].isdisjoint(node.input[1:])
                if wild or self.fixed(first) or first not in self.seen.shapes or name not in self.seen.shapes:
                    break
                moves.append((node, name))
            elif kind in ("Mul", "Div", "QLinearMul") and all(not limit.cuts for limit in limits):
                found = self._factor(node)
                if found is None:
                    break
                limits += of_output(self.graph, node, name, gain)
                partial.append((gain, name))
                gain, first = gain * found[0], found[1]
                scaled.append(node)
            elif kind in ("Relu", "Clip") and first not in self.coded:
                bounds = self._bounds(node)
                if bounds is None or gain != 1:
                    break
                limits.append(Limit(*bounds, 0.0, node, name))
            else:
                break
            name = first
        node = self.graph.producers.get(name)
        if name in self.ends:
            limits += inside(self.graph, self.weights[self.ends[name][0]], name, gain, self.fixed)
        elif node is not None:
            limits += of_output(self.graph, node, name, gain)
        within = tuple((gain / outside if outside else math.inf, one) for outside, one in partial)
        return Stripped(name, tuple(limits), tuple(moves), gain, tuple(scaled), within)

    def _places(self, kind: str) -> Callable[[str], bool]:
        """What a move's other operands have to be: a repetition may go by the number of records."""
        return self.sized if kind in ("Expand", "Tile") else self.fixed

    def _factor(self, node: onnx.NodeProto) -> tuple[float, str] | None:
        """(the positive number that a node multiplies by, what it multiplies); None: it does something else."""
        places = (0, 3) if node.op_type == "QLinearMul" else (0, 1)
        for held, other in (places, places[::-1]):
            if node.op_type == "Div" and not held:
                continue
            name = node.input[held]
            constant = self.real(name, node) if self.fixed(name) and not self.fixed(node.input[other]) else None
            if constant is not None and constant.values.size == 1:
                value = float(constant.values.ravel()[0])
                if math.isfinite(value) and value > 0:
                    return (1 / value if node.op_type == "Div" else value), node.input[other]
        return None

    def _is_wide_cast(self, node: onnx.NodeProto) -> bool:
        """Whether nothing but the last digits of floats, or none of whole numbers, can be lost in a cast."""
        if node.op_type != "Cast":
            return False
        before, after = (self.seen.types.get(name, "") for name in (node.input[0], node.output[0]))
        users = self.graph.consumers.get(node.output[0], ())
        if node.input[0] in self.inputs and after in ("int32", "int64"):  # token ids that come as floats
            return all(user.op_type == "Gather" and user.input[1] == node.output[0] for user in users)
        floats = before in FRACTION_BITS and after in FRACTION_BITS
        return floats or (before.startswith("int") and after in ("int32", "int64"))

    def _bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        if node.op_type == "Relu":
            return 0.0, math.inf
        found = []
        for place, word, default in ((1, "min", -math.inf), (2, "max", math.inf)):
            name = node.input[place] if place < len(node.input) else ""
            constant = self.constant(name) if name else None
            if name and (constant is None or constant.values.size != 1):
                return None
            found.append(float(constant.values.ravel()[0] if constant else attribute(node, word, default)))
        return (found[0], found[1]) if found[0] <= found[1] else None

    def core(self, base: str) -> Core:
        if base not in self._cores:
            self._cores[base] = self._core(base)
        return self._cores[base]

    def _core(self, base: str) -> Core:
        if base in self.ends:
            return self._product(base)
        if self.fixed(base):
            return Core("constant", (), (), self.graph.producers.get(base))
        node = self.graph.producers.get(base)
        if node is None:
            return Core("input", (self.inputs.index(base) if base in self.inputs else base,))
        kind, operands = plain_name(node), tuple(node.input)
        if node.op_type.startswith("QLinear"):
            operands = tuple(node.input[places[0]] for places in groups(node)[0])
        elif node.input and node.input[0] in self.coded and node.op_type not in ON_CODES:
            kind = f"{kind} of codes"
        outer = [name for item in node.attribute for g in (item.g, *item.graphs) for name in captured(g)]
        varying = [self.seen.shapes.get(name, ()) for name in operands if name and not self.fixed(name)]
        shapes: tuple[Any, ...] = ()
        if not self.with_sizes:
            pass
        elif kind not in ELEMENTWISE:
            shapes = tuple(varying)
        elif len(varying) > 1:
            shapes = tuple(sorted(trimmed(shape) for shape in varying))
        if kind.startswith("Reduce"):
            operands = operands[:1]
        detail = (attributes(node, self.graph, self.seen.shapes), list(node.output).index(base), shapes)
        return Core(kind, detail, (*operands, *outer), node)

    def _product(self, end: str) -> Core:
        """The product with one weight or, of a recurrence, with all of its node."""
        found = self.ends[end]
        node = self.weights[found[0]].node
        kind, operands = products(node, self.graph)
        place = list(node.output).index(end) if end in node.output and node.op_type in RECURRENT else 0
        told = attributes(node, self.graph, self.seen.shapes, weighted=True)
        if not self.with_sizes:
            told = tuple(item for item in told if item[0] not in SIZES)
        return Core(kind, (tuple(self.classes[index] for index in found), told, place), operands, node)

    def skeleton(self, name: str) -> str:
        """Equal for tensors made by the same operators from the same weights; values of constants are not in it."""
        base = self.strip(name).base
        for _ in range(2):
            if base in self._skeletons:
                return self._skeletons[base]
            waiting = [base]
            while waiting:
                at = waiting[-1]
                operands = [self.strip(one).base if one else "" for one in self.core(at).operands]
                missing = [one for one in operands if one and one not in self._skeletons and one not in waiting]
                if missing:
                    waiting += missing
                    continue
                core = self.core(at)
                inner = [self._skeletons.get(one, "") for one in operands]
                inner = sorted(inner) if core.kind in COMMUTATIVE else inner
                self._skeletons[at] = sha256(repr((core.kind, core.detail, inner)).encode()).hexdigest()
                waiting.pop()
        return self._skeletons[base]

    def real(self, name: str, node: onnx.NodeProto | None) -> Constant | None:
        """A constant operand; of QLinearAdd and its kin, with the scale behind it."""
        found = self.constant(name)
        if found is None or node is None or not node.op_type.startswith("QLinear") or found.plain is None:
            return found
        for group in groups(node)[0]:
            if node.input[group[0]] == name and len(group) > 1:
                scale, zero = (self.constant(node.input[place]) for place in group[1:])
                if scale is not None and scale.values.size == 1:
                    codes = coded(found.plain, scale.values, None if zero is None else zero.values, 0)
                    return Constant(found.name, found.stored, None, codes)
        return found

    def part(self, base: str) -> int | None:
        """Which third of the dense model's weight a product has: query, key or value."""
        return self.parts.get(self.ends[base][0]) if base in self.ends else None

    def before(self, base: str) -> list[str]:
        """The sources that a source is made of."""
        return [self.strip(name).base for name in self.core(base).operands if name]
