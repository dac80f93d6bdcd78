"""Brings what exporters write in their own way into the usual form: the same answers, and one way to read them.

Loaded by _check_onnx.py, also in the process of its own that looks at a stranger's file: it imports nothing of this
package. Nothing here checks; a graph that makes no sense stays as it is and is refused later.

- Sizes of -1 (PaddlePaddle), and of 0 for a model's inputs and outputs, are free sizes.
- Nodes come in the order of what they need (the float16 converters append theirs at the end).
- A version of the format or of the operators that is newer than ONNX Runtime is lowered where that changes nothing.
- The initial state of a recurrent network, asked for as a further input, is zeros, anew for every record. An input is
  one only where that shows: an ordinary input must never be filled with zeros.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

IR, OPSET = 13, 26  # the newest that ONNX Runtime 1.31 takes
STANDARD = ("", "ai.onnx")
RECURRENT = ("LSTM", "GRU", "RNN")
# Operators that hand on a state as it is, or a part of it: zeros stay zeros.
HANDED_ON = (
    *("Cast", "Concat", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity", "QuantizeLinear", "Reshape"),
    *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
# By its path, as this file itself is loaded.
_COMES_BACK = runpy.run_path(str(Path(__file__).with_name("_state_names.py")))["comes_back"]


def usual(model: onnx.ModelProto) -> tuple[bool, list[str]]:
    """Edits the model. Returns whether anything was changed, and the names of the inputs that became zeros."""
    before = model.ir_version, [opset.version for opset in model.opset_import]
    _lower_versions(model)
    changed = before != (model.ir_version, [opset.version for opset in model.opset_import])
    weights = {tensor.name for tensor in model.graph.initializer}
    for item in (*model.graph.input, *model.graph.output):
        if item.name not in weights:
            changed |= _free_sizes(item, 0)
    for graph in _graphs(model.graph):
        for item in (*graph.input, *graph.output, *graph.value_info):
            changed |= _free_sizes(item, -1)
        changed |= _sort(graph)
    zeroed = _fill_states(model, weights)
    return changed or bool(zeroed), zeroed


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _graphs(inner)


def _lower_versions(model: onnx.ModelProto) -> None:
    """The format's versions since 13 only added types, which ONNX Runtime would refuse; of the operators' versions only
    those are lowered that no node of the file feels.
    """
    if IR < model.ir_version <= onnx.IR_VERSION:
        model.ir_version = IR
    names = {node.op_type for graph in _graphs(model.graph) for node in graph.node if node.domain in STANDARD}
    for opset in model.opset_import:
        if opset.domain in STANDARD and OPSET < opset.version <= onnx.defs.onnx_opset_version():
            since = [_since(name, opset.version) for name in names]
            if all(version <= OPSET for version in since):
                opset.version = OPSET


def _since(name: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(name, version, "").since_version)
    except onnx.defs.SchemaError:  # no such operator, which is said later
        return version


def _free_sizes(item: onnx.ValueInfoProto, largest: int) -> bool:
    changed = False
    for size in item.type.tensor_type.shape.dim:
        if size.HasField("dim_value") and size.dim_value <= largest:
            size.ClearField("dim_value")
            changed = True
    return changed


def _needs(node: onnx.NodeProto) -> set[str]:
    """Names of values that a node reads, those that the graphs inside it take from outside among them."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            own = {item.name for item in (*inner.input, *inner.initializer)}
            own |= {name for each in inner.node for name in each.output}
            read = {name for each in inner.node for name in _needs(each)} | {item.name for item in inner.output}
            names |= read - own
    return names


def _sort(graph: onnx.GraphProto) -> bool:
    """Each node behind those that make what it reads, else in the file's order. False where nothing had to move, or
    nothing can be done: a circle, or two nodes that make one value.
    """
    nodes = list(graph.node)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in _needs(node) if name in makers} for node in nodes]
    if all(max(needed, default=-1) < at for at, needed in enumerate(needs)):
        return False
    if sum(bool(name) for node in nodes for name in node.output) != len(makers):
        return False
    order: list[int] = []
    state = [0] * len(nodes)  # 1: its needs are being placed; 2: placed
    for start in range(len(nodes)):
        todo = [start]
        while todo:
            at = todo[-1]
            waiting = [] if state[at] else [needed for needed in sorted(needs[at], reverse=True) if state[needed] != 2]
            if any(state[needed] == 1 for needed in waiting):
                return False
            if not waiting:
                todo.pop()
                if state[at] != 2:
                    state[at] = 2
                    order.append(at)
                continue
            state[at] = 1
            todo += waiting
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies[at] for at in order)
    return True


# States ---------------------------------------------------------------------------------------------------------------


def _fill_states(model: onnx.ModelProto, weights: set[str]) -> list[str]:
    """Takes the initial states from the inputs, where exactly one other input is left: the record. Otherwise nothing
    is changed, and the file is refused later for its inputs.
    """
    graph = model.graph
    inputs = [item for item in graph.input if item.name not in weights]
    if len(inputs) < 2 or any(item.name in {output.name for output in graph.output} for item in inputs):
        return []
    others = [item for item in inputs if not _starts_a_recurrence(graph, item)]
    if not others or not _all_come_back(graph, others[0], others[1:]):  # what comes first is the record
        return []
    record = others[0]
    states = [item for item in inputs if item.name != record.name]
    names = [item.name for item in states]
    _zeros(model, states, record)
    kept = [item for item in graph.input if item.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    return names


def _starts_a_recurrence(graph: onnx.GraphProto, item: onnx.ValueInfoProto) -> bool:
    """Whether the input is used for nothing but the initial states of LSTM, GRU and RNN."""
    if item.type.tensor_type.elem_type not in FLOATS:
        return False
    names, used = {item.name}, False
    for node in graph.node:
        places = [at for at, name in enumerate(node.input) if name in names]
        if not places:
            continue
        if node.op_type in RECURRENT and set(places) <= {5, 6}:
            used = True
        elif node.op_type in HANDED_ON and (places == [0] or node.op_type == "Concat"):
            names.update(node.output)
        elif node.op_type != "Shape":
            return False
    return used


def _all_come_back(graph: onnx.GraphProto, record: onnx.ValueInfoProto, states: list[onnx.ValueInfoProto]) -> bool:
    """Whether each is the state of a recurrence that is written out: it has an output of its own, beyond the first,
    that the next call would take. That is of its type and sizes, follows from this very input and from the record, and
    the names agree: an ordinary input of a model with two heads may have all but the last.
    """
    left = list(graph.output)[1:]
    recorded = _followers(graph, record.name) if states else set()
    for state in states:
        reached = recorded & _followers(graph, state.name)
        fitting = (
            output
            for output in left
            if output.name in reached and _same_sizes(state, output) and _COMES_BACK(state.name, output.name)
        )
        match = next(fitting, None)
        if match is None or state.type.tensor_type.elem_type not in FLOATS:
            return False
        left.remove(match)
    return True


def _followers(graph: onnx.GraphProto, name: str) -> set[str]:
    """Names of the values that follow from this one's values; what follows from its shape alone is not among them."""
    found = {name}
    for node in graph.node:  # in the order of what they need
        if node.op_type not in ("Shape", "Size") and found & _needs(node):
            found.update(output for output in node.output if output)
    return found


def _same_sizes(state: onnx.ValueInfoProto, output: onnx.ValueInfoProto) -> bool:
    one, other = state.type.tensor_type, output.type.tensor_type
    sizes = list(zip(one.shape.dim, other.shape.dim, strict=False))
    return (
        one.elem_type == other.elem_type
        and len(one.shape.dim) == len(other.shape.dim) > 0
        and all(not (a.dim_value and b.dim_value) or a.dim_value == b.dim_value for a, b in sizes)
    )


def _zeros(model: onnx.ModelProto, states: list[onnx.ValueInfoProto], record: onnx.ValueInfoProto) -> None:
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {
        one.name for one in graph.initializer
    }
    prefix = "zeros"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    batch = record.type.tensor_type.shape.dim
    names = {item.name for item in states}
    for node in graph.node:
        if node.op_type in RECURRENT:
            for at in (5, 6):
                if at < len(node.input) and node.input[at] in names:
                    node.input[at] = ""  # which means zeros, for any batch
    made: list[onnx.NodeProto] = []

    def constant(name: str, *values: int) -> str:
        graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
        return name

    for number, item in enumerate(states):
        if not any(item.name in _needs(node) for node in graph.node):
            continue
        sizes = item.type.tensor_type.shape.dim
        own = f"{prefix}_{number}"
        parts: list[str] = []
        if all(size.dim_value for size in sizes):
            if batch and not batch[0].dim_value:  # made for one batch only, and every size is given
                batch[0].Clear()
                batch[0].dim_value = 1
            shape = constant(f"{own}_shape", *(size.dim_value for size in sizes))
        else:
            made.append(_node("Shape", [record.name], f"{own}_given"))
            made.append(_node("Gather", [f"{own}_given", constant(f"{own}_first", 0)], f"{own}_n"))
            parts = [
                constant(f"{own}_{at}", size.dim_value) if size.dim_value else f"{own}_n"
                for at, size in enumerate(sizes)
            ]
            shape = f"{own}_shape"
            made.append(_node("Concat", parts, shape, axis=0))
        zero = onnx.helper.make_tensor("value", item.type.tensor_type.elem_type, [1], [0])
        made.append(_node("ConstantOfShape", [shape], item.name, value=zero))
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*made, *rest])


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
