"""QONNX's quantisers, as the definitions say (see `untrusted/_qonnx.py`); the runtime is given them written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...untrusted._qonnx import DOMAINS, bipolar, limits
from ..nodes import FLOAT, Function, Node, operator
from ..rounding import rounded

LEAK = 0.1  # the slope beyond both ends of a quantiser, and beyond one unit of a sign: few bits are mostly at an end
_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "ROUND": torch.round,
    "HALF_EVEN": torch.round,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "UP": lambda x: x.sign() * x.abs().ceil(),
    "DOWN": torch.trunc,
    "ROUND_TO_ZERO": torch.trunc,
    "HALF_UP": lambda x: x.sign() * (x.abs() + 0.5).floor(),
    "HALF_DOWN": lambda x: x.sign() * (x.abs() - 0.5).ceil(),
}


def _register(*names: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for domain in DOMAINS:
            operator(*names, result=FLOAT, rounds=True, domain=domain)(function)
        return function

    return register


def _whole(node: Node, x: Tensor, mode: str, low: float = -torch.inf, high: float = torch.inf) -> Tensor:
    """x cut off at both ends and rounded; straight through within them, and a little of it beyond."""
    held = x.detach().clamp(low, high)
    window = torch.where(held == x.detach(), 1.0, LEAK) if x.requires_grad else None
    return rounded(x, _ROUNDINGS[mode](held), node.straight_through, window)


def _ends(node: Node, bits: Tensor) -> tuple[float, float, int]:
    """The lowest and the highest code, and the bits; the bit width is a constant, so that one look is enough."""
    if "ends" not in node.attributes:
        width = int(bits)
        signed, narrow = bool(node.get("signed", 1)), bool(node.get("narrow", 0))
        node.attributes["ends"] = (*limits(signed, narrow, width), width)
    found: tuple[float, float, int] = node.attributes["ends"]
    return found


def _signs(node: Node, x: Tensor) -> Tensor:
    """+1 from 0 on, -1 below; the slope is 1 within one unit of 0, as such networks are trained, and less beyond."""
    value = torch.where(x.detach() >= 0, 1.0, -1.0)
    window = torch.where(x.detach().abs() <= 1, 1.0, LEAK)
    return rounded(x, value, node.straight_through, window)


@_register("Quant", "IntQuant")
def quant(node: Node, x: Tensor, scale: Tensor, zero: Tensor, bits: Tensor) -> Tensor:
    low, high, width = _ends(node, bits)
    shifted = not node.constant[2] or bool(zero.any())
    codes = x / scale + zero if shifted else x / scale
    if bipolar(bool(node.get("signed", 1)), width):
        codes = _signs(node, codes)
    else:
        codes = _whole(node, codes, node.get("rounding_mode", "ROUND").upper(), low, high)
    return (codes - zero) * scale


@_register("BipolarQuant")
def bipolar_quant(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    return _signs(node, x) * scale


@_register("Trunc")
def trunc(node: Node, x: Tensor, scale: Tensor, zero: Tensor, bits: Tensor, *rest: Tensor) -> Tensor:
    mode = node.get("rounding_mode", "FLOOR").upper()
    codes = _whole(node, x / scale + zero, "ROUND")
    if len(rest) == 1:  # version 1: bits before and after
        return (_whole(node, codes / 2.0 ** (int(bits) - int(rest[0])), mode) - zero) * scale
    factor = torch.exp2((rest[0] / scale).log2().round())
    low, high, _ = _ends(node, rest[1])
    return (_whole(node, codes / factor, mode, low, high) - zero / factor) * rest[0]
