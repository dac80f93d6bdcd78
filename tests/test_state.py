"""Models that remember: no answer may depend on what was asked before, and what cannot be helped is flagged."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

from crushproof.targets.foreign import read_foreign
from crushproof.targets.litert import LiteRtTarget
from crushproof.targets.seeds import generator, global_seed

STEPS, FEATURES, HIDDEN, CLASSES = 4, 5, 6, 3


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(STEPS * HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0].flatten(1))
        return logits


@pytest.fixture(scope="module")
def network() -> Network:
    with global_seed(0, "test"):
        return Network().eval().requires_grad_(False)


def tflite_lstm(network: Network, batch: int = 1) -> bytes:
    """The network as converters write it: one fused operator whose states [batch, hidden] are variable tensors."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    graph.tensors, graph.inputs = [], [0]

    def tensor(name: str, shape: list[int], values: Tensor | None = None, variable: bool = False) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.isVariable = name, shape, schema.TensorType.FLOAT32, variable
        made.buffer = 0
        if values is not None:
            made.buffer = len(model.buffers)
            held = schema.BufferT()
            held.data = np.frombuffer(values.numpy().astype(np.float32).tobytes(), np.uint8)
            model.buffers.append(held)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def constants(name: str, values: Tensor) -> list[int]:
        parts = values.chunk(4)  # torch: input, forget, cell, output, as TFLite has them
        return [tensor(f"{name}{at}", list(part.shape), part.contiguous()) for at, part in enumerate(parts)]

    def operator(number: int, inputs: list[int], output: int, options: tuple[int, object]) -> schema.OperatorT:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = number, inputs, [output]
        made.builtinOptionsType, made.builtinOptions = options
        return made

    lstm, head = network.lstm, network.head
    given = tensor("x", [batch, STEPS, FEATURES])
    weights = constants("w", lstm.weight_ih_l0) + constants("r", lstm.weight_hh_l0)
    biases = constants("b", lstm.bias_ih_l0 + lstm.bias_hh_l0)
    states = [tensor(name, [batch, HIDDEN], variable=True) for name in ("h", "c")]
    inner = tensor("inner", [batch, STEPS, HIDDEN])
    last = [tensor("head", [CLASSES, STEPS * HIDDEN], head.weight), tensor("bias", [CLASSES], head.bias)]
    logits = tensor("logits", [batch, CLASSES])
    settings = schema.UnidirectionalSequenceLSTMOptionsT()
    settings.fusedActivationFunction = schema.ActivationFunctionType.TANH
    kinds = (schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM, schema.BuiltinOperator.FULLY_CONNECTED)
    model.operatorCodes = []
    for kind in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 1
        model.operatorCodes.append(code)
    every = [given, *weights, -1, -1, -1, *biases, -1, -1, *states]
    graph.operators = [
        operator(0, every, inner, (schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions, settings)),
        operator(
            1, [inner, *last], logits, (schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT())
        ),
    ]
    graph.outputs = [logits]
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def drawn(n: int, seed: int = 0) -> Tensor:
    return torch.randn((n, STEPS, FEATURES), generator=generator(seed, "test"))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_tflite_lstm_forgets_between_records(network: Network, batch: int, tmp_path: Path) -> None:
    """Answers are torch's own, in any order and however often; LiteRT itself would answer otherwise."""
    path = tmp_path / "lstm.tflite"
    path.write_bytes(tflite_lstm(network, batch))
    found = read_foreign(path)
    target, x = LiteRtTarget(found.data), drawn(8)
    wanted = network(x)
    for order in (torch.arange(8), torch.arange(8), torch.arange(8).flip(0), torch.randperm(8)):
        torch.testing.assert_close(target.logits(x[order]), wanted[order], rtol=1e-4, atol=1e-5)

    plain = Interpreter(model_content=found.data, num_threads=1)
    plain.allocate_tensors()
    answers = []
    for _ in range(2):
        plain.set_tensor(plain.get_input_details()[0]["index"], x[:batch].numpy())
        plain.invoke()
        answers.append(plain.get_tensor(plain.get_output_details()[0]["index"]).copy())
    assert np.abs(answers[0] - answers[1]).max() > 0.01
