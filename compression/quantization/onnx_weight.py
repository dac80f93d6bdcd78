"""How a quantised weight is written into an ONNX graph: its integers in the smallest type, and what widens them."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from .weight_codes import WeightFormat


def weight_operator(g: Any, format: WeightFormat, of: dict[str, Any], *, widen: bool) -> Any:
    """A weight in float32, of the shape that its codes have in the file.

    Args:
        of: `codes`, and unless it is a 16-bit float `weight_scale` and `weight_zero_point`.
        widen: see `int8_codes`; float products need it not.
    """
    if "weight_scale" not in of:
        ship(of["codes"], format.number.upper())  # the operator becomes a Cast
        return g.op("DequantizeLinear", of["codes"], g.op("Constant", value_t=torch.tensor(1.0)))
    if format.granularity == "group":
        ship(of["codes"], _stored(format), block_size=format.group_size)
        return g.op("DequantizeLinear", of["codes"], of["weight_scale"], axis_i=1)
    axis = {} if format.granularity == "tensor" else {"axis_i": 0}
    if widen:  # runtimes look for the zero point when they fuse
        return g.op("DequantizeLinear", int8_codes(format, of), of["weight_scale"], of["weight_zero_point"], **axis)
    ship(of["codes"], _stored(format))
    return g.op("DequantizeLinear", of["codes"], of["weight_scale"], **axis)


def int8_codes(format: WeightFormat, of: dict[str, Any]) -> Any:
    """Codes in int8, which integer kernels want; smaller ones ship small, and the runtime widens them on loading."""
    ship(of["codes"], _stored(format), widen=True)
    return of["codes"]


def _stored(format: WeightFormat) -> str:
    """ONNX's smallest type that holds the format's codes and that runtimes take."""
    return {1: "INT2", 2: "INT2", 3: "INT4", 4: "INT4", 8: "INT8"}[format.width]


@dataclass(frozen=True)
class Shipping:
    """How a constant that torch exports as int8 or int16 is written in the file."""

    kind: str
    widen: bool = False  # by a Cast to int8
    block_size: int = 0


# By name of the constant. torch's exporter neither knows small types and blocks nor infers shapes beyond operators that
# it does not know, so they are written once it is done.
SHIPPINGS: ContextVar[dict[str, Shipping]] = ContextVar("SHIPPINGS")


def ship(constant: Any, kind: str, *, widen: bool = False, block_size: int = 0) -> None:
    SHIPPINGS.get()[constant.debugName()] = Shipping(kind, widen and kind != "INT8", block_size)


def element_type(name: str) -> int:
    """ONNX's number of a type of element."""
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(name))
