"""What reading and running a stranger's file may take, in proportion to its size: each limit, and what stays within."""

from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from crushproof.targets.data import encoding, npz
from crushproof.targets.data.csv import load_csv
from crushproof.targets.data.npz import load_npz
from crushproof.targets.errors import CrushproofError, InputError, UnsafeInput
from crushproof.targets.model import BATCH
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.untrusted import _read_onnx, _try_onnx, sandbox
from crushproof.targets.untrusted.model_file import VALUES, Facts, check_onnx, read_again, read_model_file

FEATURES = 8


def node(kind: str, inputs: str, output: str = "made", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def array(values: object, name: str, dtype: str = "i8") -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def chain(kind: str, count: int, first: str = "v0", **attributes: Any) -> list[NodeProto]:
    """v0 -> v1 -> ... -> "made"; a product is of a value with itself."""
    twice = kind in ("MatMul", "Concat", "Add")
    steps = [node(kind, f"v{at} v{at}" if twice else f"v{at}", f"v{at + 1}", **attributes) for at in range(count)]
    return [node("Identity", first, "v0")] * (first != "v0") + [*steps, node("Identity", f"v{count}", "made")]


def model(*nodes: NodeProto, constants: tuple[TensorProto, ...] = (), features: int | str = FEATURES) -> bytes:
    """logits = input @ weight + the largest of "made"."""
    end = [
        node("MatMul", "input weight", "product"),
        node("ReduceMax", "made", "top", keepdims=0),
        node("Add", "product top", "logits"),
    ]
    weight = array(np.eye(FEATURES, 3), "weight", "f4")
    graph = helper.make_graph(
        [*nodes, *end],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", features])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
        [weight, *constants],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def scan(steps: int) -> bytes:
    """A recurrence of small products, whose length the file invents."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("MatMul", "state state", "next"), node("Identity", "given", "out")],
        "body",
        [info("state", TensorProto.FLOAT, [64, 64]), info("given", TensorProto.FLOAT, [1])],
        [info("next", TensorProto.FLOAT, [64, 64]), info("out", TensorProto.FLOAT, [1])],
    )
    loop = helper.make_node("Scan", ["start", "length"], ["made", "outs"], body=body, num_scan_inputs=1)
    nodes = node("ConstantOfShape", "sizes", "start"), node("ConstantOfShape", "steps", "length"), loop
    return model(*nodes, constants=(array([64, 64], "sizes"), array([steps, 1], "steps")))


def declared(place: str, *sizes: int) -> bytes:
    """A harmless model with sizes of its own somewhere."""
    made = onnx.load_model_from_string(model(node("Identity", "input", "made")))
    if place == "weight":
        del made.graph.initializer[0].dims[:]
        made.graph.initializer[0].dims.extend(sizes)
    elif place == "value":
        made.graph.value_info.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, sizes))
    else:
        for at, size in enumerate(sizes):
            made.graph.input[0].type.tensor_type.shape.dim[at].dim_value = size
    return bytes(made.SerializeToString())


WIDE = array([1, 2**13], "wide")
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "constants, filled": (
        lambda: model(node("ConstantOfShape", "size"), constants=(array([2**18], "size"),)),
        "from its constants alone",
    ),
    "constants, expanded": (
        lambda: model(node("Expand", "one size"), constants=(array([1], "one", "f4"), array([2**9, 2**9], "size"))),
        "from its constants alone",
    ),
    "constants, tiled": (
        lambda: model(node("Tile", "one size"), constants=(array([[1]], "one", "f4"), array([2**9, 2**9], "size"))),
        "from its constants alone",
    ),
    "constants, counted": (
        lambda: model(
            node("Range", "a b c", "all"),
            node("Cast", "all", to=TensorProto.FLOAT),
            constants=(array(0, "a"), array(2**16, "b"), array(1, "c")),
        ),
        "from its constants alone",
    ),
    "constants, one of many": (
        lambda: model(
            node("OneHot", "ids depth two"),
            constants=(array(np.zeros(64), "ids"), array(2**12, "depth"), array([0, 1], "two", "f4")),
        ),
        "from its constants alone",
    ),
    "constants, doubled": (
        lambda: model(*chain("Concat", 18, axis=0), constants=(array([1], "v0", "f4"),)),
        "from its constants alone",
    ),
    "constants, the same one many times": (
        lambda: model(
            node("Concat", " ".join(["long"] * 400), axis=0), constants=(array(np.ones(2**10), "long", "f4"),)
        ),
        "from its constants alone",
    ),
    "a chain of products": (
        lambda: model(
            node("ConstantOfShape", "size", "v0"), *chain("MatMul", 280), constants=(array([32, 32], "size"),)
        ),
        "from its constants alone",
    ),
    "a recurrence": (lambda: scan(100), "values between its operators"),
    "a record made wide": (
        lambda: model(node("Tile", "input wide", "v0"), *chain("Sigmoid", 9), constants=(WIDE,)),
        "values between its operators",
    ),
    "an input of 2^28": (lambda: declared("input", 1, 2**28), "an input of 268,435,456 values"),
    "a batch of 2^28": (lambda: declared("input", 2**28), "which no network needs|an input of 2,147"),
    "an input beyond 64 bits": (lambda: declared("input", 2**62, 2**62), "which no network needs|an input of"),
    "a negative size": (lambda: declared("weight", -8, -3), r"shape \[-8, -3\], which no network needs"),
    "a size beyond 64 bits": (lambda: declared("weight", 2**33, 2**33), "which no network needs"),
    "a size that its bytes do not fill": (lambda: declared("weight", 8000, 3), "too small for the declared shape"),
    "another size than follows": (lambda: declared("value", 2**30, 2**30), "which no network needs"),
    "factors that do not fit": (
        lambda: model(node("MatMul", "input other"), constants=(array(np.eye(7, 3), "other", "f4"),)),
        "Incompatible dimensions",
    ),
    "a shape of two unknowns": (
        lambda: model(node("Reshape", "input size"), constants=(array([-1, -1], "size"),)),
        "multiple -1|malformed",
    ),
    "a shape beyond 64 bits": (
        lambda: model(node("Reshape", "input size"), constants=(array([2**62, 2**62], "size"),)),
        "overflow|malformed|which no network needs",
    ),
}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than in earnest, in this process, so that the tests are quick."""
    for name, value in {"MADE": 2**16, "KEPT": 2**20, "BATCH_BYTES": 2**25}.items():
        monkeypatch.setitem(_read_onnx._TRY["established"].__globals__, name, value)
    monkeypatch.setattr(npz, "SMALL", 2**16)


def looked_into(data: bytes, folder: Path, record: tuple[int, ...] = (FEATURES,)) -> dict[str, Any]:
    """What the process with limits finds, found in this one."""
    path = folder / "model.onnx"
    path.write_bytes(data)
    found: dict[str, Any] = json.loads(_read_onnx.main([str(path), str(BATCH), str(VALUES), json.dumps(record)]))
    assert [entry.name for entry in folder.iterdir()] == ["model.onnx"], "nothing is left behind"
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_out_of_proportion(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    found = looked_into(make(), tmp_path)
    assert "fault" in found, found
    assert re.search(words, found["fault"]), found["fault"]
    assert found["fault"].isprintable()
    assert found["fault"].endswith("."), found["fault"]


def test_memory_is_taken_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(model(node("ConstantOfShape", "size"), constants=(array([2**28], "size"),)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeInput, match="bytes it may take"):
        read_model_file(path, (FEATURES,))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10


def test_a_larger_file_may_take_more(tmp_path: Path) -> None:
    """The same tenfold chain beside weights that are in use."""
    own = array(np.ones((1, 2**16)), "own", "f4")
    steps = [node("Tile", "input wide", "v0"), *chain("Sigmoid", 9)]
    found = looked_into(model(*steps, node("Identity", "own", "kept"), constants=(WIDE, own)), tmp_path)
    assert "fault" not in found


def test_a_call_takes_as_many_records_as_fit(tmp_path: Path) -> None:
    """It follows from the sizes in the file: records of many values go by fewer, and no answer depends on it."""
    size = array([1, 2**12], "size")
    wide = model(node("Tile", "input size", "v0"), *chain("Sigmoid", 6), constants=(size,))
    found = looked_into(wide, tmp_path)
    assert found["facts"]["at_once"] == 2**25 // (4 * 2**17) == 64
    assert found["seconds"] > 0
    few = Facts.model_validate({**found["facts"], "at_once": 3})
    file = read_again(tmp_path / "model.onnx", hashlib.sha256(wide).hexdigest(), "onnx", few, packed=False)
    assert file is not None
    target, asked = OnnxTarget(file.checked), []
    run = target._run
    target._run = lambda part: (asked.append(len(part)), run(part))[1]  # type: ignore[method-assign,func-returns-value]  # counts
    x = torch.rand(7, FEATURES, generator=torch.Generator().manual_seed(0))
    together = target.logits(x)
    assert asked == [3, 3, 1]
    assert check_onnx(wide).facts.at_once == 3, "whoever has the bytes alone asks for as many"
    assert torch.equal(together[:3], target.logits(x[:3]))
    assert looked_into(model(node("Identity", "input", "made")), tmp_path)["facts"]["at_once"] == BATCH


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_whole_numbers_of_a_record_are_divided_by_what_the_file_holds(operator: str, tmp_path: Path) -> None:
    nodes = [
        node("Shape", "input", "shape"),
        node("Div", "shape shape", "ones"),
        node("Cast", "input", "ids", to=TensorProto.INT64),
        node(operator, "ids many", "hashed"),
        node("ReduceMax", "hashed", "most", keepdims=0),
        node("Add", "most ones", "sum"),
        node("Cast", "sum", to=TensorProto.FLOAT),
    ]
    assert "fault" not in looked_into(model(*nodes, constants=(array(97, "many"),)), tmp_path)
    found = looked_into(model(*nodes, constants=(array([97] * 7 + [-1], "many"),)), tmp_path)
    assert f"its operator {operator} divides" in found["fault"]


@pytest.mark.parametrize("layout", [(3, 4, 5), (4, 5, 3), (60,)])
def test_open_sizes_are_tried_as_the_data_have_them(layout: tuple[int, ...]) -> None:
    """The reader asks with the record in each layout that fits, so that a call is as large as it will be."""
    sizes = ["batch", *(f"d{at}" for at in range(len(layout)))]
    port = {"name": "input", "type": "float32", "shape": sizes}
    shapes = [tuple(one) for (one,) in _try_onnx._shapes([port], [3, 4, 5])]
    assert layout in shapes
    assert all(len(shape) == len(layout) for shape in shapes)
    assert [tuple(one) for (one,) in _try_onnx._shapes([port], [])] == [(32,) * len(layout)]


# The process of its own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "complaint", "words"),
    [
        (-9, b"", "5 s of processor time"),
        (-24, b"", "5 s of processor time"),
        (-14, b"", "5 s of processor time"),
        (-6, b"terminate called after throwing an instance of 'std::bad_alloc'", "1,000 bytes it may take"),
        (71, b"", "1,000 bytes it may take"),
        (-11, b"", "broke the reader"),
        (1, b"Traceback ...", "broke the reader"),
    ],
)
def test_the_reason_of_a_stop_is_told(
    status: int, complaint: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.CompletedProcess([], status, b"ready\n", complaint)
    monkeypatch.setattr(sandbox.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(UnsafeInput, match=words):
        sandbox.run_limited(Path("script.py"), [], what="it", seconds=5, memory=1000)


# Data -----------------------------------------------------------------------------------------------------------------


def stored(path: Path, **arrays: np.ndarray[Any, Any] | bytes) -> Path:
    """An npz, deflated; bytes are an .npy file as it is."""
    x, y = np.tile(np.linspace(0, 1, 8, dtype="f4"), (20, 1)), np.arange(20) % 2
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in ({"x_test": x, "y_test": y} | arrays).items():
            file = io.BytesIO()
            np.save(file, value if isinstance(value, np.ndarray) else np.zeros(0))
            archive.writestr(f"{name}.npy", value if isinstance(value, bytes) else file.getvalue())
    return path


def text(number: int, count: int, order: str = "<") -> bytes:
    """An .npy of texts of one character, which may be none."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": f"{order}U1", "fortran_order": False, "shape": (count,)})
    return file.getvalue() + np.full(count, number, f"{order}u4").tobytes()


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ({"class_names": text(0x110000, 2)}, UnsafeInput, "character number 0x110000"),
        ({"groups_test": text(0xFFFFFFFF, 20)}, UnsafeInput, "0xffffffff"),
        ({"feature_names": text(0x110000, 8, ">")}, UnsafeInput, "0x110000"),
        ({"x_test": text(0x110000, 20)}, UnsafeInput, "0x110000"),
        ({"y_test": text(0x7FFFFFFF, 20)}, UnsafeInput, "0x7fffffff"),
        ({"feature_names": text(0xD800, 8)}, InputError, "half of a surrogate pair"),
        ({"class_names": text(0xDFFF, 2)}, InputError, "half of a surrogate pair"),
        ({"y_test": np.full(20, 2**62)}, InputError, "at most 10,000"),
        ({"x_test": np.zeros((20, 20_000), "bool")}, UnsafeInput, "to 1,600,000 in memory"),
    ],
)
def test_arrays(arrays: dict[str, Any], error: type[CrushproofError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        load_npz(stored(tmp_path / "data.npz", **arrays))


def test_categories_are_written_out_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    path.write_text("town,age,label\n" + "".join(f"town{at % 9},{at},{at % 2}\n" for at in range(40)))
    assert load_csv(None, path, label="label").shape == (10,)
    monkeypatch.setattr(encoding, "ROOM", 1_000)
    monkeypatch.setattr(encoding, "ROOM_BY_BYTE", 1)
    with pytest.raises(InputError, match=r"9 features of 40 records.*drop"):
        load_csv(None, path, label="label")
