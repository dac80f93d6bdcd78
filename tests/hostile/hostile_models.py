"""Finished models: ONNX and TFLite files that are none, that want more than they should, or contradict themselves."""

from __future__ import annotations

import gzip
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hostile_case import UNSAFE, USAGE, Case
from hostile_data import Canary, archive
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crushproof.targets.model import Target
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.untrusted.model_file import read_model_file

Change = Callable[[ModelProto], object]
NOT_ONNX = frozenset({USAGE, UNSAFE})  # by what its name or its first bytes say of another format


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def constant(name: str, values: Any, kind: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, kind), name)


def model(*nodes: NodeProto, constants: tuple[TensorProto, ...] = (), shape: tuple[Any, ...] = ("n", 4)) -> ModelProto:
    """x float32 [n, 4] to y."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def good() -> ModelProto:
    w = np.random.default_rng(0).normal(size=(4, 3))
    nodes = [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    constants = (constant("w", w), constant("b", [0.1, 0.2, 0.3]), constant("v", np.eye(3)))
    return model(*nodes, constants=constants)


def quantised() -> ModelProto:
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "c t u", "w"),
        node("MatMul", "d w", "y"),
    ]
    codes = np.random.default_rng(0).integers(-127, 127, (4, 3))
    scales = (constant("s", 0.01), constant("z", 0, np.uint8), constant("t", 0.02), constant("u", 0, np.int8))
    return model(*nodes, constants=(*scales, constant("c", codes, np.int8)))


def changed(change: Change) -> bytes:
    found = good()
    change(found)
    return found.SerializeToString()


def with_input(**fields: Any) -> Change:
    """Another type or shape of the input."""

    def change(found: ModelProto) -> None:
        info = {"elem_type": TensorProto.FLOAT, "shape": ["n", 4], **fields}
        found.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", info["elem_type"], info["shape"]))

    return change


def first_tensor(**fields: Any) -> Change:
    def change(found: ModelProto) -> None:
        tensor = found.graph.initializer[0]
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(tensor, name)[:]
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return change


def first_node(**fields: Any) -> Change:
    def change(found: ModelProto) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(found.graph.node[0], name)[:]
                getattr(found.graph.node[0], name).extend(value)
            else:
                setattr(found.graph.node[0], name, value)

    return change


def named(name: str) -> Change:
    def change(found: ModelProto) -> None:
        found.graph.node[0].output[0] = found.graph.node[1].input[0] = name

    return change


def external(location: str, **more: str) -> Change:
    def change(found: ModelProto) -> None:
        tensor = found.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def attribute(**fields: Any) -> Change:
    def change(found: ModelProto) -> None:
        made = found.graph.node[0].attribute.add()
        made.name = "alpha"
        for name, value in fields.items():
            setattr(made, name, value)

    return change


def branch(nodes: list[NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def _functions(found: ModelProto) -> None:
    inner = [helper.make_node("f", ["a"], ["b"], domain="own")]
    found.functions.append(helper.make_function("own", "f", ["a"], ["b"], inner, [helper.make_opsetid("own", 1)]))


def _sparse(found: ModelProto) -> None:
    sparse = found.graph.sparse_initializer.add()
    sparse.values.CopyFrom(constant("s", [1.0]))
    sparse.indices.CopyFrom(constant("", [2**40], np.int64))
    sparse.dims.extend([2**31, 2**31])


def _training(found: ModelProto) -> None:
    info = found.training_info.add()
    info.initialization.CopyFrom(branch([helper.make_node("Run", [], ["o"], domain="own")], "o"))


def _loop(found: ModelProto) -> None:
    body = branch([node("Identity", "go", "on")], "on")
    found.graph.node.append(helper.make_node("Loop", ["", "c"], [], body=body, name="l"))


SIZED_BY_VALUES: dict[str, tuple[list[NodeProto], tuple[TensorProto, ...]]] = {
    "NonZero": ([node("NonZero", "x", "i"), node("Cast", "i", "y", to=1)], ()),
    "Tile": ([node("Cast", "x", "i", to=7), node("Tile", "x i", "y")], ()),
    "Expand": ([node("Cast", "x", "i", to=7), node("Expand", "x i", "y")], ()),
    "ConstantOfShape": ([node("Cast", "x", "i", to=7), node("ConstantOfShape", "i", "y")], ()),
    "Range": (
        [
            node("ReduceMax", "x", "m", keepdims=0),
            node("Range", "a m b", "y"),
        ],
        (constant("a", 0.0), constant("b", 1e-9)),
    ),
    "Where and Compress": ([node("Cast", "x", "c", to=9), node("Compress", "x c", "y", axis=0)], ()),
    "TopK": (
        [node("Cast", "x", "i", to=7), node("Gather", "i a", "k", axis=0), node("TopK", "x k", "y j")],
        (constant("a", [0], np.int64),),
    ),
    "Resize": ([node("Resize", "x  x", "y", mode="nearest")], ()),
    "Unique": ([node("Unique", "x", "y")], ()),
    "Pad": ([node("Cast", "x", "i", to=7), node("Pad", "x i", "y")], ()),
    "Scan of If": (
        [
            node("Cast", "x", "c", to=9),
            helper.make_node(
                "If",
                ["c"],
                ["y"],
                then_branch=branch([node("Neg", "x", "o")], "o"),
                else_branch=branch([node("Abs", "x", "p")], "p"),
            ),
        ],
        (),
    ),
}


def _divided(operator: str, kind: type, number: int) -> bytes:
    """Whole numbers made of a record, divided by -1: a fault of the processor where one of them is the smallest."""
    nodes = [node("Cast", "x", "i", to=number), node(operator, "i d", "j"), node("Cast", "j", "y", to=1)]
    return model(*nodes, constants=(constant("d", -1, kind),)).SerializeToString()


def _quantiser(bits: float = 4.0, scale: Any = 0.5, **attributes: Any) -> Change:
    """The output rounded by an operator of QONNX."""

    def change(found: ModelProto) -> None:
        found.graph.node[-1].output[0] = "raw"
        found.graph.initializer.extend(
            [constant("qs", scale), constant("qz", 0.0), constant("qb", bits)],
        )
        found.graph.node.append(
            helper.make_node("Quant", ["raw", "qs", "qz", "qb"], ["y"], domain="onnx.brevitas", **attributes)
        )

    return change


QUANTISERS = {
    "no bits": _quantiser(0),
    "1e9 bits": _quantiser(1e9),
    "a scale that does not fit": _quantiser(scale=np.ones(7)),
    "a scale that makes more": _quantiser(scale=np.ones((5, 1, 3))),
    "an unknown rounding": _quantiser(rounding_mode="STOCHASTIC"),
    "a rounding of no letters": _quantiser(rounding_mode=b"\xff\xfe"),
}
CHANGES: dict[str, Change] = {
    "external data": external("weights.bin"),
    "external data beyond the folder": external("../../../etc/passwd"),
    "external data by junk": external("junk/../../../etc/passwd"),
    "external data at /etc/passwd": external("/etc/passwd"),
    "external data of a device": external("/dev/zero", length=str(2**60)),
    "external data before the start": external("weights.bin", offset="-1"),
    "external data by no key": external("", unknown="x"),
    "external data in words": external("weights.bin", offset="x", length="y"),
    "a foreign operator": first_node(domain="evil"),
    "an operator of training": first_node(domain="ai.onnx.training"),
    "an operator that is none": first_node(op_type="Gemmm"),
    "an operator without a name": first_node(op_type=""),
    "an unknown operator of the runtime": first_node(domain="com.microsoft", op_type="Evil"),
    "functions that call themselves": _functions,
    "a training program": _training,
    "an endless loop": _loop,
    "a sparse tensor of 2^62": _sparse,
    "no input of a node": first_node(input=[]),
    "an input that nobody makes": first_node(input=["nobody", "w", "b"]),
    "a node that feeds itself": first_node(input=["h", "w", "b"]),
    "a circle": first_node(input=["y", "w", "b"]),
    "one output made twice": first_node(output=["r"]),
    "an output that is an input": first_node(output=["x"]),
    "no output": lambda found: found.graph.ClearField("output"),
    "no input": lambda found: found.graph.ClearField("input"),
    "no nodes": lambda found: found.graph.ClearField("node"),
    "no graph": lambda found: found.ClearField("graph"),
    "no opset": lambda found: found.ClearField("opset_import"),
    "an opset of 2^31": lambda found: setattr(found.opset_import[0], "version", 2**31),
    "an opset of -1": lambda found: setattr(found.opset_import[0], "version", -1),
    "a format of 2^40": lambda found: setattr(found, "ir_version", 2**40),
    "a format of -1": lambda found: setattr(found, "ir_version", -1),
    "an output that nobody makes": lambda found: setattr(found.graph.output[0], "name", "nobody"),
    "two inputs of one name": lambda found: found.graph.input.append(found.graph.input[0]),
    "two tensors of one name": lambda found: found.graph.initializer.append(found.graph.initializer[0]),
    "a tensor of another size": first_tensor(dims=[400, 3]),
    "a tensor of no bytes": first_tensor(raw_data=b""),
    "a tensor of odd bytes": first_tensor(raw_data=b"\0" * 47),
    "a tensor of negative size": first_tensor(dims=[-4, -3]),
    "a tensor of 2^63": first_tensor(dims=[2**32, 2**31]),
    "a tensor that overflows": first_tensor(dims=[2**62, 4]),
    "a tensor of a hundred axes": first_tensor(dims=[1] * 100),
    "a tensor of no type": first_tensor(data_type=0),
    "a tensor of type 99": first_tensor(data_type=99),
    "a tensor of texts": first_tensor(data_type=TensorProto.STRING),
    "a tensor of texts and bytes": first_tensor(data_type=TensorProto.STRING, string_data=[b"a"] * 12),
    "a tensor of 4 bits": first_tensor(data_type=TensorProto.INT4),
    "a tensor of 8-bit floats": first_tensor(data_type=TensorProto.FLOAT8E4M3FN),
    "a tensor twice over": first_tensor(float_data=[1.0] * 12),
    "a tensor without a name": first_tensor(name=""),
    "an input of texts": with_input(elem_type=TensorProto.STRING),
    "an input of no type": with_input(elem_type=0),
    "an input of type 77": with_input(elem_type=77),
    "an input of 2^62": with_input(shape=["n", 2**62]),
    "a batch of 2^40": with_input(shape=[2**40, 4]),
    "an input of thirty axes": with_input(shape=[2] * 30),
    "an attribute of a function": attribute(type=1, f=1.0, ref_attr_name="outer"),
    "an attribute of no type": attribute(f=1.0),
    "an attribute of another type": attribute(type=2, f=1.0),
    "an attribute twice": lambda found: [attribute(type=1, f=1.0)(found) for _ in range(2)],
    "a name of NUL": named("a\0b"),
    "a name of an escape": named("\x1b[31m"),
    "a name of a script": named("</script><script>alert(1)</script>"),
    "a way out for a name": named("../../x"),
    "a description of a script for a name": first_node(name="<img src=x onerror=alert(1)>"),
    **{f"a quantiser of QONNX: {name}": change for name, change in QUANTISERS.items()},
}


USUAL = ("an opset of 2^31", "a format of 2^40")  # what an honest file of a later year says


def onnx_files() -> dict[str, tuple[bytes, int | frozenset[int]]]:
    own = good().SerializeToString()
    found: dict[str, tuple[bytes, int | frozenset[int]]] = {
        name: (changed(change), USAGE if name in USUAL else UNSAFE) for name, change in CHANGES.items()
    }
    for name, (nodes, constants) in SIZED_BY_VALUES.items():
        found[f"sized by a record: {name}"] = (model(*nodes, constants=constants).SerializeToString(), UNSAFE)
    for operator in ("Div", "Mod"):
        found[f"{operator} by -1"] = (_divided(operator, np.int64, 7), UNSAFE)
    return {
        **found,
        "cut off": (own[:-20], UNSAFE),
        "cut in half": (own[: len(own) // 2], UNSAFE),
        "a byte": (own[:1], UNSAFE),
        "bytes behind it": (own + b"\xff\xff\xff", UNSAFE),
        "a length beyond the end": (b"\x3a\xff\xff\xff\xff\x0f", UNSAFE),
        "zeros": (bytes(4096), UNSAFE),
        "text": (b"not a model at all", UNSAFE),
        "HTML": (b"<!doctype html><html>404</html>", NOT_ONNX),
        "a pickle": (pickle.dumps(Canary()), NOT_ONNX),
        "a zip": (archive({"data.pkl": b"x"}), NOT_ONNX),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), NOT_ONNX),
        "GGUF": (b"GGUF" + bytes(50), NOT_ONNX),
        "packed and cut off": (gzip.compress(own)[:-9], UNSAFE),
        "packed twice": (gzip.compress(gzip.compress(own)), USAGE),
        "a packed bomb": (_bomb(300), UNSAFE),
        "nested 10,000 deep": (_deep(10_000), UNSAFE),
    }


def _bomb(mebibytes: int) -> bytes:
    """So many of zeros, packed, without packing each of them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    one = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(7) + one * mebibytes + packer.flush() + bytes(8)


def _deep(levels: int) -> bytes:
    """Graphs within attributes of nodes within graphs, by hand: length-delimited fields of protobuf."""
    inner = b""
    for _ in range(levels):
        for field in (6 << 3 | 2, 5 << 3 | 2, 1 << 3 | 2):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = bytes([field]) + _varint(len(inner)) + inner
            if len(inner) > 200_000:
                return b"\x3a" + _varint(len(inner)) + inner
    return b"\x3a" + _varint(len(inner)) + inner


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def tflite_files() -> dict[str, tuple[bytes, int | frozenset[int]]]:
    head = (16).to_bytes(4, "little") + b"TFL3"
    return {
        "nothing behind the head": (head, UNSAFE),
        "zeros behind the head": (head + bytes(400), UNSAFE),
        "ones behind the head": (head + b"\xff" * 400, UNSAFE),
        "a root beyond the end": ((2**31 - 1).to_bytes(4, "little") + b"TFL3" + bytes(100), UNSAFE),
        "a root before the start": ((2**32 - 8).to_bytes(4, "little") + b"TFL3" + bytes(100), UNSAFE),
        "a root in itself": (bytes(4) + b"TFL3" + bytes(100), UNSAFE),
        "counting up": (head + bytes(range(256)) * 4, UNSAFE),
        "a pickle behind the head": (head + pickle.dumps(Canary()), UNSAFE),
    }


def finished(content: bytes, suffix: str) -> Callable[[Path], Callable[[], object]]:
    def call(folder: Path) -> Callable[[], object]:
        path = folder / f"model{suffix}"
        path.write_bytes(content)
        return lambda: opened(path)

    return call


def opened(path: Path) -> Target:
    """A finished model as an audit opens it."""
    file = read_model_file(path)
    return OnnxTarget(file.checked) if file.kind == "onnx" else LiteRtTarget(file.data)


def cases() -> Iterator[Case]:
    for name, (content, code) in onnx_files().items():
        yield Case(f"ONNX: {name}", finished(content, ".onnx"), code)
    for name, (content, code) in tflite_files().items():
        yield Case(f"TFLite: {name}", finished(content, ".tflite"), code)
