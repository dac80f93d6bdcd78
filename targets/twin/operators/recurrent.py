"""LSTM, GRU and RNN of ONNX as torch's layers: the same equations, other orders of gates and axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...model import differentiable
from ..dynamic import dynamic_codes
from ..nodes import FLOAT, MICROSOFT, Node, operator
from .layers import LAYERS, Constants, Layer
from .quantized import EXACT

_GATES = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}  # ONNX: i o f c, z r h; torch: i f g o, r z n
_SQUASHING = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def reordered(operator_name: str, weight: Tensor, hidden: int) -> Tensor:
    """Rows [gates * hidden, ...] from ONNX's order of gates to torch's."""
    return torch.cat([weight[gate * hidden : (gate + 1) * hidden] for gate in _GATES[operator_name]])


def make_recurrent(node: Node, values: Constants, rank: int | None) -> Layer | None:
    """Inputs: X [steps, n, in], W [directions, gates * hidden, in], R [directions, gates * hidden, hidden], B, lengths,
    initial h, initial c, peepholes P."""
    weight, recurrence = values[1], values[2]
    bias = values[3] if len(values) > 3 else None
    if weight is None or recurrence is None or (node.has(3) and bias is None):
        return None
    layer, state = _layer(node, weight, recurrence, bias)
    layer.load_state_dict(state)
    return layer, _run


def _layer(node: Node, weight: Tensor, recurrence: Tensor, bias: Tensor | None) -> tuple[nn.RNNBase, dict[str, Tensor]]:
    """torch's layer, and the parameters that it is to have."""
    kind, hidden = node.operator, node.get("hidden_size")
    _check(node)
    directions = weight.shape[0]
    if kind == "GRU" and not node.get("linear_before_reset", 0):
        node.refuse("linear_before_reset is 0, which torch's GRU does not compute")
    layers: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
    extra: dict[str, Any] = {}
    if kind == "RNN":
        activations = [_word(item) for item in node.get("activations", ["Tanh"])]
        extra["nonlinearity"] = activations[0]
    layer = layers[kind](weight.shape[2], hidden, bias=bias is not None, bidirectional=directions == 2, **extra)
    state: dict[str, Tensor] = {}
    for direction in range(directions):
        end = "_reverse" if direction else ""
        state[f"weight_ih_l0{end}"] = reordered(kind, weight[direction], hidden)
        state[f"weight_hh_l0{end}"] = reordered(kind, recurrence[direction], hidden)
        if bias is not None:
            both = bias[direction].chunk(2)
            state[f"bias_ih_l0{end}"] = reordered(kind, both[0], hidden)
            state[f"bias_hh_l0{end}"] = reordered(kind, both[1], hidden)
    return layer, state


def _check(node: Node) -> None:
    kind, directions = node.operator, 2 if node.get("direction", "forward") == "bidirectional" else 1
    activations = [_word(item) for item in node.get("activations", _SQUASHING[kind] * directions)]
    plain = [_SQUASHING[kind] * directions]
    if kind == "RNN":
        plain.append(["relu"] * directions)
    if activations not in plain:
        node.refuse(f"its activations are {activations}")
    if node.get("clip") is not None or node.get("input_forget", 0):
        node.refuse("it clips or couples its gates")
    if node.has(7):
        node.refuse("it has peepholes")


def _word(text: str | bytes) -> str:
    return (text.decode() if isinstance(text, bytes) else text).lower()


def _run(
    node: Node,
    layer: nn.Module,
    x: Tensor,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    parameters: dict[str, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Y [steps, directions, n, hidden], Y_h [directions, n, hidden], for an LSTM Y_c."""
    if node.get("layout", 0):
        x = x.transpose(0, 1)
        hidden, cell = (None if item is None else item.transpose(0, 1) for item in (hidden, cell))
    steps, records = x.shape[:2]
    if lengths is not None and not bool((lengths == steps).all()):
        node.refuse("its sequences are of different lengths")
    backwards = node.get("direction", "forward") == "reverse"
    directions = 2 if node.get("direction", "forward") == "bidirectional" else 1
    if backwards:
        x = x.flip(0)
    size = node.get("hidden_size")
    state: object = None
    if hidden is not None or cell is not None:
        zeros = x.new_zeros(directions, records, size)
        first = zeros if hidden is None else hidden.expand(directions, records, size).contiguous()
        second = zeros if cell is None else cell.expand(directions, records, size).contiguous()
        state = (first, second) if node.operator == "LSTM" else first
    with differentiable(layer):
        outputs, last = functional_call(layer, parameters or {}, (x, state))
    y = outputs.view(steps, records, directions, size).transpose(1, 2)
    ends = last if isinstance(last, tuple) else (last,)
    if backwards:
        y = y.flip(0)
    if node.get("layout", 0):
        y = y.permute(2, 0, 1, 3)
        ends = tuple(item.transpose(0, 1) for item in ends)
    return (y, *ends)


@operator("LSTM", "GRU", "RNN")
def recurrent(
    node: Node, x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None = None, *states: Tensor | None
) -> tuple[Tensor, ...]:
    """Of weights that are no constants: those of which single bits are flipped."""
    layer, parameters = _layer(node, weight, recurrence, bias)
    lengths, hidden, cell, _ = (*states, None, None, None, None)[:4]
    return _run(node, layer, x, lengths, hidden, cell, parameters)


LAYERS.update(dict.fromkeys(_GATES, (make_recurrent, (1, 2, 3, 7))))


@operator("DynamicQuantizeLSTM", result=FLOAT, rounds=True, domain=MICROSOFT)
def dynamic_quantize_lstm(
    node: Node,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    hidden: Tensor | None,
    cell: Tensor | None,
    peepholes: Tensor | None,
    weight_scale: Tensor,
    weight_zero: Tensor,
    recurrence_scale: Tensor,
    recurrence_zero: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ONNX Runtime's dynamic quantiser makes of an LSTM: W [directions, in, 4 hidden] and R in 8 bits, the input
    rounded once to 8 bits, the hidden state in every step; both over the range of each record."""
    node.operator = "LSTM"  # the same settings are refused, in the same words
    _check(node)
    node.operator = "DynamicQuantizeLSTM"
    if lengths is not None and not bool((lengths == x.shape[0]).all()):
        node.refuse("its sequences are of different lengths")
    size, direction = node.get("hidden_size"), node.get("direction", "forward")
    sides, ends = [], []
    for side in range(2 if direction == "bidirectional" else 1):
        backwards = direction == "reverse" or side == 1
        inputs = x.flip(0) if backwards else x
        w = _scaled(weight[side], weight_scale, weight_zero, side)
        r = _scaled(recurrence[side], recurrence_scale, recurrence_zero, side)
        gates_in = _dynamic_product(node, inputs, *w)
        if bias is not None:
            gates_in = gates_in + bias[side, : 4 * size] + bias[side, 4 * size :]
        zeros = x.new_zeros(x.shape[1], size)
        h = zeros if hidden is None else hidden[side]
        c = zeros if cell is None else cell[side]
        outputs = []
        for step in gates_in:
            i, o, f, g = (step + _dynamic_product(node, h, *r)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        y = torch.stack(outputs)
        sides.append(y.flip(0) if backwards else y)
        ends.append((h, c))
    last = [torch.stack([end[at] for end in ends]) for at in (0, 1)]
    return torch.stack(sides, 1), last[0], last[1]


def _scaled(codes: Tensor, scale: Tensor, zero: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Codes without their zero point, and the scale: of one direction, for the whole or per gate."""
    scale, zero = (item if item.dim() == 0 else item[side if len(item) > 1 else 0] for item in (scale, zero))
    return codes - zero, scale


def _dynamic_product(node: Node, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    codes, x_scale, x_zero = dynamic_codes(node, x)
    precision = torch.float32 if len(weight) * 255 * 128 < EXACT else torch.float64
    total = (codes - x_zero).to(precision) @ weight.to(precision)
    return (total * (x_scale * scale)).float()
