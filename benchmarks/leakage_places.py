"""Files that hold training records, in each of the places and kinds in which the leakage search looks for them."""

from __future__ import annotations

import base64
import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.tflite_export import to_tflite


def onnx_file(tensors: list[onnx.TensorProto], note: str = "") -> bytes:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    weights = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    kept = [numpy_helper.from_array(weights, "w"), *tensors]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:], kept)
    model = helper.make_model(graph)
    if note:
        model.metadata_props.add(key="note", value=note)
    return bytes(model.SerializeToString())


def exported(rows: np.ndarray) -> bytes:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().sum(1)

    stream = io.BytesIO()
    torch.export.save(torch.export.export(Net(), (torch.from_numpy(rows),)), stream)
    return stream.getvalue()


def view(rows: np.ndarray) -> bytes:
    stream = io.BytesIO()
    torch.save({"w": torch.from_numpy(rows)[1:2, :1]}, stream)
    return stream.getvalue()


def archived(rows: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, rows=np.asfortranarray(rows))
    return stream.getvalue()


def tflite(weights: np.ndarray) -> bytes:
    """A real file whose layer holds the rows (or their columns) as its weights: codes of 8 bits are float there."""
    layer = nn.Linear(weights.shape[1], weights.shape[0])
    layer.weight = nn.Parameter(torch.from_numpy(weights.astype(np.float32)), requires_grad=False)
    shape = (weights.shape[1],)
    return to_tflite(to_onnx(nn.Sequential(layer).eval(), shape))


def external(rows: np.ndarray) -> bytes:
    """The file beside an ONNX file that holds its tensors."""
    model = onnx.load_from_string(onnx_file([numpy_helper.from_array(rows, "rows")]))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
        return (Path(folder) / "a.data").read_bytes()


PLACES = {
    "ONNX external data": external,
    "ONNX constant": lambda rows: onnx_file([numpy_helper.from_array(rows, "rows")]),
    "ONNX columns": lambda rows: onnx_file([numpy_helper.from_array(rows.T.copy(), "rows")]),
    "metadata, base64": lambda rows: onnx_file([], base64.b64encode(rows.tobytes()).decode()),
    "metadata, text": lambda rows: onnx_file([], json.dumps(rows.tolist())),
    "safetensors": lambda rows: save({"rows": rows}),
    ".pt2 example input": exported,
    ".pt storage behind a view": view,
    "pickle": lambda rows: pickle.dumps({"rows": rows}),
    "pickled list": lambda rows: pickle.dumps([rows.tolist()]),
    "base64 in lines": lambda rows: base64.encodebytes(rows.tobytes()),
    "pickle by columns": lambda rows: pickle.dumps(np.asfortranarray(rows)),
    ".npz by columns": archived,
    ".tflite weights": tflite,
    ".tflite weights by columns": lambda rows: tflite(np.ascontiguousarray(rows.T)),
}


def picture(pixels: np.ndarray, mode: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def german(square: np.ndarray) -> str:
    return "\r\n".join(";".join(f"{value:.5f}".replace(".", ",") for value in row.ravel()) for row in square)


def short(square: np.ndarray, kind: str, shift: int = 0) -> bytes:
    return bytes(1001) + np.round(square * 65_535 - shift).astype(kind).tobytes()


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", content)
    return stream.getvalue()


KINDS = {  # of [3, height, width]
    "uint16, bare": lambda square: short(square, "<u2"),
    "int16, bare": lambda square: short(square, "<i2", 32_768),
    "int16 in an archive": lambda square: zipped(short(square, "<i2", 32_768)),
    "float16, bare": lambda square: bytes(1001) + square.astype("<f2").tobytes(),
    "decimal commas": lambda square: german(square).encode(),
    "decimal commas in metadata": lambda square: onnx_file([], german(square)),
    "decimal commas, UTF-16 LE": lambda square: german(square).encode("utf-16-le"),
    "decimal commas, UTF-16 BE": lambda square: zipped(german(square).encode("utf-16-be")),
    "PNG, grey": lambda square: b"".join(picture(one, "L") for one in square),
    "PNG, colours, in an archive": lambda square: zipped(b"".join(picture(one, "RGB") for one in square)),
    "PNG, base64 in metadata": lambda square: onnx_file(
        [], base64.b64encode(b"".join(picture(one, "L") for one in square)).decode()
    ),
    "PNG, inverted": lambda square: b"".join(picture(1 - one, "L") for one in square),
}
