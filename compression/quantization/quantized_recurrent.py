"""Recurrent layers with quantised weights: LSTM and GRU whose matrices are integers and scales.

Weights only: inputs, states and gates stay in float32, as in ONNX Runtime's own LSTM and GRU kernels, which take float
weights. The file holds the integers behind a DequantizeLinear each; what they save is storage and transfer.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable
from ...targets.model import device_of
from ..layers.edit import REBUILDABLE, rebuildable
from ..layers.recurrent import GATES, SETTINGS, Kind, Last, Recurrent, State, settings_of
from .onnx_weight import weight_operator
from .weight_codes import (
    SIXTEEN_BITS,
    Bits,
    Granularity,
    Number,
    Rounding,
    WeightFormat,
    half_bits,
    spread_scale,
    weight_codes,
)


@rebuildable("kind", *SETTINGS, "number", "bits", "granularity", "group_size")
class QuantizedRecurrent(Recurrent):
    """An nn.LSTM or nn.GRU with quantised weights, called as they are: (output, last states).

    Buffers per matrix, named as torch names the weight (`weight_ih_l0`, `weight_hh_l0`, `weight_ih_l0_reverse` ...):
    `<name>_codes` int8 [gates * hidden, in] and `<name>_scale` float32 (`WeightFormat.scale_shape`), or, in a 16-bit
    format, `<name>_codes` int16, the values' bit patterns, and no scale. Biases are float32 under torch's names.

    Args:
        kind, input_size ... bidirectional: of the layer in torch. There is no `proj_size`.
        number, bits, granularity, group_size: of `WeightFormat`.
    """

    def __init__(
        self,
        kind: Kind,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        number: Number = "integer",
        bits: Bits = 8,
        granularity: Granularity = "channel",
        group_size: int = 32,
    ) -> None:
        super().__init__(kind, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        self.number, self.bits, self.granularity, self.group_size = number, bits, granularity, group_size
        for name, shape in self.shapes():
            if number in SIXTEEN_BITS:
                self.register_buffer(f"{name}_codes", torch.zeros(shape, dtype=torch.int16))
            else:
                self.register_buffer(f"{name}_codes", torch.zeros(shape, dtype=torch.int8))
                self.register_buffer(f"{name}_scale", torch.ones(self.format.scale_shape(shape)))
            if bias:
                self.register_buffer(name.replace("weight", "bias"), torch.zeros(shape[0]))

    @property
    def format(self) -> WeightFormat:
        return WeightFormat(self.number, self.bits, self.granularity, self.group_size)

    @property
    def weight_bits(self) -> int:
        return self.format.width

    def whole(self, name: str) -> Tensor:
        codes: Tensor = self.get_buffer(f"{name}_codes")
        if self.number in SIXTEEN_BITS:
            return codes.view(SIXTEEN_BITS[self.number]).float()
        scale = self.get_buffer(f"{name}_scale")
        return codes * spread_scale(scale, tuple(codes.shape), self.group_size)

    def shipped(self) -> nn.Module:
        return _Shipped(self)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.input_size}, {self.hidden_size}, layers={self.num_layers}, {self.format}"


def quantize_recurrent(
    layer: nn.LSTM | nn.GRU,
    format: WeightFormat,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
) -> QuantizedRecurrent:
    """The stand-in of a recurrent layer with quantised weights and float activations, on its device.

    Args:
        format: of every matrix, input to hidden and hidden to hidden, of each layer and direction.
        generator: a CPU generator; needed for stochastic rounding only.

    Raises:
        NotApplicable: an LSTM projects its states (`proj_size`).
    """
    if layer.proj_size:
        raise NotApplicable("An LSTM of the model projects its hidden states (proj_size), which cannot be quantized.")
    quantized = QuantizedRecurrent(**settings_of(layer), **asdict(format)).to(device_of(layer))
    for name, _ in quantized.shapes():
        weight = layer.get_parameter(name).detach()
        if format.number in SIXTEEN_BITS:
            setattr(quantized, f"{name}_codes", half_bits(weight, format.number))
        else:
            codes, scale = weight_codes(weight, format, rounding, generator)
            setattr(quantized, f"{name}_codes", codes)
            setattr(quantized, f"{name}_scale", scale)
        if layer.bias:
            bias = name.replace("weight", "bias")
            setattr(quantized, bias, layer.get_parameter(bias).detach().clone())
    return quantized.train(layer.training)


class _Shipped(nn.Module):
    """A quantised recurrent layer during export: the tensors that go into the file, gates in ONNX's order.

    Per matrix `<name>_codes`, `<name>_scale` and `<name>_zero_point`; per layer `bias_l0` ... float32
    [directions, 2 * gates * hidden].
    """

    def __init__(self, layer: QuantizedRecurrent) -> None:
        super().__init__()
        for name in REBUILDABLE[type(layer)]:  # the model around it may ask for them
            setattr(self, name, getattr(layer, name))
        self.format = layer.format  # tells which opset the file needs
        self.layer, self.flat = [layer], layer.flat_weights()  # in lists, so that they are no part of the file
        directions = 2 if layer.bidirectional else 1
        biases: list[list[Tensor]] = [[] for _ in range(layer.num_layers)]
        for position, (name, (rows, _)) in enumerate(layer.shapes()):
            order = torch.arange(rows).view(-1, layer.hidden_size)[list(GATES[layer.kind])].flatten()
            self.register_buffer(f"{name}_codes", layer.get_buffer(f"{name}_codes")[order])
            if layer.number not in SIXTEEN_BITS:
                scale = layer.get_buffer(f"{name}_scale")
                scale = scale[0] if layer.granularity == "tensor" else scale[order]
                self.register_buffer(f"{name}_scale", scale)
                self.register_buffer(f"{name}_zero_point", torch.zeros(scale.shape, dtype=torch.int8))
            if layer.bias:
                biases[position // (2 * directions)].append(layer.get_buffer(name.replace("weight", "bias"))[order])
        if layer.bias:
            for number, parts in enumerate(biases):
                self.register_buffer(f"bias_l{number}", torch.cat(parts).view(directions, -1))

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, Last]:
        layer = self.layer[0]
        names, tensors = zip(*self.named_buffers(), strict=True)
        given = [] if state is None else layer.states(x, state)
        output, *last = _Recurrent.apply(x, layer, self.flat, names, len(given), *given, *tensors)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return output, last[0] if layer.kind == "GRU" else (last[0], last[1])


class _Recurrent(torch.autograd.Function):
    """Computes the layer in torch, and writes it down in ONNX: its codes, and the LSTM or GRU operator per layer."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: QuantizedRecurrent,
        flat: list[Tensor],
        names: tuple[str, ...],
        given: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        states = list(tensors[:given]) or layer.states(x, None)
        output, last = layer.run(x, states, flat)
        return (output, last) if isinstance(last, Tensor) else (output, *last)

    @staticmethod
    def symbolic(
        g: Any, x: Any, layer: QuantizedRecurrent, flat: Any, names: tuple[str, ...], given: int, *tensors: Any
    ) -> tuple[Any, ...]:
        of = dict(zip(names, tensors[given:], strict=True))
        absent = g.op("prim::Constant")  # how the exporter writes an optional input that is not given
        absent.setType(torch.OptionalType.ofTensor())
        directions = ["", "_reverse"] if layer.bidirectional else [""]
        if layer.batch_first:
            x = g.op("Transpose", x, perm_i=[1, 0, 2])
        last: list[list[Any]] = []
        for number in range(layer.num_layers):
            matrices = []
            for kind in ("ih", "hh"):
                parts = [_matrix(g, layer, f"weight_{kind}_l{number}{direction}", of) for direction in directions]
                matrices.append(parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis_i=0))
            first = number * len(directions)
            states = [_slice(g, state, first, first + len(directions)) for state in tensors[:given]]
            outputs = g.op(
                layer.kind,
                x,
                *matrices,
                of.get(f"bias_l{number}", absent),
                absent,  # lengths: all records are as long as x
                *states,  # without them zeros, however many records there are
                hidden_size_i=layer.hidden_size,
                direction_s="bidirectional" if layer.bidirectional else "forward",
                **({"linear_before_reset_i": 1} if layer.kind == "GRU" else {}),
                outputs=3 if layer.kind == "LSTM" else 2,
            )
            x = g.op("Transpose", outputs[0], perm_i=[0, 2, 1, 3])  # [steps, directions, n, hidden] in ONNX
            x = g.op("Reshape", x, g.op("Constant", value_t=torch.tensor([0, 0, -1])))
            last.append(list(outputs[1:]))
        if layer.batch_first:
            x = g.op("Transpose", x, perm_i=[1, 0, 2])
        return x, *(
            parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis_i=0) for parts in zip(*last, strict=True)
        )


def _matrix(g: Any, layer: QuantizedRecurrent, name: str, of: dict[str, Any]) -> Any:
    """A weight [1, gates * hidden, in] in the graph, float32."""
    own = {key.removeprefix(f"{name}_"): tensor for key, tensor in of.items() if key.startswith(f"{name}_")}
    own = {key if key == "codes" else f"weight_{key}": tensor for key, tensor in own.items()}
    return g.op(
        "Unsqueeze", weight_operator(g, layer.format, own, widen=False), g.op("Constant", value_t=torch.tensor([0]))
    )


def _slice(g: Any, states: Any, start: int, end: int) -> Any:
    bounds = [g.op("Constant", value_t=torch.tensor([number])) for number in (start, end, 0)]
    return g.op("Slice", states, *bounds)
