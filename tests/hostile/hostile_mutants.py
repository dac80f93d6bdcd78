"""Mutants: good files with a few bytes, fields or values changed at random, and who reads them."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from hostile_audits import audit
from hostile_data import archive, records, saved
from hostile_models import good, opened, quantised
from hostile_weights import good as good_weights
from hostile_weights import network, written
from onnx import ModelProto

from crushproof.audit.engine.cells import (
    ARRAYS,
    DOCUMENT,
    MANIFEST,
    DamagedError,
    Result,
    canonical_json,
    check,
    check_form,
    pack,
)
from crushproof.audit.schema.read import read_audit
from crushproof.targets.data.npz import load_npz
from crushproof.targets.errors import InputError, UnsafeInput
from crushproof.targets.untrusted.model_file import check_onnx
from crushproof.targets.untrusted.weights import load_weights

Random = random.Random
WHOLE = [-1, 0, 1, 2, 255, 2**16, 2**31 - 1, -(2**31), 2**32, 2**53, 2**62, 2**63 - 1, -(2**63), 10**30]
REAL = [0.0, -0.0, 0.5, -0.5, 1.5, 1e-320, 1e38, -1e38, 1e300, 55.0]
WORDS = [
    "",
    "x",
    "0",
    "int4",
    "dense",
    "pass",
    "../x",
    "\0",
    "\x1b[31m",
    "\ud800",
    "</script>",
    "__class__",
    "x" * 5000,
]
VALUES: list[Any] = [None, True, False, *WHOLE, *REAL, *WORDS, [], {}, [[]], [None], {"a": 1}, [1, 2, 3]]


def flipped(content: bytes, rng: Random, times: int = 3) -> bytes:
    """With a few bytes turned, taken out, put in, or runs of them overwritten by numbers that sizes may not be."""
    made = bytearray(content)
    for _ in range(rng.randint(1, times)):
        at, kind = rng.randrange(len(made) or 1), rng.random()
        if kind < 0.4 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif kind < 0.55:
            del made[at : at + rng.randint(1, 8)]
        elif kind < 0.7:
            made[at:at] = rng.choice([rng.randbytes(4), b"9" * 12, b"-", b"\0", b"(", b'"', made[at : at + 20]])
        elif kind < 0.95:
            width = rng.choice([1, 2, 4, 8])
            made[at : at + width] = (rng.choice(WHOLE) % 2 ** (8 * width)).to_bytes(width, "little")
        else:
            del made[at:]
    return bytes(made)


def swapped(value: Any, rng: Random) -> Any:
    """A JSON value in which one value, anywhere, is another, is gone, or stands twice. Shares what is not changed."""
    paths = list(_paths(value))
    *steps, key = rng.choice(paths)
    made = inner = copy.copy(value)
    for step in steps:
        inner[step] = inner = copy.copy(inner[step])
    kind = rng.random()
    if kind < 0.1:
        del inner[key]
    elif kind < 0.15 and isinstance(inner, list):
        inner.append(inner[key])
    elif kind < 0.2 and isinstance(inner, dict):
        inner[rng.choice(WORDS)] = inner.pop(key)
    elif kind < 0.4:
        inner[key] = functools.reduce(lambda outer, step: outer[step], rng.choice(paths), value)
    elif kind < 0.7 and isinstance(inner[key], int | float):
        inner[key] = rng.choice([*WHOLE, *REAL, inner[key] + 1, -inner[key], inner[key] / 2, str(inner[key])])
    else:
        inner[key] = rng.choice(VALUES)
    return made


def _paths(value: Any, above: tuple[Any, ...] = ()) -> Any:
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*above, key)
        if isinstance(one, dict | list):
            yield from _paths(one, (*above, key))


# By sort: a mutant, and who reads it ---------------------------------------------------------------------------------


def npz(rng: Random) -> bytes:
    kind = rng.random()
    if kind < 0.3:
        return flipped(archive(saved()), rng)
    entries = saved()
    name = rng.choice(list(entries))
    if kind < 0.6:
        entries[name] = flipped(entries[name][:128], rng) + entries[name][128:]
        return archive(entries)
    array = records()[name.removesuffix(".npy")]
    dtype = rng.choice("?bBhHiIqQefdFDSU") if rng.random() < 0.5 else array.dtype
    with np.errstate(all="ignore"):
        made = array.astype(dtype) if dtype != "S" else array.astype("S3")
        if rng.random() < 0.5 and made.dtype.kind in "fiu":
            made.flat[rng.randrange(made.size)] = rng.choice([0, 1, 7, np.nan if made.dtype.kind == "f" else 100])
    shapes = [made.shape, (-1,), (1, *made.shape), (*made.shape, 1), made.T.shape, (made.size, 1), (0, *made.shape)]
    shape = rng.choice(shapes)
    made = (
        made[:0].reshape(0, *made.shape)
        if shape[:1] == (0,)
        else np.asarray(made, order=rng.choice("CF")).reshape(shape)
    )
    return archive(saved(**{name.removesuffix(".npy"): made}))


def safetensors(rng: Random) -> bytes:
    header, values = good_weights()
    kind = rng.random()
    if kind < 0.35:
        return flipped(written(header), rng)
    if kind < 0.6:
        return written(flipped(json.dumps(header).encode(), rng), values)
    return written(swapped(header, rng), values)


def audit_json(rng: Random) -> bytes:
    if rng.random() < 0.2:
        return flipped(json.dumps(audit()).encode(), rng)
    return json.dumps(swapped(audit(), rng)).encode()


@cache
def _onnx_files() -> tuple[bytes, ...]:
    return good().SerializeToString(), quantised().SerializeToString()


def onnx(rng: Random) -> bytes:
    content = rng.choice(_onnx_files())
    if rng.random() < 0.3:
        return flipped(content, rng)
    model = ModelProto.FromString(content)
    for _ in range(rng.choice([1, 1, 2])):
        _change_message(model, rng)
    return model.SerializeToString()


def _messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if hasattr(value, "DESCRIPTOR") else value:
                found += _messages(one)
    return found


def _change_message(model: ModelProto, rng: Random) -> None:
    """One field of one message, whatever it is: taken out, doubled, put in, or another value."""
    everything = _messages(model)
    while True:
        message = rng.choice(everything)
        there = [field for field, _ in message.ListFields()]
        field = rng.choice(there if there and rng.random() < 0.7 else list(message.DESCRIPTOR.fields))
        several = isinstance(getattr(message, field.name), list) or hasattr(getattr(message, field.name), "extend")
        try:
            if rng.random() < 0.15:
                message.ClearField(field.name)
            elif field.message_type is not None:
                alike = [one for one in everything if one.DESCRIPTOR.name == field.message_type.name]
                given = rng.choice(alike).SerializeToString() if alike else b""
                target = getattr(message, field.name)
                (target.add() if several else target).MergeFromString(given)
            else:
                value = _scalar(field, message, everything, rng)
                if not several:
                    setattr(message, field.name, value)
                elif len(getattr(message, field.name)) and rng.random() < 0.6:
                    target = getattr(message, field.name)
                    target[rng.randrange(len(target))] = value
                else:
                    getattr(message, field.name).append(value)
        except (ValueError, TypeError):
            continue  # a value that the field cannot take
        return


def _scalar(field: Any, message: Any, everything: list[Any], rng: Random) -> Any:
    if field.type == field.TYPE_STRING:
        names = [
            one for node in everything if node.DESCRIPTOR.name == "NodeProto" for one in (*node.input, *node.output)
        ]
        kinds = [
            "Loop",
            "If",
            "Scan",
            "NonZero",
            "Tile",
            "Range",
            "Where",
            "Reshape",
            "Einsum",
            "Cast",
            "Gather",
            "Conv",
        ]
        return rng.choice([*names, *WORDS, *kinds, "com.microsoft", "ab,bc->ac", "SAME_UPPER"])
    if field.type == field.TYPE_BYTES:
        old = getattr(message, field.name)
        return flipped(old if isinstance(old, bytes) else b"x", rng)
    if field.enum_type is not None:
        return rng.choice([one.number for one in field.enum_type.values])
    if field.name in ("data_type", "elem_type"):
        return rng.randrange(27)
    return rng.choice(REAL if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE) else WHOLE)


@cache
def tflite_file() -> bytes:
    """logits = x @ weight.T + bias, then ReLU."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description, model.subgraphs = 3, "by hand", [graph]
    model.operatorCodes, graph.operators = [], []
    for kind in (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.RELU):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 1
        model.operatorCodes.append(code)
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    model.buffers = [schema.BufferT() for _ in range(3)]
    model.buffers[1].data = np.frombuffer(weight.tobytes(), np.uint8)
    model.buffers[2].data = np.frombuffer(bytes(12), np.uint8)
    graph.tensors = []
    for name, shape, buffer in (("x", [1, 4], 0), ("w", [3, 4], 1), ("b", [3], 2), ("h", [1, 3], 0), ("y", [1, 3], 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, shape, buffer, schema.TensorType.FLOAT32
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = [0], [4]
    for at, inputs, outputs in ((0, [0, 1, 2], [3]), (1, [3], [4])):
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = at, inputs, outputs
        graph.operators.append(operator)
    graph.operators[0].builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    graph.operators[0].builtinOptions = schema.FullyConnectedOptionsT()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tflite(rng: Random) -> bytes:
    made = flipped(tflite_file(), rng)
    return made[:4] + b"TFL3" + made[8:]


@cache
def result() -> dict[str, bytes]:
    """A result as the store keeps it, with every sort of array."""
    arrays = {
        "evidence/correct": np.array([True, False]),
        "scores": np.linspace(0, 1, 6).reshape(2, 3),
        "ids": np.arange(4),
    }
    return pack(Result(arrays, {"n": 4, "notes": ["a"], "spent": {"queries": 3}, "share": 0.5}, {"model.onnx": b"x"}))


def cell(rng: Random) -> bytes:
    """Its parts, one after another; the manifest tells the digests that they really have."""
    parts = dict(result())
    name = rng.choice([DOCUMENT, ARRAYS, MANIFEST])
    if name == ARRAYS and rng.random() < 0.6:
        length = int.from_bytes(parts[ARRAYS][:8], "little")
        header = swapped(json.loads(parts[ARRAYS][8 : 8 + length]), rng)
        parts[ARRAYS] = written(header, parts[ARRAYS][8 + length :])
    elif name == DOCUMENT and rng.random() < 0.6:
        parts[DOCUMENT] = json.dumps(swapped(json.loads(parts[DOCUMENT]), rng), separators=(",", ":")).encode()
    else:
        parts[name] = flipped(parts[name], rng)
    if name != MANIFEST:
        digests = {key: hashlib.sha256(raw).hexdigest() for key, raw in parts.items() if key != MANIFEST}
        parts[MANIFEST] = canonical_json(digests)
    return b"".join(len(raw).to_bytes(8, "little") + raw for raw in parts.values())


def _read_cell(path: Path) -> None:
    content, parts = path.read_bytes(), {}
    for name in result():
        length = int.from_bytes(content[:8], "little")
        parts[name], content = content[8 : 8 + length], content[8 + length :]
    check(parts)
    check_form(None, parts)


def _read_onnx(path: Path) -> None:
    check_onnx(path.read_bytes())  # what this refuses, the process of its own does too
    opened(path)


def _read_audit(path: Path) -> None:
    read_audit(path).model_dump_json(by_alias=True)


Reader = Callable[[Path], object]
SORTS: dict[str, tuple[str, Callable[[Random], bytes], Reader]] = {
    "onnx": ("mutant.onnx", onnx, _read_onnx),
    "tflite": ("mutant.tflite", tflite, opened),
    "npz": ("mutant.npz", npz, load_npz),
    "safetensors": ("mutant.safetensors", safetensors, lambda path: load_weights(network(), path)),
    "audit": ("audit.json", audit_json, _read_audit),
    "cells": ("mutant.parts", cell, _read_cell),
}


def meet(sort: str, content: bytes, folder: Path) -> Exception | None:
    """What a mutant leads to, when that is neither to be taken nor to be refused in a sentence."""
    name, _, read = SORTS[sort]
    path = folder / name
    path.write_bytes(content or b"\0")
    try:
        read(path)
    except DamagedError:
        return None  # and computed anew
    except (InputError, UnsafeInput) as error:
        said = str(error)
        return (
            None if said and len(said) < 3000 and said.isprintable() else ValueError(f"not a sentence: {said!r:.300}")
        )
    except Exception as error:  # what this looks for
        return error
    finally:
        path.unlink()
    return None
