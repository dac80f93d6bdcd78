"""Reads an ONNX graph into the steps of a twin."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import NotApplicable, UnsafeInput
from ..untrusted.model_file import Port
from .attributes import attributes_of, inferred_rank, safe_name, structural_inputs
from .dynamic import find_records
from .module import Source, Step, Twin, takes_any_batch
from .nodes import BOOL, CAP, FLOATS, INTEGERS, OPERATORS, UINT8, Function, Node, Operator, constant, integers
from .operators import elementwise, fused, normalisations, qonnx, quantized, recurrent, shapes  # they register theirs
from .operators.elementwise import COMPARISONS
from .operators.layers import LAYERS
from .operators.quantized import code_type, round_trip, softmax_round_trip

if TYPE_CHECKING:
    import onnx

_FAMILIES = (elementwise, fused, normalisations, qonnx, quantized, recurrent, shapes)

OPSETS = range(7, 27)  # of the standard's operators; 25 has the 2-bit integers, 26 changed nothing that a twin follows
STANDARD = ("", "ai.onnx")


class Importer:
    """Reads the graph in three passes: constants, what depends on constants only, and the steps that are left.

    Initialisers that are `open` count as no constants: they stay tensors of their own (`Twin.opened`).
    """

    def __init__(
        self, model: onnx.ModelProto, outputs: Sequence[Port], output: str | None = None, open: Collection[str] = ()
    ) -> None:
        self.graph, self.open = model.graph, open
        self.opened: dict[str, Tensor] = {}
        self.result = output or self.graph.output[0].name
        self.grid = next(port.grid for port in outputs if port.name == self.result)
        versions = {item.domain: item.version for item in model.opset_import}
        self.opset = next((versions[name] for name in STANDARD if name in versions), 0)
        if self.opset not in OPSETS:
            raise NotApplicable(
                f"The ONNX model uses opset {self.opset} of the standard operators; the twin follows "
                f"{OPSETS[0]} to {OPSETS[-1]}. Convert it with onnx.version_converter, or export it again."
            )
        self.constants: dict[str, Tensor] = {}
        self.types: dict[str, int | None] = {}
        self.folded = 0  # elements of computed constants
        self.numbers: dict[str, int] = {}  # of computed values
        self.host: set[str] = set()  # values that depend on the shape of the input only
        self.ranks: dict[str, int | None] = {}
        self.buffers: dict[str, str] = {}
        self.parameters: dict[tuple[Any, ...], nn.Parameter] = {}
        self.soft: set[str] = set()
        self.makers: dict[str, Any] = {}  # the nodes that compute values
        self.dequantized: set[str] = set()

    def twin(self) -> Twin:
        self._read_constants()
        inputs = [item for item in self.graph.input if item.name not in self.constants and item.name not in self.opened]
        if len(inputs) != 1:
            raise NotApplicable(
                f"The ONNX model takes {len(inputs)} inputs ({', '.join(repr(item.name) for item in inputs[:4])}); a "
                "twin takes one. Fix the others to constants and export the model again."
            )
        given = inputs[0]
        tensor = given.type.tensor_type
        kind = tensor.elem_type
        if kind == BOOL:
            raise NotApplicable("The ONNX model takes truth values, which no gradient changes, so there is no twin.")
        dims = [item.dim_value if item.HasField("dim_value") else None for item in tensor.shape.dim]
        known = tensor.HasField("shape") and len(dims) > 0
        self.module = Twin(tuple(dims[1:]) if known else None, kind, self.grid)
        self.types[given.name] = kind
        self.numbers[given.name], self.ranks[given.name] = 0, len(dims) if known else None
        for name, value in self.opened.items():
            self.numbers[name], self.ranks[name] = self.module.open(name, value), value.dim()
        left = self._fold(self._used())
        self._steps(left)
        if self.result in self.constants:
            raise NotApplicable("The output of the ONNX model does not depend on its input, so there is no twin.")
        self.module.answer = self.numbers[self.result]
        self._free()
        if known and dims[0] and not takes_any_batch(self.module, dims[0]):
            self.module.batch = dims[0]
        find_records(self.module)
        return self.module

    def _read_constants(self) -> None:
        from onnx import numpy_helper

        for item in self.graph.initializer:
            value = constant(numpy_helper.to_array(item), item.data_type, item.name)
            self.types[item.name] = item.data_type
            held, value = (self.opened, value.float()) if item.name in self.open else (self.constants, value)
            held[item.name] = value
        if self.graph.sparse_initializer:
            raise NotApplicable("The ONNX model has sparse weights, which the twin does not follow. Store them dense.")

    def _used(self) -> list[Any]:
        """The nodes that the chosen output depends on, in the order of the graph."""
        needed, used = {self.result}, []
        for node in reversed(self.graph.node):
            if needed.intersection(node.output):
                needed.update(node.input)
                used.append(node)
        return used[::-1]

    def _fold(self, nodes: Sequence[Any]) -> list[Any]:
        """Computes what depends on constants only; returns the other nodes."""
        left = []
        for node in nodes:
            if not all(name in self.constants for name in node.input if name):
                left.append(node)
                continue
            read, entry = self._node(node)
            given: list[Any] = [self.constants.get(name) for name in node.input]
            for at in structural_inputs(entry, len(given)):
                given[at] = None if given[at] is None else integers(given[at])
            results = self._attempt(read, entry.function, given)
            for name, result in zip(node.output, results, strict=False):
                if name and result is not None:
                    self.constants[name] = result
                    self.folded += result.numel()
            if self.folded > CAP:
                raise UnsafeInput(
                    f"The constants that the ONNX model computes have more than {CAP:,} elements. It was refused. "
                    "Export the model again, or fetch the file again."
                )
            self._infer(read, entry, node)
        return left

    def _attempt(self, node: Node, function: Function, given: list[Any]) -> Sequence[Tensor | None]:
        try:
            results = function(node, *given)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            node.refuse(f"its inputs or attributes do not fit ({' '.join(str(error).split())[:200]})")
        return (results,) if isinstance(results, Tensor) else results

    def _node(self, proto: Any) -> tuple[Node, Operator]:
        domain = "" if proto.domain in STANDARD else proto.domain
        used = [at for at, name in enumerate(proto.output) if name]
        name = proto.name or (proto.output[0] if proto.output else proto.op_type)
        node = Node(proto.op_type, name, self.opset, outputs=used[-1] + 1 if used else 0)
        entry = OPERATORS.get((domain, proto.op_type))
        if entry is None:
            node.refuse("it is not supported" + (f" (domain {domain!r})" if domain else ""))
        node.attributes = attributes_of(node, proto)
        node.types = tuple(self.types.get(item) for item in proto.input)
        node.given = tuple(bool(item) for item in proto.input)
        node.constant = tuple(item in self.constants for item in proto.input)
        return node, entry

    def _infer(self, node: Node, entry: Operator, proto: Any) -> None:
        kind = entry.result
        if node.operator == "Constant":
            kind = node.get("value_type")
        first = node.types[0] if node.types else None
        known = kind(node) if callable(kind) else first if kind is None else kind
        self.types.update((name, known) for name in proto.output)

    def _steps(self, nodes: list[Any]) -> None:
        consumers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                consumers.setdefault(name, []).append(node)
        self.makers = {name: node for node in nodes for name in node.output}
        self.dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
        self._find_soft(nodes, consumers)
        merged: set[int] = set()  # nodes that became part of an earlier step
        for node in nodes:
            if id(node) in merged:
                continue
            read, entry = self._node(node)
            self._infer(read, entry, node)
            rank = inferred_rank(read, node.input, self.ranks, self.constants)
            self.ranks.update((name, rank) for name in node.output)
            followers = [] if node.output[0] == self.result else consumers.get(node.output[0], [])
            if node.op_type == "QuantizeLinear" and self._round_trip(node, read, followers):
                merged.update(id(item) for item in followers)
            elif node.op_type in LAYERS and entry is OPERATORS.get(("", node.op_type)):
                if not self._layer(node, read, followers, merged):
                    self._step(node, read, entry)
            else:
                self._step(node, read, entry)

    def _find_soft(self, nodes: list[Any], consumers: dict[str, list[Any]]) -> None:
        """Truth values that a binarised network computes with: cast to numbers, or choosing between constants."""
        for node in reversed(nodes):
            name = node.output[0]
            if node.op_type not in (*COMPARISONS, "Not") or name == self.result:
                continue
            uses = consumers.get(name, [])
            if uses and all(self._is_rounding(name, use) for use in uses):
                self.soft.add(name)

    def _is_rounding(self, name: str, use: Any) -> bool:
        if use.op_type == "Cast":
            return all(item.i != BOOL for item in use.attribute if item.name == "to")
        if use.op_type == "Where":
            return use.input[0] == name and all(item in self.constants for item in use.input[1:])
        return use.op_type == "Not" and use.output[0] in self.soft

    def _round_trip(self, proto: Any, node: Node, followers: list[Any]) -> bool:
        """QuantizeLinear whose codes are only ever turned back into floats, on the same grid: one step for all."""
        grid = [self.constants.get(name) for name in proto.input[1:] if name]
        if not followers or any(item is None for item in grid) or node.get("block_size", 0):
            return False
        axis = node.get("axis", 1)
        for follower in followers:
            other = [self.constants.get(name) for name in follower.input[1:] if name]
            same = len(other) == len(grid) and all(
                mine is not None and theirs is not None and torch.equal(mine, theirs)
                for mine, theirs in zip(grid, other, strict=True)
            )
            where = next((item.i for item in follower.attribute if item.name == "axis"), 1)
            used = follower.op_type == "DequantizeLinear" and follower.input[0] == proto.output[0]
            if not used or not same or where != axis:
                return False
        names = [follower.output[0] for follower in followers]
        source = self.makers.get(proto.input[0])
        softmax = source is not None and source.op_type == "Softmax" and source.input[0] in self.dequantized
        function = softmax_round_trip if softmax and code_type(node) == UINT8 else round_trip
        self._add(node, function, self._arguments(proto, node, ()), [names[0]])
        for name in names:
            self.numbers[name], self.ranks[name] = self.numbers[names[0]], self.ranks.get(proto.input[0])
            self.types[name] = next(iter(FLOATS))
        self.module.rounds = True
        return True

    def _layer(self, proto: Any, node: Node, followers: list[Any], merged: set[int]) -> bool:
        """A torch layer for the node, when its weights are constants; with the bias that is added behind a MatMul."""
        maker, absorbed = LAYERS[node.operator]
        values = [self.constants.get(name) for name in proto.input]
        try:
            made = maker(node, values, self.ranks.get(proto.input[0]))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            node.refuse(f"its weights or attributes do not fit ({' '.join(str(error).split())[:200]})")
        if made is None:
            return False
        module, function = made
        outputs = list(proto.output)
        if node.operator == "MatMul" and len(followers) == 1 and followers[0].op_type == "Add":
            width = module.out_features
            for name in followers[0].input:
                bias = self.constants.get(name)
                if bias is not None and bias.numel() == width and bias.dim() == 1:
                    module.bias = nn.Parameter(bias.clone())
                    merged.add(id(followers[0]))
                    outputs = list(followers[0].output)
                    self.ranks[outputs[0]], self.types[outputs[0]] = self.ranks[proto.output[0]], node.types[0]
        weight = module._parameters.get("weight")
        if weight is not None:  # a weight that the graph uses twice is one parameter
            key = (proto.input[absorbed[0]], tuple(weight.shape), node.get("transB", 0), node.get("alpha", 1.0))
            module.weight = self.parameters.setdefault(key, weight)
        name = safe_name(node.name, self.module)
        self.module.add_module(name, module)
        self._add(node, function, self._arguments(proto, node, (), absorbed), outputs, name)
        return True

    def _step(self, proto: Any, node: Node, entry: Operator) -> None:
        if node.operator == "Dropout" and node.has(2):
            training = self.constants.get(proto.input[2])
            if training is None or bool(training.any()):
                node.refuse("it is in training mode, so it draws random numbers")
        structural = structural_inputs(entry, len(proto.input))
        computed = [name for name in proto.input if name and name not in self.constants]
        on_host = bool(computed) and (node.operator in ("Shape", "Size") or all(name in self.host for name in computed))
        if node.operator in COMPARISONS:
            node.soft = proto.output[0] in self.soft and not on_host
        if on_host:
            self.host.update(proto.output)
        self.module.rounds |= entry.rounds and not on_host and self._rounds(node, proto)
        self._add(node, entry.function, self._arguments(proto, node, structural, host=on_host), list(proto.output))

    def _rounds(self, node: Node, proto: Any) -> bool:
        if node.operator in COMPARISONS:
            return node.soft
        if node.operator == "Where":
            return False  # the comparison before it does
        return node.operator != "Cast" or (node.get("to") in INTEGERS and node.types[0] not in (*INTEGERS, BOOL))

    def _arguments(
        self,
        proto: Any,
        node: Node,
        structural: Sequence[int],
        absorbed: Sequence[int] = (),
        host: bool = False,
    ) -> list[tuple[Source, Any]]:
        arguments: list[tuple[Source, Any]] = []
        for at, name in enumerate(proto.input):
            if at in absorbed:
                continue
            known = self.constants.get(name)
            if not name:
                arguments.append((Source.FIXED, None))
            elif known is not None and (at in structural or host):
                arguments.append((Source.FIXED, integers(known) if at in structural else known))
            elif known is not None:
                arguments.append((Source.BUFFER, self._buffer(name, known)))
            elif at in structural:
                arguments.append((Source.SIZES, self.numbers[name]))
            else:
                moved = name in self.host and not host
                arguments.append((Source.HOST if moved else Source.VALUE, self.numbers[name]))
        return arguments

    def _buffer(self, name: str, value: Tensor) -> str:
        if name not in self.buffers:
            self.buffers[name] = safe_name(name, self.module)
            self.module.register_buffer(self.buffers[name], value)
        return self.buffers[name]

    def _add(
        self,
        node: Node,
        function: Function,
        arguments: list[tuple[Source, Any]],
        outputs: list[str],
        module: str | None = None,
    ) -> None:
        places: list[int | None] = []
        for name in outputs:
            if name:
                self.numbers[name] = self.module.count
                self.module.count += 1
            places.append(self.numbers[name] if name else None)
        self.module.steps.append(Step(node, function, arguments, places, module, []))

    def _free(self) -> None:
        """Marks where each value is needed for the last time."""
        last: dict[int, Step] = {}
        computed = (Source.VALUE, Source.SIZES, Source.HOST)
        for step in self.module.steps:
            last.update((what, step) for source, what in step.arguments if source in computed)
            last.update((number, step) for number in step.outputs if number is not None)
        for number, step in last.items():
            if number != self.module.answer:
                step.done.append(number)
