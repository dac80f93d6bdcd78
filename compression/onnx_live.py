"""An ONNX graph without what no output depends on.

A node whose result goes nowhere, and the numbers that only such nodes read, decide no answer: whoever compares or
counts a model must not be led by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def only_live(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, its nodes and initialisers removed (inside If and its kin too) unless they reach an output."""
    _keep_live(model.graph)
    return model


def _keep_live(graph: onnx.GraphProto) -> set[str]:
    """Removes what is dead in place; the names that the rest reads, those of outer graphs among them.

    The order of the nodes is not relied on: a runtime sorts them itself.
    """
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting, needed, live = [output.name for output in graph.output], set[str](), set[int]()
    while waiting:
        name = waiting.pop()
        if not name or name in needed:
            continue
        needed.add(name)
        index = makers.get(name)
        if index is None or index in live:
            continue
        live.add(index)
        node = graph.node[index]
        waiting += node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                waiting += _keep_live(inner)
    nodes = [node for index, node in enumerate(graph.node) if index in live]
    held = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(nodes) < len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)
    if len(held) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(held)
    return needed
