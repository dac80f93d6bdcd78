"""An ONNX session that computes with buffers of ours, so that what is checked is what the runtime multiplies with.

ONNX Runtime keeps weights of its own: it folds constants, changes layouts and packs operands when a session is made. So
the graph is optimised first and written down; the session that answers is made of that graph, optimises and packs
nothing more (`session.disable_prepacking`), and takes each initialiser from an array that this process can read. What
that costs is measured by benchmarks/serving.py.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsafeInput, quoted
from ..runtimes.batches import reason
from ..runtimes.exact_products import exact
from ..runtimes.onnx import session_options
from ..temporary import scratch
from ..untrusted.model_file import CheckedOnnx

BLOCK = 2**16  # bytes under one digest, at most
Octets = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Watched:
    """A session, and the arrays it computes with.

    Args:
        arrays: by the initialiser's name, as uint8 [bytes]: views of the runtime's own operands.
        unwatched: names of initialisers that the runtime keeps to itself: of types numpy has not, or within the body of
            a loop or a branch.
    """

    session: Any
    arrays: dict[str, Octets]
    unwatched: tuple[str, ...]


def watched_session(checked: CheckedOnnx, threads: int) -> Watched:
    """A session of a checked file whose initialisers are arrays of this process.

    Raises:
        UnsafeInput: ONNX Runtime refuses the file.
    """
    import onnx
    import onnxruntime

    with scratch() as folder:
        path = folder / "optimised.onnx"
        options = session_options(checked, threads)
        options.optimized_model_filepath = str(path)
        _made(exact(checked), options)
        model = onnx.load(path)
    options = session_options(checked, threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    arrays: dict[str, Octets] = {}
    values, kept = [], []
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy(order="C")  # of no dimensions where it is a number
        try:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            options.add_initializer(tensor.name, value)
        except Exception:  # a type that numpy or the runtime's binding has not; its exceptions have no common base
            kept.append(tensor.name)
            continue
        values.append(value)
        arrays[tensor.name] = array.reshape(-1).view(np.uint8)
    inner = [name for node in model.graph.node for name in _inner(node)]
    session = _made(model.SerializeToString(), options)
    session.watched_values = values  # the runtime does not keep them alive
    return Watched(session, arrays, (*kept, *inner))


class Digests:
    """Keyed digests (BLAKE2b) of the buffers a session computes with, checked a share at a time.

    The key is drawn from the operating system and never leaves this process: who changes a weight in memory cannot make
    the digest fit.

    Args:
        within: calls of `check` that together look at every byte.
    """

    def __init__(self, arrays: dict[str, Octets], within: int) -> None:
        self._key = secrets.token_bytes(32)
        total = sum(len(array) for array in arrays.values())
        size = max(64, min(BLOCK, -(-total // within)))
        blocks = [
            (name, first, array[first : first + size])
            for name, array in arrays.items()
            for first in range(0, len(array), size)
        ]
        self._rounds: list[list[tuple[str, int, Octets, bytes]]] = [[] for _ in range(within)]
        seen = 0
        for name, first, part in blocks:
            self._rounds[seen * within // max(total, 1)].append((name, first, part, self._digest(part)))
            seen += len(part)
        self._next = 0

    def check(self) -> str | None:
        """Looks at the next share: where bytes are no longer what they were, or None."""
        due = self._rounds[self._next]
        self._next = (self._next + 1) % len(self._rounds)
        for name, first, part, digest in due:
            if self._digest(part) != digest:
                return f"{quoted(name, 80)}, bytes {first} to {first + len(part) - 1}"
        return None

    def _digest(self, part: Octets) -> bytes:
        return hashlib.blake2b(part.data, digest_size=16, key=self._key).digest()


def _made(model: bytes, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exception types have no common base
        raise UnsafeInput(f"ONNX Runtime refuses the model: {reason(error)}") from None


def _inner(node: Any) -> list[str]:
    """Initialisers of the graphs within a node, by name."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    graphs += [graph for attribute in node.attribute for graph in attribute.graphs]
    return [tensor.name for graph in graphs for tensor in graph.initializer] + [
        name for graph in graphs for inner in graph.node for name in _inner(inner)
    ]
