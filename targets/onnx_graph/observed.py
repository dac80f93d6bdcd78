"""What the tensors of an ONNX graph are when it answers a few records: shapes, types, and values on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InputError
from ..runtimes.batches import reason
from ..temporary import scratch

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]
KEPT = 2**16  # values of a tensor that are kept unasked
Level = Literal["basic", "extended"]


@dataclass(frozen=True)
class Observed:
    """Shapes and numpy's type names by tensor; the values of small tensors, and of those that were asked for."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)


def observe(
    model: onnx.ModelProto, feeds: Mapping[str, Array], names: Iterable[str], keep: Iterable[str] = ()
) -> Observed:
    """Runs the model, nothing in it fused, and looks at the named tensors of the outermost graph.

    Args:
        feeds: the arrays of all inputs.
        keep: of the named, those whose values are kept whatever their size.

    Raises:
        InputError: ONNX Runtime does not run it on these arrays.
    """
    found = Observed()
    try:
        session = unfused(model, names)
        answers: list[Array] = session.run(None, dict(feeds))
    except Exception as error:  # the runtime's exception types have no common base
        raise InputError(f"The ONNX model does not answer: {reason(error)}") from None
    kept = set(keep)
    for name, value in [*feeds.items(), *((o.name, a) for o, a in zip(session.get_outputs(), answers, strict=True))]:
        if isinstance(value, np.ndarray):
            found.shapes[name], found.types[name] = value.shape, value.dtype.name
            if name in kept or value.size <= KEPT:
                found.values[name] = value
    return found


def unfused(model: onnx.ModelProto, names: Iterable[str]) -> Any:
    """A session on one thread, nothing fused, that answers the named tensors of the outermost graph too.

    Raises:
        Exception: ONNX Runtime's own, which have no common base: it does not take the model.
    """
    import onnx
    import onnxruntime

    larger = onnx.ModelProto()
    larger.CopyFrom(model)
    present = {output.name for output in model.graph.output} | {item.name for item in model.graph.input}
    larger.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(larger.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _options() -> Any:
    """On one thread, and silent."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def optimised(model: onnx.ModelProto, level: Level) -> onnx.ModelProto:
    """What ONNX Runtime's optimiser makes of the model at that level: the same function, its operators fused.

    Raises:
        InputError: ONNX Runtime does not take the model.
    """
    import onnx
    import onnxruntime

    options = _options()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if level == "basic" else levels.ORT_ENABLE_EXTENDED
    with scratch() as folder:
        options.optimized_model_filepath = str(folder / "model.onnx")
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)
        except Exception as error:  # the runtime's exception types have no common base
            raise InputError(f"ONNX Runtime does not take the model: {reason(error)}") from None


def blank(model: onnx.ModelProto, records: int, free: Sequence[int] = ()) -> dict[str, Array]:
    """Zeros for every input: `records` of them where the number is free.

    Args:
        free: the sizes of a record; where the model leaves others free than the first, they are taken from there.
    """
    import onnx

    held = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for item in model.graph.input:
        if item.name in held:
            continue
        kind = item.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else 0 for dim in kind.shape.dim]
        known = [records, *free] if len(free) + 1 == len(sizes) else [records, *[8] * len(sizes)]
        shape = [size or known[place] for place, size in enumerate(sizes)]
        feeds[item.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds
