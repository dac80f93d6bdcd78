"""The graph of a TFLite file, listed where the file can do no harm (_read_tflite_graph.py), with its constants."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import NotApplicable
from ..recent import Recent
from ..temporary import scratch
from .sandbox import run_limited

ROOM, SECONDS, SECONDS_BY_BYTE = 2**30, 5, 2**-22  # memory and processor time for the listing
KEPT = 2**24  # bytes of listings that a process keeps
DTYPES = {
    **{word: np.dtype(word) for word in ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64")},
    "bool": np.dtype(np.bool_),
}
LIMIT_HINT = "Nothing else came of it. Refuse the file, or convert the model again."

Numbers = tuple[int, ...]


class Tensor(BaseModel):
    """`signature`: the shape with -1 where a size is open, or empty; `place`: of a constant, its first byte in the file
    and how many there are; `scale` and `zero`: of integers, one for all or one for each slice along `axis`; `plain`:
    neither stored sparsely nor kept between calls.
    """

    model_config = ConfigDict(frozen=True)

    type: str
    shape: Numbers = Field(max_length=8)
    signature: Numbers = Field(max_length=8)
    place: tuple[int, int] | None
    scale: tuple[float, ...]
    zero: Numbers
    axis: int
    plain: bool


class Operator(BaseModel):
    """Tensors by their numbers, -1 where an input is left out; options by their names in schema.fbs."""

    model_config = ConfigDict(frozen=True)

    kind: str
    inputs: Numbers
    outputs: Numbers
    options: dict[str, bool | int | float]


class Graph(BaseModel):
    """Operators in the order in which they run."""

    model_config = ConfigDict(frozen=True)

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: Numbers
    outputs: Numbers


def graph_of(data: bytes) -> Graph:
    """The graph in the bytes of a file that `model_file.read_model_file` let pass.

    Raises:
        UnsafeInput: listing it took more memory or time than it may.
        NotApplicable: its tables are too large, or contradict each other; the message says how.
    """
    digest = hashlib.sha256(data).hexdigest()
    if (known := _listed.get(digest)) is not None:
        return known
    with scratch() as folder:
        copy = folder / "model"
        copy.write_bytes(data)
        answer = run_limited(
            Path(__file__).with_name("_read_tflite_graph.py"),
            [str(copy)],
            what="the graph of the TFLite model",
            seconds=SECONDS + int(SECONDS_BY_BYTE * len(data)),
            memory=ROOM + 4 * len(data),
            hint=LIMIT_HINT,
        )
    try:
        found = json.loads(answer)
        fault = found.get("fault")
        graph = None if fault else Graph.model_validate(found["graph"])
    except (ValidationError, ValueError, KeyError) as error:
        graph, fault = None, f"its tables hold what no model has ({' '.join(str(error).split())[:200]})"
    if graph is None or not _numbered(graph):
        fault = fault or "its operators name tensors that it does not hold"
        raise NotApplicable(
            f"The TFLite model has no differentiable twin: {fault}. Attacks that need no gradients still work."
        )
    _listed.put(digest, graph, len(answer))
    return graph


_listed: Recent[Graph] = Recent(KEPT)


def _numbered(graph: Graph) -> bool:
    ends = [*graph.inputs, *graph.outputs, *(at for one in graph.operators for at in one.outputs)]
    given = [at for one in graph.operators for at in one.inputs]
    count = len(graph.tensors)
    return all(0 <= at < count for at in ends) and all(-1 <= at < count for at in given)


def constant_of(tensor: Tensor, data: bytes) -> np.ndarray[Any, Any] | None:
    """The values of a constant of the file, read-only; int4 as int8. None where its bytes do not fit its shape."""
    if tensor.place is None or not tensor.plain:
        return None
    start, size = tensor.place
    count = math.prod(tensor.shape)
    if tensor.type == "int4" and size == (count + 1) // 2:
        pairs = np.frombuffer(data, np.int8, size, start)
        low, high = np.right_shift(np.left_shift(pairs, 4), 4), np.right_shift(pairs, 4)
        return np.stack([low, high], 1).reshape(-1)[:count].reshape(tensor.shape)
    dtype = DTYPES.get(tensor.type)
    if dtype is None or count * dtype.itemsize != size:
        return None
    return np.frombuffer(data, dtype, count, start).reshape(tensor.shape)
