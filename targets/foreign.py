"""Finished models that somebody else made: ONNX and TFLite files, read where they can do no harm.

The file is copied into memory once, and what is looked at is what is run later. A process of its own, with limits on
memory and time, parses it, checks it (_read_onnx.py, _read_tflite.py) and runs zeros through it; only then does this
process touch it. Nothing is ever unpickled, and no other file is read.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from .errors import InputError, UnsafeInput
from .files import ordinary_file, shown
from .model import BATCH
from .sandbox import run_limited

FILE_BYTES = 2 * 2**30  # what protobuf and flatbuffers can hold
ROOM = 4 * 2**30  # bytes that running a model may take, besides copies of the file
COPIES = 6  # of the file, while it is parsed, checked and loaded
SECONDS = 120  # of processor time
VALUES = 2**22  # of a run's input: large records come in smaller parts, so that memory stays bounded
CURE = "Nothing else came of it. Refuse the file, or ask whoever made it for one that needs less."

Kind = Literal["onnx", "tflite"]


class Port(BaseModel):
    """An input or output of a model: a free size is its name or "?"; `grid` is scale and zero point of integers;
    `operator` is what makes an output, before reshapes and quantisers ("Softmax" hints at probabilities); `covers` is
    the range of values that the file's own quantiser of an input can tell apart.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    type: str  # numpy's word where numpy has one: "float32", "uint8", ...; "maps": from each class to its score
    shape: tuple[int | str, ...]
    grid: tuple[float, float] | None
    operator: str = ""
    covers: tuple[float, float] | None = None


class Facts(BaseModel):
    """What a file says about itself."""

    model_config = ConfigDict(frozen=True)

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: dict[str, int]
    last_operator: str  # of the first output
    quantisation: tuple[str, ...]  # in words; empty for a float model
    opset: int | None  # ONNX: of the standard operators; TFLite: the schema's version
    producer: str


@dataclass(frozen=True)
class Foreign:
    """A finished model, checked: run it with `artifact.deployed`."""

    kind: Kind
    data: bytes
    facts: Facts


def read_foreign(path: Path) -> Foreign:
    """The model in an ONNX or TFLite file; which of them is told by its content, not by its name.

    Raises:
        InputError: missing, a folder, empty, or too large a file; a TFLite file while ai-edge-litert is not installed.
        UnsafeInput: neither ONNX nor TFLite, damaged, or crafted: weights in other files, operators that are not known,
            names that are none, sizes that follow from a record's values, more than its share of memory or time.
    """
    path = ordinary_file(path, "the model", FILE_BYTES)
    data = path.read_bytes()
    kind: Kind = "tflite" if data[4:8] == b"TFL3" else "onnx"
    if kind == "tflite":
        need_litert()
    with tempfile.TemporaryDirectory(prefix="crushproof-") as folder:
        copy = Path(folder, "model")
        copy.write_bytes(data)
        answer = run_limited(
            Path(__file__).with_name(f"_read_{kind}.py"),
            [str(copy), *([str(BATCH), str(VALUES)] if kind == "onnx" else [])],
            what=f"the model {shown(path.name)}",
            seconds=SECONDS,
            memory=ROOM + COPIES * len(data),
            cure=CURE,
        )
    try:
        found = json.loads(answer)
    except ValueError:  # something in it wrote to the reader's output
        raise UnsafeInput(f"The model {shown(path.name)} confused its reader and was refused. {CURE}") from None
    if "fault" in found:
        raise UnsafeInput(f"{shown(path.name)}: {' '.join(found['fault'].split())}")
    return Foreign(kind, data, Facts.model_validate(found["facts"]))


def need_litert() -> None:
    """Raises InputError unless LiteRT is installed."""
    from importlib.util import find_spec

    if find_spec("ai_edge_litert") is None:
        raise InputError("A .tflite model is run by LiteRT, which is not installed: pip install crushproof[litert].")
