"""What the operators of a twin share: the node they read, the table they are found in, sizes that stay within a cap.

Values of a running twin are torch tensors. Floats of every width are float32. Quantised integers (8 bits and fewer, and
what Cast makes of floats) are float32 tensors that hold integers, so that gradients can pass; indices, sizes and int32
constants are int64; truth values are bool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..errors import NotApplicable, UnsafeInput
from .rounding import tracing

CAP = 2**28  # elements of one tensor that the file, not the caller's records, decides the size of
MICROSOFT = "com.microsoft"

# Numbers of onnx.TensorProto.DataType; they are part of the file format.
FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64, BOOL, FLOAT16, DOUBLE = 1, 2, 3, 4, 5, 6, 7, 9, 10, 11
UINT32, UINT64, BFLOAT16, UINT4, INT4, UINT2, INT2 = 12, 13, 16, 21, 22, 25, 26
FLOATS = {FLOAT: torch.float32, DOUBLE: torch.float32, FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}
INTEGERS = {
    UINT4: (0, 15),
    INT4: (-8, 7),
    UINT2: (0, 3),
    INT2: (-2, 1),
    UINT8: (0, 255),
    INT8: (-128, 127),
    UINT16: (0, 2**16 - 1),
    INT16: (-(2**15), 2**15 - 1),
    INT32: (-(2**31), 2**31 - 1),
    UINT32: (0, 2**32 - 1),
    INT64: (-(2**63), 2**63 - 1),
    UINT64: (0, 2**64 - 1),
}

Result = Tensor | tuple[Tensor | None, ...] | list[Tensor]
Function = Callable[..., Result]
RecordAxis = Literal["first", "second", "outer", "inner", "whole"]
"""Where records are: along the first or second axis, or sharing the first with others, outside or inside of them."""


@dataclass
class Node:
    """One node of the graph, without its protobuf message.

    `types` are the element types (numbers of the format) of its inputs, None where they are not known; `given` and
    `constant` whether each input is there, and is a constant; `outputs` counts those that are used, up to the last.
    `soft` marks a comparison whose truth values are computed with, not chosen by (see twin_rounding). `records` and
    `layouts` are for nodes that measure the range of their input: how many records pass, set for each pass, and where
    they are, by the number of axes (see `twin_dynamic`); None: it was not found out.
    """

    operator: str
    name: str
    opset: int
    attributes: dict[str, Any] = field(default_factory=dict)
    types: tuple[int | None, ...] = ()
    given: tuple[bool, ...] = ()
    constant: tuple[bool, ...] = ()
    outputs: int = 1
    straight_through: bool = True
    soft: bool = False
    records: int = 1
    layouts: dict[int, RecordAxis] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def has(self, at: int) -> bool:
        return at < len(self.given) and self.given[at]

    def refuse(self, reason: str) -> NoReturn:
        raise NotApplicable(
            f"The twin cannot follow the operator {self.operator} (node {self.name!r}, opset {self.opset}): {reason}. "
            "Attacks that need no gradients still work; or export the model with standard operators of opset 13 to 21."
        )


@dataclass(frozen=True)
class Operator:
    """`structural`: the inputs that say where and how large, handed over as lists; negative: from there to the end.

    `result`: the element type of the outputs; None is the first input's. `rounds`: whether its gradient is not its own.
    """

    function: Function
    structural: tuple[int, ...]
    result: int | Callable[[Node], int | None] | None
    rounds: bool


OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(
    *names: str,
    structural: Sequence[int] = (),
    result: int | Callable[[Node], int | None] | None = None,
    rounds: bool = False,
    domain: str = "",
) -> Callable[[Function], Function]:
    """Decorator: `function(node, *inputs)` computes these operators. An input that is left out is None."""

    def register(function: Function) -> Function:
        for name in names:
            OPERATORS[domain, name] = Operator(function, tuple(structural), result, rounds)
        return function

    return register


def integers(value: Any) -> list[Any]:
    """Sizes or positions as a list. While torch traces, computed ones stay tensors, so that no batch size is fixed."""
    if value is None or isinstance(value, list):
        return value or []
    flat = value.reshape(-1)
    if tracing():
        return list(flat.unbind(0))
    return [int(item) for item in flat.tolist()]


def capped(shape: Sequence[Any]) -> list[Any]:
    """`shape` as it is; UnsafeInput where a tensor of it would not fit any honest model."""
    if not tracing() and math.prod(max(int(size), 0) for size in shape) > CAP:
        raise UnsafeInput(
            f"The model asks for a tensor of shape {[int(size) for size in shape][:8]}, more than {CAP:,} "
            "elements. It was refused. Export the model again, or fetch the file again."
        )
    return list(shape)


def like(x: Tensor) -> Tensor:
    """A bool or int64 tensor as float32; floats as they are."""
    return x if x.is_floating_point() else x.float()


def indices(x: Tensor) -> Tensor:
    return x if x.dtype == torch.int64 else x.long()


def constant(array: np.ndarray[Any, Any], element: int, what: str) -> Tensor:
    """An initialiser or a constant as the tensor a twin holds (see the module's docstring)."""
    if element in FLOATS or element in (UINT8, INT8, UINT16, INT16, UINT4, INT4, UINT2, INT2):
        return torch.from_numpy(np.array(array, dtype=np.float32))
    if element in (INT32, INT64, UINT32):
        return torch.from_numpy(np.array(array, dtype=np.int64))
    if element == BOOL:
        return torch.from_numpy(np.array(array, dtype=np.bool_))
    raise NotApplicable(
        f"The constant {what!r} of the ONNX model has elements of type {element} (onnx.TensorProto.DataType), which "
        "the twin does not follow. Store it as float32 or as an integer type."
    )
