"""Models that remember: no answer may depend on what was asked before, and what cannot be helped is flagged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import flatbuffers
import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from crushproof.attacks.access import Flag
from crushproof.audit.engine.cells import Result
from crushproof.audit.findings.results import AuditResults
from crushproof.audit.subject.audited import AuditedModel
from crushproof.audit.suite.suite import Suite
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.seeds import generator, global_seed
from crushproof.targets.steadiness import variation
from crushproof.targets.twin.twin import twin_of
from crushproof.targets.untrusted import _read_tflite
from crushproof.targets.untrusted.model_file import Port, read_model_file, without_states

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


def tflite_lstm(network: Network, batch: int = 1, returned: bool = False, first: str = "") -> bytes:
    """The network as converters write it: one fused operator whose states [batch, hidden] are variable tensors.

    Args:
        returned: they are inputs and outputs instead, through additions of nothing.
        first: the name of an operator, for a crafted file.
    """
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
    kinds = ("UNIDIRECTIONAL_SEQUENCE_LSTM", "FULLY_CONNECTED", "ADD", *([first] if first else []))
    model.operatorCodes = []
    for kind in (getattr(schema.BuiltinOperator, name) for name in kinds):
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = kind, min(kind, 127)
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
    if returned:
        addition = (schema.BuiltinOptions.AddOptions, schema.AddOptionsT())
        for name in ("h", "c"):
            graph.inputs.append(tensor(f"{name}_in", [batch, HIDDEN]))
            graph.outputs.append(tensor(f"{name}_out", [batch, HIDDEN]))
            graph.operators.append(operator(2, [graph.inputs[-1], graph.inputs[-1]], graph.outputs[-1], addition))
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def drawn(n: int, seed: int = 0) -> Tensor:
    return torch.randn((n, STEPS, FEATURES), generator=generator(seed, "test"))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_tflite_lstm_forgets_between_records(network: Network, batch: int, tmp_path: Path) -> None:
    """Answers are torch's own, in any order and however often; LiteRT itself would answer otherwise."""
    content = tflite_lstm(network, batch)
    if batch == 1:
        path = tmp_path / "lstm.tflite"
        path.write_bytes(content)
        content = read_model_file(path).data
    target, x = LiteRtTarget(content), drawn(8)
    wanted = network(x)
    for order in (torch.arange(8), torch.arange(8), torch.arange(8).flip(0), torch.randperm(8)):
        torch.testing.assert_close(target.logits(x[order]), wanted[order], rtol=1e-4, atol=1e-5)

    plain = Interpreter(model_content=content, num_threads=1)
    plain.allocate_tensors()
    answers = []
    for _ in range(2):
        plain.set_tensor(plain.get_input_details()[0]["index"], x[:batch].numpy())
        plain.invoke()
        answers.append(plain.get_tensor(plain.get_output_details()[0]["index"]).copy())
    assert np.abs(answers[0] - answers[1]).max() > 0.01


def test_a_tflite_state_that_is_given_is_zero(network: Network) -> None:
    target, x = LiteRtTarget(tflite_lstm(network, returned=True)), drawn(5)
    torch.testing.assert_close(target.logits(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_tflite_state_that_cannot_be_set_back_is_refused(network: Network) -> None:
    with pytest.raises(_read_tflite.Fault, match=r"READ_VARIABLE keeps a state between records.*Convert it without"):
        _read_tflite.facts(tflite_lstm(network, first="READ_VARIABLE"))


# ONNX -----------------------------------------------------------------------------------------------------------------


def node(kind: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, [name.strip("-") for name in inputs.split()], outputs.split(), **attributes)


def graph(
    nodes: list[NodeProto],
    constants: dict[str, Any],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
) -> bytes:
    def ports(sizes: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()]

    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "g", ports(inputs), ports(outputs), made)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_lstm(network: Network, states: str, batch: int | str, returned: bool) -> bytes:
    """The network with its initial states h and c as inputs: "direct", or "sliced" from one of two layers each."""
    order = [0, 3, 1, 2]  # torch: i f g o, ONNX: i o f c

    def gates(*values: Tensor) -> np.ndarray:
        return np.concatenate([np.concatenate([value.chunk(4)[at].numpy() for at in order]) for value in values])[None]

    lstm = network.lstm
    nodes = [
        node("Transpose", "x", "steps", perm=[1, 0, 2]),
        node("LSTM", "steps w r b - h0 c0", "each h1 c1", hidden_size=HIDDEN),
        node("Squeeze", "each one", "inner"),
        node("Transpose", "inner", "records", perm=[1, 0, 2]),
        node("Flatten", "records", "flat"),
        node("Gemm", "flat head bias", "y", transB=1),
    ]
    constants = {
        "w": gates(lstm.weight_ih_l0),
        "r": gates(lstm.weight_hh_l0),
        "b": gates(lstm.bias_ih_l0, lstm.bias_hh_l0),
        "one": [1],
        "zero": [0],
        "head": network.head.weight.numpy(),
        "bias": network.head.bias.numpy(),
    }
    names = ("h0", "c0") if states == "direct" else ("h", "c")
    if states == "sliced":
        nodes[:0] = [node("Slice", f"{name} zero one zero", f"{name}0") for name in names]
    layers = 1 if states == "direct" else 2
    given: dict[str, list[int | str]] = {"x": ["n", STEPS, FEATURES]}
    given |= {name: [layers, batch, HIDDEN] for name in names}
    answered: dict[str, list[int | str]] = {"y": ["n", CLASSES]}
    if returned:
        answered |= {name: [1, "m", HIDDEN] for name in ("h1", "c1")}
    return graph(nodes, constants, given, answered)


@pytest.mark.parametrize("returned", [False, True])
@pytest.mark.parametrize(("states", "batch"), [("direct", "n"), ("direct", 1), ("sliced", "n"), ("sliced", 1)])
def test_states_as_inputs_are_zeros_for_every_record(
    network: Network, states: str, batch: int | str, returned: bool
) -> None:
    model, x = onnx_lstm(network, states, batch, returned), drawn(7)
    target = OnnxTarget(model)
    wanted = network(x)
    for order in (torch.arange(7), torch.arange(7).flip(0)):
        torch.testing.assert_close(target.logits(x[order]), wanted[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin_of(model)(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_reader_says_which_inputs_are_zeros(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_lstm(network, "direct", "n", True))
    found = read_model_file(path)
    assert [port.name for port in found.facts.inputs] == ["x"]
    assert found.facts.zeroed == ("h0", "c0")
    assert "'h0', 'c0'" in found.notes[0]


def recurrence(returned: bool) -> bytes:
    """h' = tanh(x w + h), written out."""
    weight = np.eye(4, 3, dtype=np.float32)
    nodes = [node("MatMul", "x w", "a"), node("Add", "a h", "b"), node("Tanh", "b", "next"), node("Neg", "next", "y")]
    outputs: dict[str, list[int | str]] = {"y": ["n", 3]}
    return graph(
        nodes, {"w": weight}, {"x": ["n", 4], "h": ["n", 3]}, outputs | ({"next": ["n", 3]} if returned else {})
    )


def test_a_recurrence_written_out_is_known_by_what_comes_back() -> None:
    x = torch.rand(5, 4, generator=generator(0, "test"))
    torch.testing.assert_close(OnnxTarget(recurrence(True)).logits(x), -torch.tanh(x[:, :3]))
    with pytest.raises(InputError, match=r"'h' float32.*Fix further inputs to constants"):
        OnnxTarget(recurrence(False))


@pytest.mark.parametrize(
    ("further", "second", "kind"),
    [
        ("meta", "aux", "Add"),  # both heads follow from it: a name that says nothing of a state
        ("c", "mu", "Add"),  # a condition
        ("state", "state_out", "Mul"),  # named as one, and the output does not follow from it
    ],
)
def test_ordinary_inputs_are_never_zeroed(further: str, second: str, kind: str) -> None:
    """A further input and a second head of its size: refused, with the cure."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", f"a {further}", "b"),
        node("Tanh", "b", "y"),
        node(kind, "b a" if kind == "Add" else "a a", second),
    ]
    given: dict[str, list[int | str]] = {"x": ["n", 4], further: ["n", 3]}
    content = graph(nodes, {"w": np.eye(4, 3, dtype=np.float32)}, given, {"y": ["n", 3], second: ["n", 3]})
    with pytest.raises(InputError, match=rf"'{further}' float32.*Fix further inputs to constants"):
        OnnxTarget(content)


def test_tflite_inputs_are_states_only_by_name_and_size() -> None:
    def ports(*names: str, shape: tuple[int, ...] = (1, 6)) -> tuple[Port, ...]:
        return tuple(Port(name=name, type="float32", shape=shape, grid=None) for name in names)

    for states, outputs in (
        (("h0", "c0"), ("hn", "cn")),
        (("serving_default_state_in:0",), ("StatefulPartitionedCall:1",)),
        (("hiddenState",), ("Identity_1",)),
    ):
        given = ports("x", *states)
        assert without_states(given, ports("y", *outputs)) == (given[:1], given[1:])
    for states, outputs in (
        (("meta",), ("aux",)),
        (("meta_in",), ("meta_out",)),
        (("c",), ("Identity_1",)),
        (("state",), ("aux",)),
        (("h0", "meta"), ("h1", "aux")),
    ):
        given = ports("x", *states)
        assert without_states(given, ports("y", *outputs)) == (given, ())
    given = ports("x", "state_in")
    assert without_states(given, ports("y", "state_out", shape=(1, 5))) == (given, ())


# What cannot be set back ----------------------------------------------------------------------------------------------


def answering(*nodes: NodeProto, batch: int | str = "n", **constants: Any) -> bytes:
    """y = z w behind `nodes`, which make z of x."""
    weight = torch.randn(8, 3, generator=generator(0, "test")).numpy()
    every = [*nodes, node("MatMul", "z w", "y")]
    return graph(every, {"w": weight, **constants}, {"x": [batch, 8]}, {"y": [batch, 3]})


DYNAMIC = (node("DynamicQuantizeLinear", "x", "q s o"), node("DequantizeLinear", "q s o", "z"))
TRAINING = node("Dropout", "x p yes", "z")
P = np.float32(0.1)
VARYING = {
    "noise": (lambda: answering(node("RandomNormalLike", "x", "r"), node("Add", "x r", "z")), "twice"),
    "seeded noise": (
        lambda: answering(node("RandomNormalLike", "x", "r", seed=3.0, scale=0.02), node("Add", "x r", "z")),
        "twice",
    ),
    "dropout": (lambda: answering(TRAINING, p=P, yes=True), "twice"),
    "batch statistics": (
        lambda: answering(node("ReduceMean", "x", "m", axes=[0]), node("Sub", "x m", "z")),
        "other records",
    ),
}
STEADY = {
    "plain": lambda: answering(node("Identity", "x", "z")),
    "dropout, off": lambda: answering(TRAINING, p=P, yes=False),
    "dynamic": lambda: answering(*DYNAMIC),
    "dynamic, fixed batch": lambda: answering(*DYNAMIC, batch=8),
    "fixed batch": lambda: answering(node("Identity", "x", "z"), batch=8),
    "float16": lambda: answering(node("Cast", "x", "half", to=TensorProto.FLOAT16), node("Cast", "half", "z", to=1)),
}


@pytest.mark.parametrize("name", [*VARYING, *STEADY])
def test_answers_that_vary_are_found(name: str) -> None:
    x = torch.rand(60, 8, generator=generator(0, "records"))
    make, words = VARYING[name] if name in VARYING else (STEADY[name], "")
    sentence = variation(OnnxTarget(make()), x)
    assert words in (sentence or "")
    assert (sentence is None) is (name in STEADY)


def test_a_batch_taken_for_time_is_found() -> None:
    """torch.nn.LSTM without batch_first on records [n, steps, features] mixes them up."""
    with global_seed(0, "test"):
        lstm = nn.LSTM(FEATURES, HIDDEN).eval()

    class Mixed:
        queries = 0

        def logits(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return lstm(x)[0][:, -1]

    assert "axis of time" in (variation(Mixed(), drawn(40)) or "")


def test_answers_that_depend_on_the_size_of_the_batch_are_found() -> None:
    class OfMany:
        queries = 0

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return x if len(x) > 50 else x.flip(1)

    x = drawn(60).flatten(1)
    assert variation(OfMany(), x) is None
    assert "Among other records" in (variation(OfMany(), x, OfMany().logits(x)) or "")


def test_dropout_in_training_has_no_twin() -> None:
    with pytest.raises(NotApplicable, match="training mode"):
        twin_of(VARYING["dropout"][0]())
    twin_of(STEADY["dropout, off"]())


@pytest.mark.parametrize("varies", [None, "Asked the same twice, it answers otherwise."])
def test_varying_answers_are_a_flag_of_the_candidate(varies: str | None) -> None:
    right = np.arange(100) % 10 > 0
    result = Result(arrays={"evidence/correct": right}, document={"varies": varies})
    labels = torch.arange(100) % 4
    suite = SimpleNamespace(
        model_cell=lambda name: f"candidate/{name}",
        subject=SimpleNamespace(data=SimpleNamespace(non_members=SimpleNamespace(y=labels), doubts=())),
    )
    results = AuditResults(cast(Suite, suite), lambda cell: result, str, lambda cell: ("", ""), "")
    model = cast(AuditedModel, SimpleNamespace(name="x", void=None, file=None))
    assert results.flags(model) == ({Flag.ANSWERS_VARY.value} if varies else set())
