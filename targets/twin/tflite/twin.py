"""The twin of a TFLite file, from its bytes.

Its operators are written as nodes of ONNX, in the file's own layout (channels last) with transposes around
convolutions and pools, and the importer of ONNX files makes the twin of them. Integers stay codes from operator to
operator, as in LiteRT's kernels, so that what is rounded is rounded where they round.
"""

from __future__ import annotations

import torch

from ...errors import NotApplicable
from ...untrusted.model_file import Port
from ...untrusted.tflite_graph import Graph, graph_of
from ..importer import Importer
from ..module import Twin
from .translate import translated

FAULTS = (RuntimeError, ValueError, IndexError, KeyError, TypeError, OverflowError)  # of torch, numpy and onnx


def twin_of_tflite(data: bytes, output: int = 0) -> Twin:
    """The twin of a TFLite file with one input, in evaluation mode, on the CPU.

    Args:
        data: a file that `model_file.read_model_file` let pass; it is parsed in a process of its own.
        output: which of its outputs it answers with.

    Raises:
        UnsafeInput: listing its graph takes more than it may, or it asks for tensors of absurd size.
        NotApplicable: it uses an operator, a type or a setting that the twin cannot follow; the message names it.
    """
    return twin_of_graph(graph_of(data), data, output)


def twin_of_graph(graph: Graph, data: bytes, output: int = 0) -> Twin:
    """The same of a graph that was listed; `data` holds its constants."""
    wanted = graph.tensors[graph.outputs[output]]
    grid = (wanted.scale[0], wanted.zero[0] if wanted.zero else 0) if wanted.scale else None
    try:
        model = translated(graph, data, output)
        port = Port(name=model.graph.output[0].name, type=wanted.type, shape=wanted.shape, grid=grid)
        with torch.no_grad():
            twin = Importer(model, (port,)).twin()
    except FAULTS as error:
        words = " ".join(str(error).split())[:200]
        raise NotApplicable(
            f"The TFLite model has no differentiable twin: its sizes, types and numbers do not fit ({words}). Attacks "
            "that need no gradients still work."
        ) from None
    return twin.eval()
