"""Each operator of a TFLite graph as nodes of ONNX. What LiteRT's kernels compute, to the rounding:

- products of codes are summed as integers, multiplied by one float32 for each channel, and rounded half to even
  (XNNPACK's requantisation);
- sums, products and curves of codes are computed of the floats they stand for, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import NotApplicable
from ...untrusted.tflite_graph import Graph
from ..nodes import FLOAT, INT8, INT64, UINT8
from . import kernels
from .layers import activated, check_output, convolution, fully_connected, pool
from .translation import DOMAIN, Translation

if TYPE_CHECKING:
    import onnx

_ = kernels  # it registers its operators
OPSET = 21
INPUTS = {"float32": FLOAT, "int8": INT8, "uint8": UINT8}

Write = Callable[[Translation], None]


def translated(graph: Graph, data: bytes, output: int) -> onnx.ModelProto:
    """An ONNX model with the graph's input and its output of that place. A twin can be made of it; no runtime takes it.

    Raises:
        NotApplicable: an operator, a type or a setting that is not followed; the message names it.
    """
    from onnx import helper

    if len(graph.inputs) != 1:
        raise NotApplicable(
            f"The TFLite model takes {len(graph.inputs)} inputs, its state perhaps among them; a twin takes one."
        )
    (given,), wanted = graph.inputs, graph.outputs[output]
    tensor = graph.tensors[given]
    if tensor.type not in INPUTS:
        raise NotApplicable(f"The TFLite model takes {tensor.type}, which no twin follows. Give it floats or 8 bits.")
    translation = Translation(graph, data)
    for operator in _used(graph, given, wanted):
        translation.operator = operator
        if operator.kind not in WRITERS:
            translation.refuse("it is not supported")
        WRITERS[operator.kind](translation)
    signature = tensor.signature if len(tensor.signature) == len(tensor.shape) else tensor.shape
    sizes = [None if at and free < 0 else tensor.shape[at] for at, free in enumerate(signature)]  # the batch is its own
    return helper.make_model(
        helper.make_graph(
            translation.nodes,
            "tflite",
            [helper.make_tensor_value_info(f"t{given}", INPUTS[tensor.type], sizes)],
            [helper.make_tensor_value_info(f"t{wanted}", FLOAT, None)],
            translation.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def _used(graph: Graph, given: int, wanted: int) -> list[Any]:
    """The operators that the output depends on, in their order; shapes are known, so what computes one is not used."""
    needed, used = {wanted}, []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            inputs = operator.inputs[:1] if operator.kind in SHAPED else operator.inputs
            needed.update(inputs)
            used.append(operator)
    if given not in needed:
        raise NotApplicable("The output of the TFLite model does not depend on its input, so there is no twin.")
    return used[::-1]


def _mean(to: Translation) -> None:
    given, rank = to.needed(0), len(to.tensor(to.needed(0)).shape)
    axes, keep = (
        sorted({axis % max(rank, 1) for axis in to.integers(to.needed(1))}),
        to.operator.options.get("KeepDims"),
    )
    if not axes or 0 in axes:
        to.refuse("it is taken over the records")
    keepdims = int(bool(keep))
    if to.is_whole(given):
        check_output(to)
        to.add("Mean", _between(to, given), f"t{to.output}", domain=DOMAIN, axes=axes, keepdims=keepdims)
    else:
        to.add("ReduceMean", [to.value(given), to.number(axes, INT64)], f"t{to.output}", keepdims=keepdims)


def _between(to: Translation, given: int) -> list[str]:
    """Codes, and what brings them to the output's grid."""
    ratio = to.ratio(to.grid(given)[0], to.output)
    return [to.value(given), to.number(ratio), to.zero(given), to.zero(to.output)]


def _two(kind: str) -> Write:
    """Of two tensors; either may be a constant."""

    def write(to: Translation) -> None:
        pair = [to.floats(to.needed(at)) for at in (0, 1)]
        value = to.add(kind, pair)
        if not to.is_whole(to.output):
            activated(to, value, codes=False)
            return
        scale, _ = to.grid(to.output)
        codes = to.add("QuantizeLinear", [value, to.number(scale), to.zero(to.output)])
        activated(to, codes, codes=True)

    return write


def _curve(kind: str, *further: float, **attributes: Any) -> Write:
    """Of the floats that the input stands for."""

    def write(to: Translation) -> None:
        to.put(to.add(kind, [to.floats(to.needed(0)), *map(to.number, further)], **attributes), to.output)

    return write


def _cut(number: int) -> Write:
    """As the fused activation of that number."""

    def write(to: Translation) -> None:
        given = to.needed(0)
        codes = to.is_whole(given)
        value = to.add("Rescale", _between(to, given), domain=DOMAIN) if codes else to.value(given)
        activated(to, value, number, codes=codes)

    return write


def _leaky(to: Translation) -> None:
    given, alpha = to.needed(0), float(to.operator.options.get("Alpha", 0.0))
    if to.is_whole(given):
        check_output(to)
        below = to.ratio(np.float32(alpha) * to.grid(given)[0], to.output)
        to.add("Requantize", [*_between(to, given), to.number(below)], f"t{to.output}", domain=DOMAIN)
    else:
        to.add("LeakyRelu", [to.value(given)], f"t{to.output}", alpha=alpha)


def _softmax(to: Translation) -> None:
    value, beta = to.floats(to.needed(0)), float(to.operator.options.get("Beta", 1.0))
    if beta != 1.0:
        value = to.add("Mul", [value, to.number(beta)])
    to.put(to.add("Softmax", [value], axis=-1), to.output)


def _converted(to: Translation) -> None:
    given = to.needed(0)
    if to.constant(given) is not None and not to.is_whole(to.output):
        to.keep(to.output, to.stored_as_floats(given))  # weights that are stored as float16, say
    elif to.is_whole(given) and to.is_whole(to.output):
        to.add("Requantize", _between(to, given), f"t{to.output}", domain=DOMAIN)
    else:
        to.put(to.floats(given), to.output)


def _reshaped(to: Translation) -> None:
    """Records stay outermost, whatever their number."""
    if not to.same_grid(to.needed(0), to.output):
        to.refuse("its input and its output have different grids")
    behind = to.tensor(to.output).shape[1:]
    to.add("Reshape", [to.value(to.needed(0)), to.number([-1, *behind], INT64)], f"t{to.output}")


def _transposed(to: Translation) -> None:
    order = to.integers(to.needed(1))
    if sorted(order) != list(range(len(to.tensor(to.needed(0)).shape))) or not order or order[0] != 0:
        to.refuse("it moves the axis of the records")
    to.add("Transpose", [to.value(to.needed(0))], f"t{to.output}", perm=order)


def _padded(to: Translation) -> None:
    given = to.needed(0)
    rank, pads = len(to.tensor(given).shape), to.integers(to.needed(1))
    if len(pads) != 2 * rank or min(pads) < 0 or any(pads[:2]) or not to.same_grid(given, to.output):
        to.refuse("its margins are none, or lie between the records")
    filling = float(to.grid(given)[1]) if to.is_whole(given) else 0.0
    if to.operator.kind == "PADV2":
        value = to.constant(to.needed(2))
        if value is None or value.size != 1:
            to.refuse("what it fills with is computed")
        filling = float(value.reshape(-1)[0])
    pads = [*pads[::2], *pads[1::2]]
    to.add("Pad", [to.value(given), to.number(pads, INT64), to.number(filling)], f"t{to.output}")


def _joined(to: Translation) -> None:
    rank = len(to.tensor(to.output).shape)
    axis = int(to.operator.options.get("Axis", 0)) % max(rank, 1)
    if axis == 0:
        to.refuse("it joins records")
    codes, parts = to.is_whole(to.output), []
    for at in range(len(to.operator.inputs)):
        number = to.needed(at)
        if to.same_grid(number, to.output):
            parts.append(to.value(number))
            continue
        value = to.floats(number)
        if codes:
            value = to.add("QuantizeLinear", [value, to.number(to.grid(to.output)[0]), to.zero(to.output)])
        parts.append(value)
    activated(to, to.add("Concat", parts, axis=axis), codes=codes)


SHAPED = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")  # their second input says what the file says of the output anyway
WRITERS: dict[str, Write] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), convolution),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), pool),
    **dict.fromkeys(SHAPED, _reshaped),
    **dict.fromkeys(("QUANTIZE", "DEQUANTIZE"), _converted),
    **dict.fromkeys(("PAD", "PADV2"), _padded),
    "FULLY_CONNECTED": fully_connected,
    "MEAN": _mean,
    "ADD": _two("Add"),
    "SUB": _two("Sub"),
    "MUL": _two("Mul"),
    "SOFTMAX": _softmax,
    "LOGISTIC": _curve("Sigmoid"),
    "TANH": _curve("Tanh"),
    "HARD_SWISH": _curve("HardSwish"),
    "RELU": _cut(1),
    "RELU6": _cut(3),
    "RELU_N1_TO_1": _cut(2),
    "LEAKY_RELU": _leaky,
    "TRANSPOSE": _transposed,
    "CONCATENATION": _joined,
}
