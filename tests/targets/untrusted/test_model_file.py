"""Finished files from strangers: crafted ones end with one paragraph, honest ones are described."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError, UnsafeInput
from crushproof.targets.interface.assumptions import Overrides
from crushproof.targets.interface.finished_model import deployed
from crushproof.targets.interface.infer import assume
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.untrusted import model_file
from crushproof.targets.untrusted.model_file import check_onnx, read_model_file


def graph(
    nodes: list[NodeProto], *constants: TensorProto, features: int | str = 4, domain: str = "", functions: int = 0
) -> onnx.ModelProto:
    """A model from input [batch, features] to logits [batch, ?] made of `nodes`, and the file's constants."""
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", features])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
            list(constants),
        ),
        opset_imports=opsets,
        ir_version=8,
    )


def array(values: object, name: str, dtype: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def linear() -> onnx.ModelProto:
    return graph(
        [helper.make_node("MatMul", ["input", "weight"], ["logits"], name="product")],
        array(np.ones((4, 3)), "weight", np.float32),
    )


def node(kind: str, inputs: str, output: str = "made", **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


ADD = [node("Shape", "input", "s"), node("ReduceSum", "made", "sum", keepdims=0), node("Add", "input sum", "logits")]


def branch(inner: list[NodeProto], name: str = "made") -> onnx.GraphProto:
    return helper.make_graph(inner, "branch", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", "go", "on"), node("Mul", "value value", "next")],
        "body",
        [
            helper.make_tensor_value_info("at", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    return graph(
        [node("Loop", "count go0 input", "logits", body=body)], array(2**40, "count"), array(True, "go0", np.bool_)
    )


def external(location: str, **more: object) -> onnx.ModelProto:
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


def renamed(name: str) -> onnx.ModelProto:
    model = linear()
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    return model


def scalar_of_record() -> list[NodeProto]:
    return [node("ReduceMax", "input", "top", keepdims=0), node("Cast", "top", "size0", to=TensorProto.INT64)]


def sized(*nodes: NodeProto, **changes: object) -> onnx.ModelProto:
    """`nodes` make "made" from "size" [1] int64, which is a value of the record."""
    return graph(
        [*scalar_of_record(), node("Reshape", "size0 one", "size"), *nodes, *ADD], array([1], "one"), **changes
    )


def sparse() -> onnx.ModelProto:
    model = graph([node("Identity", "huge", "made"), *ADD])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(array([1.0], "huge", np.float32), array([0], "places"), [2**20, 2**20])
    )
    return model


STATIC: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "external, upwards": (lambda: external("../secret"), "other files"),
    "external, absolute": (lambda: external("/etc/passwd"), "other files"),
    "external, detour": (lambda: external("junk/../../secret"), "other files"),
    "external, huge length": (lambda: external("link", offset=0, length=2**62), "other files"),
    "external, negative offset": (lambda: external("link", offset=-8, length=8), "other files"),
    "own operator": (
        lambda: graph([helper.make_node("Run", ["input"], ["logits"], domain="com.example")], domain="com.example"),
        "com.example",
    ),
    "unknown operator of the runtime": (
        lambda: graph(
            [helper.make_node("Tokenizer", ["input"], ["logits"], domain="com.microsoft")], domain="com.microsoft"
        ),
        "com.microsoft::Tokenizer",
    ),
    "unlisted domain": (lambda: graph([helper.make_node("Relu", ["input"], ["logits"], domain="x.y")]), "x.y"),
    "loop": (loop, "Loop"),
    "branch on a record": (
        lambda: graph(
            [
                *scalar_of_record(),
                node("Cast", "size0", "if", to=TensorProto.BOOL),
                node(
                    "If",
                    "if",
                    "logits",
                    then_branch=branch([node("Identity", "input")]),
                    else_branch=branch([node("Neg", "input")]),
                ),
            ]
        ),
        "If",
    ),
    "size of a constant": (lambda: sized(node("ConstantOfShape", "size")), "ConstantOfShape"),
    "size of an expansion": (lambda: sized(node("Expand", "top size")), "Expand"),
    "size of tiles": (lambda: sized(node("Reshape", "top one", "t"), node("Tile", "t size")), "Tile"),
    "size through a shape": (
        lambda: graph(
            [node("NonZero", "input", "places"), node("Shape", "places", "size"), node("ConstantOfShape", "size"), *ADD]
        ),
        "NonZero",
    ),
    "size inside a branch": (
        lambda: graph(
            [
                *scalar_of_record(),
                node("Reshape", "size0 one", "size"),
                node(
                    "If",
                    "yes",
                    "logits",
                    then_branch=branch([node("ConstantOfShape", "size")]),
                    else_branch=branch([node("ConstantOfShape", "size")]),
                ),
            ],
            array([1], "one"),
            array(True, "yes", np.bool_),
        ),
        "ConstantOfShape",
    ),
    "declared sizes": (sparse, "no network needs"),
    "NUL in a name": (lambda: renamed("in\0put"), "control characters"),
    "escape in a name": (lambda: renamed("\x1b[2J"), "control characters"),
    "way out in a name": (lambda: renamed("../../input"), "leads out"),
    "markup in a name": (lambda: renamed("<script>alert(1)</script>"), "markup"),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_crafted_graph_is_refused_before_it_runs(name: str) -> None:
    make, words = STATIC[name]
    with pytest.raises(UnsafeInput, match=words.replace(".", r"\.")) as caught:
        check_onnx(make().SerializeToString())
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_functions_of_the_file_are_refused() -> None:
    model = linear()
    inner = helper.make_node("Add", ["x", "x"], ["y"])
    model.functions.append(helper.make_function("", "Bomb", ["x"], ["y"], [inner], [helper.make_opsetid("", 17)]))
    with pytest.raises(UnsafeInput, match="functions of its own"):
        check_onnx(model.SerializeToString())


def test_sizes_that_follow_from_the_shape_are_no_fault() -> None:
    """As exporters write them: the batch read off the input's shape."""
    nodes = [
        node("Shape", "input", "shape"),
        node("Gather", "shape zero", "n"),
        node("Concat", "n width", "wanted", axis=0),
        node("Expand", "weight wanted", "wide"),
        node("Reshape", "input wanted", "flat"),
        node("Add", "flat wide", "logits"),
    ]
    constants = array([0], "zero"), array([4], "width"), array([1.0], "weight", np.float32)
    check_onnx(graph(nodes, *constants).SerializeToString())


def bomb(kind: str) -> onnx.ModelProto:
    """Sizes hidden behind arithmetic on constants."""
    nodes = [
        node("Mul", "a a", "b"),
        node("Mul", "b b", "size"),
        node(kind, "size" if kind != "Expand" else "x size"),
        *ADD,
    ]
    return graph(nodes, array([1024], "a"), array([1.0], "x", np.float32))


def slow() -> onnx.ModelProto:
    """16 GB of products in a file of a kilobyte."""
    nodes = [
        node("ConstantOfShape", "size", "v0"),
        node("ReduceMax", "input", "top", keepdims=0),
        node("Add", "v0 top", "m0"),
    ]
    nodes += [node("MatMul", f"m{at} m{at}", f"m{at + 1}") for at in range(400)]
    return graph(
        [*nodes, node("ReduceMax", "m400", "r", keepdims=0), node("Add", "input r", "logits")],
        array([1500, 1500], "size"),
    )


def of_the_batch() -> onnx.ModelProto:
    """Harmless for one record, 2 ** 36 values for 512."""
    nodes = [
        node("Shape", "input", "shape"),
        node("Gather", "shape zero", "n"),
        node("Concat", "n n n n", "size", axis=0),
        node("ConstantOfShape", "size"),
        *ADD,
    ]
    return graph(nodes, array([0], "zero"))


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, b"x" * 64)
    return file.getvalue()


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]  # what a malicious pickle does


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "pickle": (lambda: pickle.dumps(Payload()), "pickle"),
    "a torch file": (lambda: saved({"weight": torch.ones(3)}), "zip archive"),
    "TorchScript": (lambda: archive("m/code/__torch__.py", "m/constants.pkl", "m/data.pkl"), "zip archive"),
    "exported program": (lambda: archive("m/archive_format", "m/models/model.json"), "zip archive"),
    "HTML": (lambda: b"<!doctype html><title>404</title>", "HTML"),
    "cut off": (lambda: linear().SerializeToString()[:-20], "cut off|malformed"),
    "external data": (lambda: external("link").SerializeToString(), "other files"),
    "constant of 2^40": (lambda: bomb("ConstantOfShape").SerializeToString(), "bytes it may take|no network needs"),
    "expansion to 2^40": (lambda: bomb("Expand").SerializeToString(), "bytes it may take|no network needs"),
    "size of the batch": (lambda: of_the_batch().SerializeToString(), "bytes it may take"),
    "slow": (lambda: slow().SerializeToString(), "processor time"),
    "not TFLite": (lambda: b"\x1c\0\0\0TFL3" + bytes(64), "TFLite"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_crafted_file_ends_with_one_paragraph(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_file, "SECONDS", 0 if name == "slow" else 1)  # and one for the process itself
    monkeypatch.setattr(model_file, "ROOM", 2**30)
    Path("secret").write_bytes(b"\x07" * 48)
    os.link("secret", "link")
    make, words = FILES[name]
    Path("model.onnx").write_bytes(make())
    with pytest.raises(UnsafeInput, match=words) as caught:
        read_model_file(Path("model.onnx"))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def test_honest_mistakes(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "gone")
    for name, words in {"model.onnx": "empty", "model.onx": "Did you mean", "link.onnx": "link", ".": "folder"}.items():
        with pytest.raises(InputError, match=words):
            read_model_file(tmp_path / name)


def test_an_honest_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "model.anything"
    path.write_bytes(linear().SerializeToString())
    found = read_model_file(path)
    assert found.kind == "onnx"
    assert found.data == path.read_bytes()
    assert found.facts.inputs[0].shape == ("batch", 4)
    assert found.facts.inputs[0].type == "float32"
    assert (found.facts.operators, found.facts.last_operator, found.facts.opset) == ({"MatMul": 1}, "MatMul", 17)


@settings(max_examples=60)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever bytes change, the static check answers with its own error, or accepts."""
    content = bytearray(graph([*ADD[:1], node("Neg", "input", "logits")], array([[1]], "w")).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UnsafeInput):
        check_onnx(bytes(content))


# TFLite ---------------------------------------------------------------------------------------------------------------


def tflite(
    weight: np.ndarray, *, quantised: bool = False, custom: str = "", name: str = "input", groups: bool = False
) -> bytes:
    """logits = x @ weight.T, one record at a time; int8 in and out with steps of 1/64 and 1/8 where `quantised`."""

    def tensor(label: str, shape: list[int], buffer: int, step: float) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = label, shape, buffer
        made.type = schema.TensorType.INT8 if quantised else schema.TensorType.FLOAT32
        if quantised:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [step], [0]
        return made

    model, made, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    model.version, model.description, model.subgraphs, model.operatorCodes = 3, "by hand", [made], [code]
    code.builtinCode = schema.BuiltinOperator.CUSTOM if custom else schema.BuiltinOperator.FULLY_CONNECTED
    code.deprecatedBuiltinCode, code.customCode = code.builtinCode, custom or None
    code.version = 4 if quantised else 1
    empty, held = schema.BufferT(), schema.BufferT()
    stored = weight.astype(np.int8 if quantised else np.float32)
    held.data = np.frombuffer(stored.tobytes(), np.uint8)
    model.buffers = [empty, held]
    classes, features = weight.shape
    made.tensors = [
        tensor(name, [1, features], 0, 1 / 64),
        tensor("weight", [classes, features], 1, 1 / 16),
        tensor("logits", [1, classes], 0, 1 / 8),
    ]
    made.inputs, made.outputs, made.operators = [0], [2], [operator]
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType, operator.builtinOptions = (
        (schema.BuiltinOptions.NONE, None)
        if custom
        else (schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT())
    )
    if groups:
        group = schema.ExternalBufferGroupT()
        group.name = "/etc/passwd"
        model.externalBufferGroups = [group]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


WEIGHT = np.array([[3, -2, 5], [1, 7, -4]])


def test_tflite_is_described_and_run(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    x = torch.tensor([[1.0, 0.5, -1.0], [0.25, 1.0, 1.0], [-1.0, 0.0, 0.75]])
    path.write_bytes(tflite(WEIGHT))
    found = read_model_file(path)
    assert (found.kind, found.facts.operators, found.facts.producer) == ("tflite", {"FULLY_CONNECTED": 1}, "by hand")
    assert found.facts.inputs[0].shape == (1, 3)
    target = LiteRtTarget(found.data)
    expected = x.numpy() @ WEIGHT.T
    np.testing.assert_allclose(target.logits(x).numpy(), expected, rtol=1e-6)
    assert target.queries == 3

    path.write_bytes(tflite(WEIGHT, quantised=True))
    found = read_model_file(path)
    assert found.facts.inputs[0].grid == (1 / 64, 0.0)
    assert found.facts.inputs[0].covers == (-2, 127 / 64)
    assert found.facts.quantisation == ("static, as integer operators",)
    whole = torch.round(x * 64)  # the target takes the integers themselves
    answered = LiteRtTarget(found.data).logits(whole).numpy()
    np.testing.assert_allclose(answered, expected / 16, atol=1 / 16 + 1e-6)  # half a step of the output


def test_a_tflite_file_is_found_out_from_data(digits: Data, tmp_path: Path) -> None:
    """A linear classifier without bias: every positive scaling is right as often, so the simplest is taken."""
    assert digits.members is not None
    x, y = digits.members.x.flatten(1).double(), torch.eye(10, dtype=torch.float64)[digits.members.y]
    weight = torch.linalg.lstsq(x, y, driver="gelsd").solution.T
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite(weight.numpy()))
    found = read_model_file(path)
    assumptions, _ = assume(found, digits, Overrides())
    images = digits.non_members.x
    assert (assumptions.layout, assumptions.units, assumptions.outputs) == ("flat", "as given", "logits")
    expected = images.flatten(1).double() @ weight.T
    answered = deployed(found, assumptions).logits(images)
    torch.testing.assert_close(answered, expected.float(), rtol=1e-3, atol=1e-3)


def test_of_several_outputs_of_a_tflite_file_the_one_that_fits_is_taken(digits: Data, tmp_path: Path) -> None:
    """Features first (here the records themselves, cut off at 0), then the logits."""
    assert digits.members is not None
    x, y = digits.members.x.flatten(1).double(), torch.eye(10, dtype=torch.float64)[digits.members.y]
    weight = torch.linalg.lstsq(x, y, driver="gelsd").solution.T
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite(weight.numpy()), 0))
    features, code, operator = schema.TensorT(), schema.OperatorCodeT(), schema.OperatorT()
    features.name, features.shape, features.type, features.buffer = "features", [1, 64], schema.TensorType.FLOAT32, 0
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version, operator.opcodeIndex, operator.inputs, operator.outputs = 1, 1, [0], [3]
    model.operatorCodes.append(code)
    model.subgraphs[0].tensors.append(features)
    model.subgraphs[0].operators.append(operator)
    model.subgraphs[0].outputs = [3, 2]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "two.tflite"
    path.write_bytes(bytes(builder.Output()))
    found = read_model_file(path)
    assert [port.operator for port in found.facts.outputs] == ["RELU", "FULLY_CONNECTED"]
    assumptions, sentences = assume(found, digits, Overrides())
    assert assumptions.output == "logits"
    assert "'logits' is audited" in sentences[0]
    answered = deployed(found, assumptions).logits(digits.non_members.x)
    expected = digits.non_members.x.flatten(1).double() @ weight.T
    torch.testing.assert_close(answered, expected.float(), rtol=1e-3, atol=1e-3)


def test_crafted_tflite(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    whole = tflite(WEIGHT)
    crafted = {
        "operator CUSTOM 'FlexExec'": tflite(WEIGHT, custom="FlexExec"),
        "control characters": tflite(WEIGHT, name="in\0put"),
        "other files": tflite(WEIGHT, groups=True),
        "damaged|refuses|stopped": whole[: len(whole) // 2],
    }
    for words, content in crafted.items():
        path.write_bytes(content)
        with pytest.raises(UnsafeInput, match=words) as caught:
            read_model_file(path)
        assert "\n" not in str(caught.value)
