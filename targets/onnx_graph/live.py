"""An ONNX graph without what no output depends on.

A node whose result goes nowhere, and the numbers that only such nodes read, decide no answer: whoever compares or
counts a model must not be led by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def reached(start: Iterable[str], onward: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """Every tensor's name that a walk over a graph comes by, once each, those of `start` among them.

    Args:
        onward: where the walk goes on from a name: to what it is made of, say, or to what is made of it. Asked once
            per name; an empty name is none (an optional input that is not given).
    """
    waiting, seen = list(start), set[str]()
    while waiting:
        name = waiting.pop()
        if name and name not in seen:
            seen.add(name)
            yield name
            waiting += onward(name)


def only_live(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, its nodes and initialisers removed (inside If and its kin too) unless they reach an output."""
    _keep_live(model.graph)
    return model


def _keep_live(graph: onnx.GraphProto) -> set[str]:
    """Removes what is dead in place; the names that the rest reads, those of outer graphs among them.

    The order of the nodes is not relied on: a runtime sorts them itself.
    """
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    live: set[int] = set()

    def read(name: str) -> list[str]:
        """What its maker reads, unless that has been said."""
        index = makers.get(name)
        if index is None or index in live:
            return []
        live.add(index)
        node = graph.node[index]
        inner = [part for attribute in node.attribute for part in (attribute.g, *attribute.graphs)]
        return [*node.input, *(name for part in inner for name in _keep_live(part))]

    needed = set(reached([output.name for output in graph.output], read))
    nodes = [node for index, node in enumerate(graph.node) if index in live]
    held = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(nodes) < len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)
    if len(held) < len(graph.initializer):
        dead = {tensor.name for tensor in graph.initializer} - needed
        inputs = [item for item in graph.input if item.name not in dead]  # old files list their weights there, too
        del graph.input[:]
        graph.input.extend(inputs)
        del graph.initializer[:]
        graph.initializer.extend(held)
    return needed
