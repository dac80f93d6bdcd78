"""Looks at an ONNX file before a runtime does: it may have been crafted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UnsafeInput
from .foreign import Port

if TYPE_CHECKING:
    import onnx


def check_onnx(data: bytes) -> onnx.ModelProto:
    """The model in `data`, in its usual form: free sizes, nodes in order, states zero (_usual_onnx.py).

    Raises:
        UnsafeInput: it is not well formed, too new, needs other files or operators outside the standard (but for those
            that ONNX Runtime's own quantiser and optimiser write), or lets a record's values decide how much is
            computed.
    """
    return checked_onnx(data)[0]


def checked_onnx(data: bytes) -> tuple[onnx.ModelProto, bytes]:
    """The same, and the bytes to hand to a runtime: `data` itself unless its form had to be mended."""
    from ._read_onnx import Fault, parse

    try:
        model, usable, _ = parse(data)
    except Fault as fault:
        raise UnsafeInput(str(fault)) from None
    return model, usable


def ports(model: onnx.ModelProto) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a checked model. Raises UnsafeInput when one is of no known type."""
    from ._read_onnx import Fault, facts

    try:
        known = facts(model)
    except Fault as fault:
        raise UnsafeInput(str(fault)) from None
    inputs, outputs = ([Port.model_validate(port) for port in known[side]] for side in ("inputs", "outputs"))
    return tuple(inputs), tuple(outputs)


def measures_ranges(model: onnx.ModelProto) -> bool:
    """Whether the model quantises by the range of all that are asked at once."""
    return any(node.op_type.startswith("DynamicQuantize") for node in model.graph.node)
