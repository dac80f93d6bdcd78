"""Files as exporters and converters write them are read; other kinds are named, with the way to convert them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.lineage.lineage import check_lineage
from crushproof.targets.data.labels import sorted_labels
from crushproof.targets.errors import InputError, NotApplicable, UnsafeInput
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.runtimes.openvino import OpenVinoTarget
from crushproof.targets.seeds import generator, global_seed
from crushproof.targets.twin.twin import twin_of
from crushproof.targets.untrusted import other_formats
from crushproof.targets.untrusted._check_onnx import parse
from crushproof.targets.untrusted.model_file import check_onnx, read_model_file
from crushproof.targets.untrusted.other_formats import refuse_by_name, refuse_other, unpacked

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with global_seed(0, "test"):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)
        ).eval()


@pytest.fixture(scope="module")
def model(network: nn.Module) -> bytes:
    return to_onnx(network, SHAPE)


@pytest.fixture(scope="module")
def records() -> Tensor:
    return torch.rand(7, *SHAPE, generator=generator(0, "records"))


def edited(model: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    proto = onnx.load_model_from_string(model)
    change(proto)
    return bytes(proto.SerializeToString())


def sizes(value: int, *axes: int, both: bool = True) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        for axis in axes:
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = value
        if 0 in axes and both:
            proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = value

    return change


@pytest.mark.parametrize("value", [-1, 0, -7])
@pytest.mark.parametrize("axes", [(0,), (0, 1, 2, 3), (2, 3)])
def test_sizes_below_one_are_free(
    network: nn.Module, model: bytes, records: Tensor, axes: tuple[int, ...], value: int
) -> None:
    content, wanted = edited(model, sizes(value, *axes)), network(records).detach()
    checked = check_onnx(content)
    assert not any(size.dim_value < 0 for size in checked.model.graph.input[0].type.tensor_type.shape.dim)
    twin = twin_of(content)
    assert twin.batch is None
    every = [OnnxTarget(content).logits(records), twin(records)]
    if value == -1 and len(axes) == 4:
        every.append(OpenVinoTarget(content).logits(records))
    for answers in every:
        torch.testing.assert_close(answers, wanted, rtol=1e-4, atol=1e-5)


def test_weights_still_have_sizes(model: bytes) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].dims[0] = -1

    with pytest.raises(UnsafeInput, match="no network needs"):
        check_onnx(edited(model, change))


@settings(max_examples=15)
@given(order=st.permutations(range(4)), circle=st.booleans())
def test_nodes_in_any_order(order: list[int], circle: bool) -> None:
    """A chain, a branch that captures an outer value, and whatever order they are written in."""
    inner = helper.make_graph(
        [helper.make_node("Add", ["c", "c"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Neg", ["d" if circle else "x"], ["a"]),
        helper.make_node("Abs", ["a"], ["c"]),
        helper.make_node("If", ["yes"], ["d"], then_branch=inner, else_branch=inner),
        helper.make_node("Add", ["d", "a"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph([nodes[at] for at in order], "g", ports[:1], ports[1:], [yes])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    if circle:
        with pytest.raises(UnsafeInput, match="malformed"):
            check_onnx(content)
        return
    checked, usable, _, _ = parse(content)
    assert [node.op_type for node in checked.graph.node] == ["Neg", "Abs", "If", "Add"]
    assert (usable is content) == (order == [0, 1, 2, 3])
    x = torch.rand(2, 3)
    torch.testing.assert_close(OnnxTarget(content).logits(x), x)


@pytest.mark.filterwarnings("ignore")  # the converter's, about small weights
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
def test_float16_by_the_runtimes_own_converter(
    network: nn.Module, records: Tensor, keep: bool, recurrent: bool
) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    class Gru(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.gru(x.squeeze(1))[0][:, -1])
            return logits

    with global_seed(0, "test"):
        module = Gru().eval() if recurrent else network
    plain = onnx.load_model_from_string(to_onnx(module, SHAPE))
    before = plain.SerializeToString()
    content = convert_float_to_float16(plain, keep_io_types=keep).SerializeToString()
    wanted = module(records).detach()
    target = OnnxTarget(content)
    torch.testing.assert_close(target.logits(records), wanted, rtol=0, atol=5e-3)
    torch.testing.assert_close(twin_of(content)(records), target.logits(records), rtol=0, atol=5e-3)
    assert check_lineage(before, content).verdict == "confirmed"


INTEGERS = ("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64")


@pytest.mark.parametrize("word", [*INTEGERS, "DOUBLE", "FLOAT16", "BOOL"])
def test_inputs_of_every_type(network: nn.Module, model: bytes, records: Tensor, word: str) -> None:
    """Values are rounded as the type asks, kept within it, and gradients pass the twin's rounding."""
    kind = TensorProto.DataType.Value(word)

    def change(proto: onnx.ModelProto) -> None:
        name = proto.graph.input[0].name
        for node in proto.graph.node:
            node.input[:] = ["inner" if one == name else one for one in node.input]
        proto.graph.node.insert(0, helper.make_node("Cast", [name], ["inner"], to=TensorProto.FLOAT))
        proto.graph.input[0].type.tensor_type.elem_type = kind

    content = edited(model, change)
    x = records * 90 if word != "BOOL" else records
    whole = x.round() if word in (*INTEGERS, "BOOL") else x
    wanted = network(whole).detach()
    torch.testing.assert_close(OnnxTarget(content).logits(x), wanted, rtol=1e-2, atol=1e-2)
    if word == "BOOL":
        with pytest.raises(NotApplicable, match="truth values"):
            twin_of(content)
        return
    twin = twin_of(content)
    assert twin.rounds == (word in INTEGERS)
    x.requires_grad_(True)
    torch.testing.assert_close(twin(x).detach(), wanted, rtol=1e-2, atol=1e-2)
    twin(x).sum().backward()
    assert bool(x.grad.any())
    if word in INTEGERS:
        limits = np.iinfo(word.lower())
        far = torch.full((1, *SHAPE), -1e30), torch.full((1, *SHAPE), 1e30)
        ends = network(torch.full((1, *SHAPE), float(limits.min))).detach()
        torch.testing.assert_close(OnnxTarget(content).logits(far[0]), ends, rtol=1e-3, atol=1e-2)
        assert bool(torch.isfinite(OnnxTarget(content).logits(far[1])).all())


def doubling(**changes: object) -> bytes:
    """y = x + x, a TFLite file whose records [any, 3] have an open size; `changes` are of the tensor x."""
    graph, model, operator, code = schema.SubGraphT(), schema.ModelT(), schema.OperatorT(), schema.OperatorCodeT()
    graph.tensors = [schema.TensorT(), schema.TensorT()]
    for tensor, name in zip(graph.tensors, ("x", "y"), strict=True):
        tensor.name, tensor.shape, tensor.shapeSignature, tensor.buffer = name, [1, 1, 3], [-1, -1, 3], 0
        for key, value in changes.items():
            setattr(tensor, key, value)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    operator.inputs, operator.outputs = [0, 0], [1]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("words", ["", "class "], ids=["numbers", "texts"])
@pytest.mark.parametrize("kind", ["int64s", "strings"])
def test_maps_are_read_in_the_order_of_labels(kind: str, words: str) -> None:
    """Of twelve classes, written backwards: 2 comes before 10, and "class 10" before "class 2", as labels do."""
    names: list[int] | list[str] = (
        list(range(11, -1, -1)) if kind == "int64s" else [f"{words}{n}" for n in range(11, -1, -1)]
    )
    scores = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = helper.make_map_type_proto(TensorProto.INT64 if kind == "int64s" else TensorProto.STRING, scores)
    settings = {f"classlabels_{kind}": names}
    nodes = [helper.make_node("ZipMap", ["x"], ["maps"], domain="ai.onnx.ml", **settings)]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])
    answered = helper.make_value_info("maps", helper.make_sequence_type_proto(maps))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [given], [answered]), opset_imports=opsets, ir_version=8)
    x = torch.rand(3, 12, generator=generator(0, "records"))
    order = [names.index(name) for name in sorted_labels([names])] if kind == "strings" else list(range(11, -1, -1))
    assert (order == list(range(11, -1, -1))) is (kind == "int64s" or not words)
    assert torch.equal(OnnxTarget(model.SerializeToString()).logits(x), x[:, order])


def test_open_sizes_of_a_tflite_file(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(doubling())
    found = read_model_file(path)
    assert found.facts.inputs[0].shape == (1, "?", 3)
    target = LiteRtTarget(found.data)
    for length in (1, 4, 2):
        x = torch.rand(5, length, 3, generator=generator(0, "records"))
        torch.testing.assert_close(target.logits(x), 2 * x.flatten(1))
    with pytest.raises(InputError, match="does not answer"):
        target.logits(torch.rand(2, 4, 5))
    assert target.logits(torch.rand(2, 4, 3)).shape == (2, 12)


@pytest.mark.parametrize("word", ["INT32", "INT64"])
def test_integers_of_a_tflite_file_are_no_scores(word: str) -> None:
    content = doubling(type=getattr(schema.TensorType, word))
    with pytest.raises(InputError, match="takes 'x' int"):  # it answers with integers, which are no scores
        LiteRtTarget(content)


def versions(ir: int, opset: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        proto.ir_version = ir
        next(one for one in proto.opset_import if one.domain == "").version = opset

    return change


def test_newer_versions(network: nn.Module, model: bytes, records: Tensor) -> None:
    """Lowered where no operator of the file changed since; else one sentence with the cure."""
    own = next(one.version for one in onnx.load_model_from_string(model).opset_import if one.domain == "")
    wanted, newest = network(records).detach(), onnx.defs.onnx_opset_version()
    for ir, opset in ((onnx.IR_VERSION, own), (onnx.IR_VERSION, newest)):
        content = edited(model, versions(ir, opset))
        torch.testing.assert_close(OnnxTarget(content).logits(records), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(twin_of(content)(records), wanted, rtol=1e-4, atol=1e-5)
    for ir, opset in ((onnx.IR_VERSION + 1, own), (99, own), (onnx.IR_VERSION, newest + 1)):
        with pytest.raises(UnsafeInput, match=r"opset.*Export it again at opset \d+ or lower"):
            check_onnx(edited(model, versions(ir, opset)))


# Other kinds ----------------------------------------------------------------------------------------------------------


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, b"x" * 50)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("model.onnx"))
    return file.getvalue()


IR = b'<?xml version="1.0"?>\n<net name="Model0" version="11">\n<layers/></net>'
STARTS: dict[str, tuple[bytes, str, type[Exception]]] = {
    "m.ort": (b"\x18\0\0\0ORTM" + bytes(40), r"\.ort\).*onnxruntime", InputError),
    "m.xml": (IR, r"OpenVINO.*converted from", InputError),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), r"Keras.*tf2onnx", InputError),
    "m.keras": (archive("config.json", "model.weights.h5"), r"Keras.*tf2onnx", InputError),
    "m.mlpackage": (archive("Data/com.apple.CoreML/model.mlmodel"), "Core ML", InputError),
    "m.engine": (b"ftrt" + bytes(40), r"TensorRT.*compiled from", InputError),
    "m.gguf": (b"GGUF" + bytes(40), "GGUF", InputError),
    "m.safetensors": ((20).to_bytes(8, "little") + b'{"a":{}}            ' + bytes(8), "safetensors", InputError),
    "m.pth": (archive("m/data.pkl", "m/data/0"), r"zip archive, as \.pt.*torch\.onnx\.export", UnsafeInput),
    "old.pth": (b"\x80\x02\x8a\nl\xfc", r"pickle.*torch\.onnx\.export", UnsafeInput),
    "m.pkl": (b"\x80\x04K\x01.", r"pickle.*skl2onnx", UnsafeInput),
    "m.npy": (b"\x93NUMPY" + bytes(40), "numpy array", InputError),
    "m.html": (b"\n<!doctype html><title>404</title>", "HTML", UnsafeInput),
    "m.zip": (archive("model.onnx"), r"zip archive.*Unpack", InputError),
    "m.tar": (tar(), r"tar archive.*Unpack", InputError),
    "m.xz": (b"\xfd7zXZ\0" + bytes(40), r"xz archive.*Unpack", InputError),
}


@pytest.mark.parametrize("name", STARTS)
def test_other_kinds_are_named_with_the_way(name: str) -> None:
    data, words, kind = STARTS[name]
    with pytest.raises((InputError, UnsafeInput), match=words) as caught:
        refuse_other(data, name)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "saved_model.pb": "TensorFlow",
        "m.mlmodel": "Core ML",
        "M.TRT": "TensorRT",
        "m.pdmodel": "paddle2onnx",
        "m.bin": "OpenVINO",
        "m.pt": "torch.onnx",
    }.items(),
)
def test_what_has_no_mark_is_known_by_its_name(name: str, words: str) -> None:
    with pytest.raises((InputError, UnsafeInput), match=words):
        refuse_by_name(name)
    refuse_by_name("model.onnx")
    refuse_by_name("model")


def test_a_saved_model_is_named_and_an_onnx_file_is_known_by_its_content(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    path.write_bytes(b"\x08\x01\x12\x10\x0a\x0e\x12\x05serve\x22\x05x.y.z")
    with pytest.raises(InputError, match="TensorFlow"):
        read_model_file(path)
    path.write_bytes(edited(model, versions(99, 99)))
    with pytest.raises(InputError, match=r"version 99.*Export it again"):  # nothing about it is unsafe
        read_model_file(path)
    path.write_bytes(gzip.compress(model))
    found = read_model_file(path)
    assert found.data == model
    assert "packed by gzip" in found.notes[0]


def test_gzip_is_unpacked_within_limits(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(model)
    assert unpacked(model, "m", 2**31) is model
    assert unpacked(packed, "m", 2**31) == model
    assert unpacked(gzip.compress(model[:50]) + gzip.compress(model[50:]), "m", 2**31) == model
    monkeypatch.setattr(other_formats, "SMALL", 2**20)
    bombs = {
        "bomb": (gzip.compress(bytes(2**22)), 2**31),
        "more than 1,000 bytes": (packed, 1000),
        "damaged": (packed[:-9], 2**31),
        "damaged gzip": (packed[:-8] + bytes(8), 2**31),
        "more than once": (gzip.compress(packed), 2**31),
    }
    for words, (data, limit) in bombs.items():
        with pytest.raises((InputError, UnsafeInput), match=words):
            unpacked(data, "m.gz", limit)
