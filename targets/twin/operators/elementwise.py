"""Operators that act on each element: arithmetic, activations, comparisons, casts, choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nodes import BOOL, FLOATS, INTEGERS, MICROSOFT, Function, Node, indices, like, operator
from ..rounding import compared, rounded, signs, tracing

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    def call(node: Node, x: Tensor) -> Tensor:
        return function(x)

    return call


for _name, _function in _UNARY.items():
    operator(_name)(_unary(_function))


@operator("Identity", "Dropout")
def identity(node: Node, x: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Dropout at inference, with its mask of ones where the graph takes it."""
    return x, torch.ones_like(x, dtype=torch.bool) if node.outputs > 1 else None


@operator("Round", rounds=True)
def round_half_even(node: Node, x: Tensor) -> Tensor:
    return rounded(x, x.detach().round(), node.straight_through)


@operator("Floor", rounds=True)
def floor(node: Node, x: Tensor) -> Tensor:
    return rounded(x, x.detach().floor(), node.straight_through)


@operator("Ceil", rounds=True)
def ceil(node: Node, x: Tensor) -> Tensor:
    return rounded(x, x.detach().ceil(), node.straight_through)


@operator("Sign", rounds=True)
def sign(node: Node, x: Tensor) -> Tensor:
    return signs(x, node.straight_through) if x.is_floating_point() else x.sign()


@operator("Cast", result=lambda node: node.get("to"), rounds=True)
def cast(node: Node, x: Tensor) -> Tensor:
    target = node.get("to")
    if target == BOOL:
        return x != 0
    if target in FLOATS:
        half = FLOATS[target]
        return x.float() if half is torch.float32 else x.to(half).float()
    if target not in INTEGERS:
        node.refuse(f"it casts to the element type {target}")
    if not x.is_floating_point():
        return like(x) if target not in (6, 7, 12, 13) else x.long()
    return rounded(x, x.detach().trunc().clamp(*INTEGERS[target]), node.straight_through)


@operator("CastLike", result=lambda node: node.types[1], rounds=True)
def cast_like(node: Node, x: Tensor, other: Tensor) -> Tensor:
    if node.types[1] is None:
        node.refuse("the type it casts to is not known")
    node.attributes["to"] = node.types[1]
    return cast(node, x)  # type: ignore[return-value]  # Cast has one output


@operator("Add")
def add(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x + y


@operator("Sub")
def subtract(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x - y


@operator("Mul")
def multiply(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x * y


@operator("Div")
def divide(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if any(kind in INTEGERS for kind in node.types) or not (x.is_floating_point() or y.is_floating_point()):
        return torch.div(x, y, rounding_mode="trunc")
    return x / y


@operator("Mod")
def modulo(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if node.get("fmod", 0) else torch.remainder(x, y)


@operator("Pow")
def power(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if not isinstance(y, Tensor) or y.numel() != 1 or tracing():
        return x**y
    return x ** y.reshape(()) if y.dim() <= x.dim() else x**y


@operator("Max")
def maximum(node: Node, *values: Tensor) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = torch.maximum(*_same(result, value))
    return result


@operator("Min")
def minimum(node: Node, *values: Tensor) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = torch.minimum(*_same(result, value))
    return result


@operator("Sum")
def total(node: Node, *values: Tensor) -> Tensor:
    return _total(values)


@operator("Mean")
def mean(node: Node, *values: Tensor) -> Tensor:
    return _total(values) / len(values)


def _total(values: Sequence[Tensor]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result


def _same(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (x, y) if x.dtype == y.dtype else (like(x), like(y))


def _comparison(holds: Callable[[Tensor, Tensor], Tensor], rising: bool) -> Function:
    def call(node: Node, x: Tensor, y: Tensor) -> Tensor:
        if node.soft and x.is_floating_point():
            return compared(x, like(y), holds(x.detach(), y.detach()), rising, node.straight_through)
        return holds(x, y)

    return call


COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")  # those a binarised network may round with
for _name, _holds in zip(COMPARISONS, (torch.gt, torch.ge, torch.lt, torch.le), strict=True):
    operator(_name, result=BOOL, rounds=True)(_comparison(_holds, _name.startswith("Greater")))


@operator("Equal", result=BOOL)
def equal(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x == y


@operator("Not", result=BOOL)
def negation(node: Node, x: Tensor) -> Tensor:
    return 1 - x if x.is_floating_point() else ~x


@operator("And", result=BOOL)
def conjunction(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x.bool() & y.bool()


@operator("Or", result=BOOL)
def disjunction(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x.bool() | y.bool()


@operator("Xor", result=BOOL)
def exclusive(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x.bool() ^ y.bool()


@operator("IsNaN", result=BOOL)
def is_nan(node: Node, x: Tensor) -> Tensor:
    return x.isnan()


@operator("IsInf", result=BOOL)
def is_infinite(node: Node, x: Tensor) -> Tensor:
    positive, negative = node.get("detect_positive", 1), node.get("detect_negative", 1)
    return x.isinf() & ((x > 0) & bool(positive) | (x < 0) & bool(negative))


@operator("Where", result=lambda node: node.types[1], rounds=True)
def where(node: Node, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    x, y = _same(x, y)
    if not condition.is_floating_point():
        return torch.where(condition, x, y)
    chosen = torch.where(condition.detach() > 0.5, x, y)  # constants, chosen by a comparison with a gradient
    smooth = (x - y).nan_to_num(0.0, 0.0, 0.0) * condition
    return rounded(smooth, chosen, node.straight_through)


@operator("Clip")
def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if node.opset < 11:
        return x.clamp(node.get("min", -math.inf), node.get("max", math.inf))
    ends = [None if end is None else end.to(x.dtype).reshape(()) for end in (low, high)]
    if ends == [None, None]:
        return x
    if any(end is not None and end.requires_grad for end in ends):
        return x.clamp(*ends)
    return x.clamp(*(None if end is None else end.item() for end in ends))  # numbers take two thirds of the time


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def parametric_relu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.get("alpha", 1.0))


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    scaled: Tensor = gamma * F.elu(x, alpha)
    return scaled


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    line: Tensor = node.get("alpha", 0.2) * x + node.get("beta", 0.5)
    return line.clamp(0, 1)


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    bias, bound = node.get("bias", 0.0), node.get("lambd", 0.5)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


operator("Gelu", domain=MICROSOFT)(gelu)


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


operator("QuickGelu", domain=MICROSOFT)(
    lambda node, x: x * torch.sigmoid(node.get("alpha", 1.702) * x)  # the runtime's name for the same with 1.702
)


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _flattened(node: Node, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """Before opset 13 a softmax ran over all axes from `axis` on, flattened."""
    if node.opset >= 13:
        return function(x, dim=node.get("axis", -1))
    axis = node.get("axis", 1) % x.dim()
    return function(x.flatten(axis), dim=axis).view_as(x)


@operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    return _flattened(node, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    return _flattened(node, x, torch.log_softmax)


@operator("CumSum")
def cumulative_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    at = int(indices(axis))
    flipped = x.flip(at) if node.get("reverse", 0) else x
    result = flipped.cumsum(at)
    if node.get("exclusive", 0):
        result = result - flipped
    return result.flip(at) if node.get("reverse", 0) else result
