"""Files of other kinds than those that can be run: what they are, and how to make one that can. Nothing is parsed."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
import zlib

from ..errors import InputError, UnsafeInput, quoted
from .files import PART, RATIO, SMALL, is_pickle

_TORCH = (
    "Export the model: torch.onnx.export(model.eval(), (x,), 'model.onnx'); or name its architecture and weights in a "
    "plan (crushproof init)."
)
_KERAS = (
    "Convert the model to .tflite with tf.lite.TFLiteConverter, or to .onnx with Keras 3's model.export('model.onnx', "
    "format='onnx') or with python -m tf2onnx.convert."
)
_SOURCE = "Give the .onnx or .tflite file that it was compiled from; such a file runs only in its own runtime."
_SKLEARN = "Convert the model with skl2onnx.to_onnx(model, x), and give the .onnx file."
_WEIGHTS = "It holds weights without the network: name its architecture and weights in a plan (crushproof init)."
_UNPACK = "Unpack it, and give the .onnx or .tflite file inside."
_ORT = (
    "Give the .onnx file that it was made from, or turn it back: options = onnxruntime.SessionOptions(); "
    "options.optimized_model_filepath = 'model.onnx'; options.add_session_config_entry('session.save_model_format', "
    "'ONNX'); options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL; "
    "onnxruntime.InferenceSession('model.ort', options)."
)
_OPENVINO = (
    "Give the .onnx or .tflite file that it was converted from; `runtimes: [openvino]` in a plan also measures how an "
    ".onnx file answers in OpenVINO."
)
_PADDLE = "Convert the model with paddle2onnx, and give the .onnx file."

# Where a file starts so, it is that.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF", "an HDF5 file, as Keras writes (.h5, .hdf5)", _KERAS),
    (b"GGUF", "a GGUF file", "Language models are outside of what a finished file can be audited for."),
    (b"ftrt", "a TensorRT engine", _SOURCE),
    (b"ptrt", "a TensorRT engine", _SOURCE),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"7767517", "an ncnn model", _SOURCE),
)
# What has no mark of its own, by the end of its name, once it is known to be neither ONNX nor TFLite.
_NAMES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("engine", "trt", "plan"), ("a TensorRT engine", _SOURCE)),
    **dict.fromkeys(("h5", "hdf5", "keras"), ("a Keras model", _KERAS)),
    **dict.fromkeys(("pb", "pbtxt", "ckpt"), ("a TensorFlow graph or SavedModel", _KERAS)),
    **dict.fromkeys(("mlmodel", "mlpackage", "mlmodelc"), ("a Core ML model", _SOURCE)),
    **dict.fromkeys(("pt", "pth", "pt2", "ptl", "pte"), ("a PyTorch file", _TORCH)),
    **dict.fromkeys(("pkl", "pickle", "joblib"), ("a pickled model, which is never read", _SKLEARN)),
    **dict.fromkeys(("pdmodel", "pdiparams", "nb"), ("a PaddlePaddle model", _PADDLE)),
    **dict.fromkeys(
        ("caffemodel", "prototxt", "mnn", "param", "dlc", "rknn", "hef", "om", "uff"),
        ("a model of another runtime", _SOURCE),
    ),
    **dict.fromkeys(("xml", "bin", "blob"), ("a model of OpenVINO (.xml and .bin)", _OPENVINO)),
    "ort": ("an ONNX Runtime file (.ort)", _ORT),
    "safetensors": ("a safetensors file", _WEIGHTS),
    **dict.fromkeys(("json", "ubj", "txt"), ("text or a tree model", "Convert the model to ONNX with onnxmltools.")),
}


def refuse_other(data: bytes, name: str) -> None:
    """Raises InputError (UnsafeInput for pickles and what holds them) when `data` starts as another kind of file."""
    head = data[:4096]
    found = next((entry[1:] for entry in _STARTS if head.startswith(entry[0])), None)
    if head[4:8] == b"ORTM":
        found = _NAMES["ort"]
    elif head[257:262] == b"ustar":
        found = "a tar archive", _UNPACK
    elif head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
        found = "HTML or XML text", "Where it came from the web, fetch the file itself: this may be an error page."
        if re.search(rb"<net\b", head):
            found = _NAMES["xml"]
    elif head.startswith(b"PK\x03\x04"):
        found = _archive(data)
    elif head.startswith(b"\x93NUMPY"):
        found = "a numpy array", "Give the model here, and records by --data."
    elif re.match(rb"[\s\S]{8}\{\"", head) and int.from_bytes(head[:8], "little") <= len(data):
        found = _NAMES["safetensors"]
    elif is_pickle(head):
        found = "a pickle, as .pkl, .joblib and old .pt and .pth files are", _NAMES.get(_end(name), ("", _TORCH))[1]
    if found is not None:
        raise _refusal(name, *found, unsafe=found[0].startswith(("a pickle", "a zip archive, as", "HTML")))


def refuse_by_name(name: str) -> None:
    """The same, by the end of the name, for what is known to be neither ONNX nor TFLite."""
    found = _NAMES.get(_end(name))
    if found is not None:
        raise _refusal(name, *found, unsafe=found[1] is _TORCH)


def _end(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _refusal(name: str, words: str, hint: str, *, unsafe: bool) -> InputError | UnsafeInput:
    kind = UnsafeInput if unsafe else InputError
    return kind(f"{quoted(name)} is {words}, neither ONNX nor TFLite. It was not run. {hint}")


def _archive(data: bytes) -> tuple[str, str]:
    """By the names that it lists; nothing is unpacked."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError, OverflowError):
        names = []
    if any(name.endswith("model.weights.h5") for name in names):
        return "a Keras model (.keras)", _KERAS
    if any(name.endswith(".mlmodel") for name in names):
        return "a Core ML package", _SOURCE
    if any(name.endswith((".tflite", ".onnx")) for name in names):
        return "a zip archive", _UNPACK
    return "a zip archive, as .pt, .pth, .pt2, TorchScript and .npz files are", _TORCH


def unpacked(data: bytes, name: str, limit: int) -> bytes:
    """What a gzip file holds; `data` itself when it is none.

    Raises:
        UnsafeInput: damaged, or it unpacks to more than `limit` bytes or to as much as only a bomb does.
    """
    if not data.startswith(b"\x1f\x8b"):
        return data
    content = bytearray()
    most = min(limit, max(SMALL, RATIO * len(data)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            while part := packed.read(PART):
                content += part
                if len(content) > most:
                    raise UnsafeInput(
                        f"{quoted(name)} unpacks from {len(data):,} to more than {most:,} bytes, as a gzip bomb does. "
                        "It was not read further. Give the file itself, unpacked."
                    )
    except (EOFError, OSError, zlib.error) as error:
        raise UnsafeInput(f"{quoted(name)} is a damaged gzip file ({error}). Fetch it again, or unpack it.") from None
    if content.startswith(b"\x1f\x8b"):
        raise InputError(f"{quoted(name)} is packed by gzip more than once. {_UNPACK}")
    return bytes(content)
