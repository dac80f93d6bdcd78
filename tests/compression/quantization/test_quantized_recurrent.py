"""Recurrent layers with quantised weights: torch with the dequantised weights, in torch and in the file."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sequence_cases import SHAPE, difference, drawn, made, through_json
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module
from crushproof.compression.footprint.payload import decode, encode
from crushproof.compression.quantization.quantized_recurrent import QuantizedRecurrent, quantize_recurrent
from crushproof.compression.quantization.weight_codes import SIXTEEN_BITS, WeightFormat
from crushproof.targets.errors import NotApplicable
from crushproof.targets.runtimes.onnx import OnnxTarget

FORMATS = {
    "int8": WeightFormat(),
    "int4 groups": WeightFormat(bits=4, granularity="group", group_size=5),
    "int2 tensor": WeightFormat(bits=2, granularity="tensor"),
    "fixed point": WeightFormat("fixed-point"),
    "ternary": WeightFormat("ternary"),
    "binary": WeightFormat("binary"),
    "float16": WeightFormat("float16"),
    "bfloat16": WeightFormat("bfloat16"),
}


class Recurrent(nn.Module):
    """Uses all that a recurrent layer gives: outputs, last states, and perhaps initial ones."""

    def __init__(self, layer: nn.Module, states: bool) -> None:
        super().__init__()
        self.layer, self.states = layer, states

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        n = x.shape[0]  # len(x) would be a constant in the exported file
        layer: Any = self.layer
        state: Any = None
        if self.states:
            state = torch.full((layer.num_layers * (2 if layer.bidirectional else 1), n, layer.hidden_size), 0.3)
            state = (state, -state) if layer_kind(layer) == "LSTM" else state
        outputs, last = layer(x if layer.batch_first else x.transpose(0, 1), state)
        parts = [outputs if layer.batch_first else outputs.transpose(0, 1)]
        parts += [each.transpose(0, 1) for each in (last if isinstance(last, tuple) else (last,))]
        return torch.cat([part.flatten(1) for part in parts], 1)


def layer_kind(layer: Any) -> str:
    return layer.kind if hasattr(layer, "kind") else type(layer).__name__


def by_hand(layer: nn.LSTM | nn.GRU, quantized: QuantizedRecurrent, format: WeightFormat) -> nn.Module:
    """torch's own layer with weights dequantised in numpy: code * scale, of its row, tensor or run of group_size."""
    reference = copy.deepcopy(layer)
    for name, parameter in reference.named_parameters():
        if not name.startswith("weight"):
            continue
        codes = quantized.get_buffer(f"{name}_codes")
        if format.number in SIXTEEN_BITS:
            rounded = parameter.detach().to(SIXTEEN_BITS[format.number]).float()
            parameter.data.copy_(rounded)
            continue
        scale = quantized.get_buffer(f"{name}_scale").numpy()
        value = np.zeros(codes.shape, dtype=np.float32)
        for row, column in np.ndindex(*codes.shape):
            unit = {"tensor": 0, "channel": row, "group": (row, column // format.group_size)}[format.granularity]
            value[row, column] = np.float32(codes[row, column].item()) * scale[unit]
        parameter.data.copy_(torch.from_numpy(value))
    return reference


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_quantized_recurrent(kind: type[nn.LSTM | nn.GRU], format: WeightFormat) -> None:
    """torch's own layer with the dequantised weights: outputs, states and gradients; the same in ONNX Runtime."""
    # One of the eight combinations per format, all of them over the formats.
    formats = list(FORMATS.values())
    bidirectional, batch_first, states = list(itertools.product([False, True], repeat=3))[formats.index(format)]
    layer = made(lambda: kind(8, 6, 2, bidirectional=bidirectional, batch_first=batch_first, bias=not states))
    assert isinstance(layer, nn.LSTM | nn.GRU)
    quantized = quantize_recurrent(layer, format)
    reference = Recurrent(by_hand(layer, quantized, format), states)
    module = Recurrent(quantized, states).eval()
    x = [drawn(3, *SHAPE).requires_grad_(True) for _ in range(2)]
    outputs = [model(each) for model, each in zip((module, reference), x, strict=True)]
    assert difference(*outputs) < 1e-5
    for output in outputs:
        output.square().sum().backward()
    assert float(x[0].grad.abs().min()) > 0
    assert difference(x[0].grad, x[1].grad) < 1e-4

    file = to_onnx(module, SHAPE)
    assert file == to_onnx(module, SHAPE)
    for n in (1, 5):  # the batch axis is free
        x_n = drawn(n, *SHAPE, seed=n)
        assert difference(OnnxTarget(file).logits(x_n), module(x_n).detach()) < 1e-5
    again = load_module(Recurrent(copy.deepcopy(layer), states), *through_json(module))
    assert torch.equal(again(x[0]), outputs[0])
    decoded = decode(encode(module), again)
    assert all(torch.equal(decoded[name], value) for name, value in module.state_dict().items())


def test_file_holds_integers(trained: dict[str, nn.Module]) -> None:
    """Every matrix of the shipped LSTM is int8 behind a DequantizeLinear; no float tensor of its size is there."""
    module = copy.deepcopy(trained["lstm"])
    module.lstm = quantize_recurrent(module.lstm, WeightFormat())
    graph = onnx.load_model_from_string(to_onnx(module, SHAPE)).graph
    lstm = next(node for node in graph.node if node.op_type == "LSTM")
    producers = {name: node for node in graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    for name in lstm.input[1:3]:
        node = producers[name]
        while node.op_type == "Unsqueeze":
            node = producers[node.input[0]]
        assert node.op_type == "DequantizeLinear"
        assert held[node.input[0]].data_type == onnx.TensorProto.INT8
    floats = [int(np.prod(t.dims)) for t in held.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert max(floats) <= 32 * 10  # the head; the LSTM's matrices have 128 * 8 and 128 * 32 weights


def test_macs_of_a_recurrent_layer() -> None:
    """8 steps, each a product with [24, 8] and [24, 6] and then, in the second layer, two with [24, 6]."""
    quantized = quantize_recurrent(nn.LSTM(8, 6, 2, batch_first=True), WeightFormat(bits=4))
    x = torch.zeros(5, 8, 8)
    assert quantized.operations((x,), quantized(x)) == (8 * (24 * 8 + 3 * 24 * 6), 4, 32)


def test_recurrent_refusals() -> None:
    with pytest.raises(NotApplicable, match="proj_size"):
        quantize_recurrent(nn.LSTM(8, 6, proj_size=3), WeightFormat())
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 8)])
    with pytest.raises(NotApplicable, match="packed"):
        quantize_recurrent(nn.GRU(8, 6), WeightFormat())(packed)
