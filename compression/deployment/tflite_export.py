"""The ONNX file of a candidate as a TFLite file: the operators of convolutional and dense networks.

Weights keep their codes and scales, activations their grids (u8 become int8, 128 lower). A layer between two roundings
becomes one of integers, as in ONNX Runtime, whose kernels round alike; any other is computed in floats, as the file
says it. Images are taken with their channels first, as the ONNX file takes them, and are laid out with their channels
last from there on. The batch is one record.

No converter is used: litert-torch 0.10 asks for releases of other packages that this one does not run with, takes
half a gigabyte, and refuses integer layers with given scales; onnx2tf pins an older onnx and NumPy (2026-11).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...targets.untrusted.model_file import check_onnx, need_litert
from .tflite_file import Grid
from .tflite_writer import FIRST, LAST, LOWEST, SAME, SHAPED, SMALL, Computed, Known, Writer

FLOAT = 1  # TensorProto's
CURVES = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH"}


def to_tflite(model: bytes) -> bytes:
    """A candidate's ONNX file (`to_onnx`) as TFLite: input float32 [1, *record], output "logits" float32 [1, outputs].

    The same file gives the same bytes.

    Raises:
        InputError: ai-edge-litert is not installed.
        NotApplicable: an operator, or a setting of one, that is not written; the message names it.
        UnsafeInput: as `check_onnx`.
    """
    need_litert()
    to = Writer(check_onnx(model).copy())
    for node in to.nodes():
        if node.op_type not in WRITERS:
            to.refuse("is not written")
        WRITERS[node.op_type](to)
    return to.content()


def _convolution(to: Writer) -> None:
    given, weight = to.computed(), to.weights(1)
    if len(given.shape) != 4:
        to.refuse("slides over series, which TFLite does not")
    given, options = to.window(given, list(weight.values.shape[2:]))
    groups, steps = to.setting("group", 1), to.setting("dilations", [1, 1])
    options |= {"dilationHFactor": steps[0], "dilationWFactor": steps[1]}
    if groups == given.shape[1] and groups > 1:
        deep = weight.moved((1, 2, 3, 0))
        to.layer(
            "DEPTHWISE_CONV_2D", given, deep, to.known(2), depthMultiplier=weight.values.shape[0] // groups, **options
        )
    else:
        to.layer("CONV_2D", given, weight.moved((0, 2, 3, 1)), to.known(2), **options)


def _gemm(to: Writer) -> None:
    if to.setting("alpha", 1.0) != 1.0 or to.setting("beta", 1.0) != 1.0 or to.setting("transA", 0):
        to.refuse("scales or turns what it multiplies")
    weight = to.weights(1)
    to.layer("FULLY_CONNECTED", to.computed(), weight if to.setting("transB", 0) else weight.moved((1, 0)), to.known(2))


def _product(to: Writer) -> None:
    given, weight = to.computed(), to.weights(1)
    if weight.values.ndim != 2 or len(given.shape) == 4:
        to.refuse("multiplies other things than rows with weights")
    to.layer("FULLY_CONNECTED", given, weight.moved((1, 0)), None, keepNumDims=len(given.shape) > 2)


def _two(kind: str) -> Callable[[Writer], None]:
    """Of two values, or of one and a constant."""
    return lambda to: _joined(to, kind, [one for one in (to.held(0), to.held(1)) if one is not None])


def _quotient(to: Writer) -> None:
    """By a constant: times its inverse."""
    _joined(to, "MUL", [to.computed(), Known(1 / to.weights(1).floats)])


def _joined(to: Writer, kind: str, pair: list[Known | Computed]) -> None:
    name, activation = to.after()
    rank = max(len(one.shape) if isinstance(one, Computed) else one.values.ndim for one in pair)
    inputs, codes = [], []
    for one in pair:
        if isinstance(one, Known):
            if one.values.ndim and rank == 4:
                one = Known(one.floats.reshape([1] * (4 - one.values.ndim) + list(one.values.shape))).moved(LAST)
        elif rank == 4 and len(one.shape) != 4:
            to.refuse("joins an image with something else")
        elif one.grid is not None:
            codes.append(one.number)
        inputs.append(one)
    if all(isinstance(one, Known) for one in inputs):
        to.refuse("computes with constants alone")
    grid = to.rounded(name) if kind == "ADD" and len(codes) == 2 else None
    numbers = [to.floats(one) for one in inputs] if grid is None else codes
    to.made(kind, numbers, name, grid, fusedActivationFunction=activation)


def _pool(to: Writer) -> None:
    given, kernel, mean = to.computed(), list(to.setting("kernel_shape", [])), to.node.op_type == "AveragePool"
    if mean and given.grid is not None:
        given = Computed(to.floats(given), given.shape)
    if list(to.setting("dilations", [1, 1])) != [1, 1]:
        to.refuse("pools with gaps")
    padded, options = to.window(given, kernel, 0.0 if mean else float(LOWEST))
    margins = any(to.setting("pads", [0] * 4))
    if mean and margins and (options["padding"] == SAME) == bool(to.setting("count_include_pad", 0)):
        to.refuse("counts its margins otherwise than TFLite does")
    kind = "AVERAGE_POOL_2D" if mean else "MAX_POOL_2D"
    name = to.node.output[0]
    to.made(kind, [padded.number], name, padded.grid, filterHeight=kernel[0], filterWidth=kernel[1], **options)


def _mean(to: Writer) -> None:
    given, axes = to.computed(), [2, 3]
    if to.node.op_type == "ReduceMean":
        found = to.known(1)
        axes = [int(axis) for axis in (to.setting("axes", []) if found is None else found.values.reshape(-1))]
    rank, keep = len(given.shape), bool(to.setting("keepdims", 1))
    axes = sorted(axis % rank for axis in axes)
    if not axes or 0 in axes or (rank == 4 and axes != [2, 3] and not keep):
        to.refuse("takes its mean over records, or over all there is")
    laid = [LAST.index(axis) for axis in axes] if rank == 4 else axes
    to.made("MEAN", [to.floats(given), to.numbers(*laid)], to.node.output[0], keepDims=keep)


def _reshape(to: Writer) -> None:
    """Values lie in ONNX's order while they take another shape."""
    given, name = to.computed(), to.node.output[0]
    shape, number = to.shape_of(name), given.number
    if len(given.shape) == 4 and min(given.shape[1], given.shape[2] * given.shape[3]) > 1:
        number = to.between("TRANSPOSE", given, given.shape, to.numbers(*FIRST))
    if len(shape) == 4 and min(shape[1], shape[2] * shape[3]) > 1:
        first = to.between("RESHAPE", replace(given, number=number), shape, to.numbers(*shape), newShape=list(shape))
        to.made("TRANSPOSE", [first, to.numbers(*LAST)], name, given.grid)
        return
    laid = [shape[axis] for axis in LAST] if len(shape) == 4 else list(shape)
    to.made("RESHAPE", [number, to.numbers(*laid)], name, given.grid, newShape=laid)


def _transpose(to: Writer) -> None:
    """Of weights."""
    given = to.weights(0)
    to.put(to.node.output[0], given.moved(tuple(to.setting("perm", range(given.values.ndim)[::-1]))))


def _quantize(to: Writer) -> None:
    given, grid, name = to.computed(), to.grid_of(to.node), to.node.output[0]
    if given.grid == grid:
        to.put(name, given)
    else:
        to.made("QUANTIZE", [to.floats(given)], name, grid)


def _dequantize(to: Writer) -> None:
    given = to.held(0)
    if isinstance(given, Known):
        scale, zero = to.weights(1), to.known(2)
        if to.setting("block_size", 0) or (zero is not None and zero.values.any()):
            to.refuse("has scales by groups of weights, or zero points")
        axis = to.setting("axis", 1) % max(1, given.values.ndim)
        given = Known(given.values, Grid(scale.values.reshape(-1), axis=axis if scale.values.size > 1 else 0))
    assert given is not None
    to.put(to.node.output[0], given)


def _cast(to: Writer) -> None:
    """Of weights, which stay as they are stored; floats are floats already."""
    given = to.held(0)
    if to.setting("to", 0) != FLOAT and isinstance(given, Computed):
        to.refuse("turns floats into another type")
    if isinstance(given, Known) and given.values.dtype.name not in SMALL:
        to.refuse(f"turns {given.values.dtype.name} into another type")
    _pass(to)


def _single(kind: str, **options: Any) -> Callable[[Writer], None]:
    return lambda to: to.made(kind, [to.floats(to.computed())], to.node.output[0], **options)


def _clip(to: Writer) -> None:
    if to.ends(to.node) != (0.0, 6.0):
        to.refuse("clips to other limits than 0 and 6")
    _single("RELU6")(to)


def _softmax(to: Writer) -> None:
    rank = len(to.computed().shape)
    if to.setting("axis", -1) % rank != (1 if rank == 4 else rank - 1):
        to.refuse("is taken over another axis than the last")
    _single("SOFTMAX", beta=1.0)(to)


def _pass(to: Writer) -> None:
    given = to.held(0)
    assert given is not None
    to.put(to.node.output[0], given)


def _constant(to: Writer) -> None:
    from onnx import numpy_helper

    to.put(to.node.output[0], Known(numpy_helper.to_array(to.setting("value", None))))


WRITERS: dict[str, Callable[[Writer], None]] = {
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), _mean),
    **dict.fromkeys(SHAPED, _reshape),
    **dict.fromkeys(("Identity", "Dropout"), _pass),
    **{name: _single(kind) for name, kind in (*CURVES.items(), ("Relu", "RELU"))},
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _product,
    "Add": _two("ADD"),
    "Sub": _two("SUB"),
    "Mul": _two("MUL"),
    "Div": _quotient,
    "Transpose": _transpose,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Cast": _cast,
    "Clip": _clip,
    "Softmax": _softmax,
    "Constant": _constant,
}
