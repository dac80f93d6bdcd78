"""What lies where in an ONNX file, read off its bytes: nothing is parsed into objects, nothing in it is believed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

FIELDS = 500_000  # of a file that are looked at
DEPTH = 12
TURNED = 2**24  # values of a tensor that are read in the order of its columns, at most

# Fields that hold messages, by kind of message (onnx.proto): number -> kind of the inner one.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "entry", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse", 16: "entry"},
    "function": {7: "node", 11: "attribute", 14: "entry"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute", 9: "entry"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {16: "entry"},
    "entry": {},
}
_NAME = {"tensor": 8, "attribute": 1, "node": 3, "entry": 1}
_DOCUMENTED = {"model": 6, "graph": 10, "node": 6, "attribute": 13, "tensor": 12, "function": 8}
_RAW, _PACKED = (4, 9, 10), (5, 7, 11)  # of a tensor: values as they lie, and as numbers of varying length
BFLOAT = "bfloat16"
SHORT = ("<i2", "<u2")  # which bytes are not read as unless something says that they are
_TYPES = {
    16: BFLOAT,
    1: "<f4",
    2: "<u1",
    3: "<i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    10: "<f2",
    11: "<f8",
}  # TensorProto.DataType


@dataclass(frozen=True)
class Span:
    """Some bytes of a file.

    Args:
        name: what they are, for people.
        numbers: the values in another order, or as they are where the bytes are no plain numbers; None: as they lie.
    """

    begin: int
    end: int
    name: str
    numbers: np.ndarray[Any, Any] | None = None

    def turned(self, content: bytes, dtype: str | None, shape: Any) -> Span:
        """With the values in the order of the columns, where it is a matrix: a record may lie in a column.

        Integers of 16 bits in both orders, one behind the other.
        """
        sizes = [int(size) for size in shape][:16]
        count = math.prod(sizes)
        if dtype is None or not sizes or count > TURNED or min(sizes) < 1:
            return self
        if dtype not in SHORT and (len(sizes) < 2 or sizes[0] < 2):
            return self
        plain = "<u2" if dtype == BFLOAT else dtype
        if count * np.dtype(plain).itemsize != self.end - self.begin or self.end > len(content):
            return self
        values = np.frombuffer(content, plain, count, self.begin).reshape(sizes[0], -1).T
        if dtype == BFLOAT:
            values = widened(values)
        with np.errstate(invalid="ignore"):  # signalling NaN
            turned = values.astype(np.float64).ravel()
        lies = values.T.astype(np.float64).ravel() if dtype in SHORT else turned[:0]
        return replace(self, numbers=np.concatenate([lies, turned]))


def widened(halves: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """bfloat16, as whole numbers, as float32."""
    return np.ascontiguousarray(halves.astype(np.uint32) << 16).view(np.float32)


def onnx_spans(content: bytes) -> list[Span]:
    """Of an ONNX file; empty: it is none."""
    found: list[Span] = []
    left = [FIELDS]
    try:
        _walk(content, 0, len(content), "model", "", found, left, 0)
    except (ValueError, IndexError):
        return found if any(span.name.startswith("tensor") for span in found) else []
    return found


def _walk(
    content: bytes, begin: int, end: int, kind: str, path: str, found: list[Span], left: list[int], depth: int
) -> None:
    fields = list(_fields(content, begin, end, left))
    own = next((content[low:high] for number, low, high in fields if number == _NAME.get(kind) and high > low), b"")
    name = own[:200].decode("utf-8", "replace")
    if kind == "tensor":
        _tensor(content, fields, f"tensor {name!r}" if name else f"a tensor of {path}", found)
    if kind == "entry":
        found.append(Span(begin, end, f"metadata {name!r}"))
    inner = f"{kind} {name!r}" if name else path or f"the {kind}"
    for number, low, high in fields:
        if number == _DOCUMENTED.get(kind) and high > low:
            found.append(Span(low, high, f"the doc string of {inner}"))
        elif high > low and number in _INNER[kind] and depth < DEPTH:
            _walk(content, low, high, _INNER[kind][number], inner, found, left, depth + 1)
        elif kind == "attribute" and number in (4, 7, 9) and high - low > 16:
            found.append(Span(low, high, inner))


def _fields(content: bytes, begin: int, end: int, left: list[int]) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field that has a length; of one that is a single number: number, its value, -1."""
    at = begin
    while at < end:
        left[0] -= 1
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if left[0] < 0 or number == 0:
            raise ValueError("no such message")
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value, -1
        elif wire == 2:
            length, at = _varint(content, at)
            if at + length > end:
                raise ValueError("cut short")
            yield number, at, at + length
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError("no such wire type")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("too long a number")


def _tensor(content: bytes, fields: list[tuple[int, int, int]], name: str, found: list[Span]) -> None:
    sizes = [value for number, value, end in fields if number == 1 and end == -1]
    for number, low, high in fields:
        if number == 1 and high > low:  # packed
            sizes += [int(value) for value in _varints(content[low:high])]
    dtype = _TYPES.get(next((value for number, value, end in fields if number == 2 and end == -1), 0))
    for number, low, high in fields:
        if high <= low:
            continue
        if number in _RAW:
            found.append(Span(low, high, name).turned(content, dtype, sizes))
        elif number in _PACKED and high - low <= TURNED:
            values = _varints(content[low:high])
            if dtype == "<f2":
                values = (values & 0xFFFF).astype("<u2").view("<f2")
            elif dtype == BFLOAT:
                values = widened(values & 0xFFFF)
            found.append(Span(low, high, name, values.astype(np.float64)))


def _varints(packed: bytes) -> np.ndarray[Any, Any]:
    """int64: numbers of varying length, one after the other."""
    octets = np.frombuffer(packed, np.uint8)
    last = np.flatnonzero(octets < 0x80)
    if not len(last):
        return np.zeros(0, np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(last[-1] + 1) - np.repeat(first, last - first + 1)
    bits = octets[: last[-1] + 1].astype(np.uint64) & np.uint64(0x7F)
    values = bits << (7 * np.minimum(place, 9)).astype(np.uint64)
    return np.add.reduceat(values, first).view(np.int64)
