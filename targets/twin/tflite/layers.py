"""Convolutions, products and pools of a TFLite graph as nodes of ONNX, and the activations fused with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..nodes import INT32, INT64, MICROSOFT
from .translation import DOMAIN, ELEMENTS, WHOLE, Array, Translation

PADDINGS = {0: "SAME_UPPER", 1: "VALID"}
ENDS = {1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}  # of fused activations, by number
TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
WIDEST = 2**15  # reach and steps of a window, and an eighth of its area: torch fills margins, and overflows
DENSE_WEIGHTS = 0  # FullyConnectedOptions.weights_format


def activated(to: Translation, value: str, number: int | None = None, *, codes: bool) -> None:
    """`value`, behind the activation of that number, or the one that is fused with the operator, becomes its output."""
    number = int(to.operator.options.get("FusedActivationFunction", 0)) if number is None else number
    if number == 0:
        to.add("Identity", [value], f"t{to.output}")
    elif number not in ENDS:
        to.refuse(f"its fused activation is number {number} of the format")
    elif codes:
        scale, zero = to.grid(to.output)
        low, high = WHOLE[to.tensor(to.output).type]
        ends = [None if end is None else float(np.clip(zero + np.rint(end / scale), low, high)) for end in ENDS[number]]
        if ends[0] in (None, low) and ends[1] in (None, high):
            to.add("Identity", [value], f"t{to.output}")
        else:
            to.add("Clip", [value, *_ends(to, ends)], f"t{to.output}")
    else:
        to.add("Clip", [value, *_ends(to, ENDS[number])], f"t{to.output}")


def _ends(to: Translation, ends: Any) -> list[str]:
    return ["" if end is None else to.number(end) for end in ends]


def _window(to: Translation, kernel: Sequence[int]) -> dict[str, Any]:
    options = to.operator.options
    strides = [int(options.get(f"Stride{side}", 1)) for side in "HW"]
    steps = [int(options.get(f"Dilation{side}Factor", 1)) for side in "HW"]
    padding = PADDINGS.get(int(options.get("Padding", 0)))
    reach = [step * (size - 1) + 1 for step, size in zip(steps, kernel, strict=True)]
    if (
        padding is None
        or min(*strides, *steps, *kernel) < 1
        or max(*strides, *reach, reach[0] * reach[1] // 8) > WIDEST
    ):
        to.refuse("its window, strides and padding are none")
    return {"strides": strides, "dilations": steps, "auto_pad": padding}


def _moved(to: Translation, number: int) -> str:
    to.shape(number, 4)
    return to.add("Transpose", [to.value(number)], perm=TO_FIRST)


def convolution(to: Translation) -> None:
    deep = to.operator.kind == "DEPTHWISE_CONV_2D"
    given, weight = to.needed(0), to.needed(1)
    channels, kernel = to.shape(given, 4)[3], to.shape(weight, 4)
    each = 1 if deep else kernel[3]
    if each < 1 or channels % each or (deep and kernel[0] != 1):
        to.refuse(f"its weights {list(kernel)} do not fit {channels} channels")
    order = (3, 0, 1, 2) if deep else TO_FIRST  # to [out, in, height, width]
    attributes = {**_window(to, kernel[1:3]), "group": channels // each}
    x, bias = _moved(to, given), to.input(2)
    if to.is_whole(given):
        codes, multiplier, zeros = _weights(to, given, weight, axis=3 if deep else 0)
        check_output(to)
        one = to.number(1.0)
        weights = to.number(codes.transpose(order), ELEMENTS[codes.dtype.name])
        inputs = [x, one, to.zero(given), weights, multiplier, zeros, one, to.zero(to.output), *_bias(to, bias)]
        value = to.add("QLinearConv", inputs, **attributes)
    else:
        floats = to.number(to.stored_as_floats(weight).transpose(order))
        value = to.add("Conv", [_coarse(to, x, weight), floats, *_bias(to, bias)], **attributes)
    last = to.add("Transpose", [value], perm=TO_LAST)
    activated(to, last, codes=to.is_whole(given))


def _weights(to: Translation, given: int, weight: int, axis: int) -> tuple[Array, str, str]:
    """Codes of constant weights; what their sums are multiplied by to be steps of the output; their zero points."""
    codes = to.constant(weight)
    if codes is None or codes.dtype.name not in WHOLE:
        to.refuse("its weights are computed, or no 8-bit codes")
    scale, zero = to.grids(weight)
    if scale.size > 1 and to.tensor(weight).axis != axis:
        to.refuse("the scales of its weights are not those of its outputs")
    multiplier, (low, high) = to.ratio(to.grid(given)[0], to.output, scale), WHOLE[codes.dtype.name]
    if (zero < low).any() or (zero > high).any():
        to.refuse("the grid of its weights is none")
    return codes, to.number(multiplier), to.number(zero, ELEMENTS[codes.dtype.name])


def _coarse(to: Translation, x: str, weight: int) -> str:
    """Floats as they meet weights: rounded where these are codes ("dynamic range quantisation")."""
    codes = to.constant(weight)
    return x if codes is None or codes.dtype.kind == "f" else to.add("DynamicRange", [x], domain=DOMAIN)


def check_output(to: Translation) -> None:
    if not to.is_whole(to.output):
        to.refuse("it turns codes into floats")


def _bias(to: Translation, number: int) -> list[str]:
    values = to.constant(number)
    if values is None:
        if number >= 0:
            to.refuse("its bias is computed")
        return []
    if values.ndim != 1:
        to.refuse(f"its bias has the shape {list(values.shape)}")
    return [to.number(values, INT32)] if values.dtype.name == "int32" else [to.number(to.stored_as_floats(number))]


def fully_connected(to: Translation) -> None:
    given, weight, bias = to.needed(0), to.needed(1), to.input(2)
    outputs, inputs = to.shape(weight, 2)
    if to.operator.options.get("WeightsFormat", DENSE_WEIGHTS) != DENSE_WEIGHTS:
        to.refuse("its weights are shuffled")
    x = to.add("Reshape", [to.value(given), to.number([-1, inputs], INT64)])
    if to.is_whole(given):
        codes, multiplier, zeros = _weights(to, given, weight, axis=0)
        check_output(to)
        one = to.number(1.0)
        weights, added = to.number(codes, ELEMENTS[codes.dtype.name]), _bias(to, bias) or [""]
        inputs_of = [x, one, to.zero(given), weights, multiplier, zeros, *added, one, to.zero(to.output)]
        value = to.add("QGemm", inputs_of, domain=MICROSOFT, transB=1)
    else:
        floats = to.number(to.stored_as_floats(weight))
        value = to.add("Gemm", [_coarse(to, x, weight), floats, *_bias(to, bias)], transB=1)
    if to.operator.options.get("KeepNumDims"):
        between = to.tensor(given).shape[1:-1]
        value = to.add("Reshape", [value, to.number([-1, *between, outputs], INT64)])
    activated(to, value, codes=to.is_whole(given))


def pool(to: Translation) -> None:
    given, options = to.needed(0), to.operator.options
    size = [int(options.get(f"Filter{side}", 0)) for side in ("Height", "Width")]
    if not to.same_grid(given, to.output):
        to.refuse("its input and its output have different grids")
    codes, mean = to.is_whole(given), to.operator.kind == "AVERAGE_POOL_2D"
    attributes = {**_window(to, size), "kernel_shape": size}
    value = to.add(
        "AveragePool" if mean else "MaxPool",
        [_moved(to, given)],
        domain=DOMAIN if mean and codes else "",
        **attributes,
    )
    activated(to, to.add("Transpose", [value], perm=TO_LAST), codes=codes)
