"""What a file holds, taken apart without running or believing it: bytes that lie packed in it, and what lies where.

A file is searched as it lies, whatever its kind. Beyond that its kind tells what is written otherwise than as plain
bytes (deflated entries of archives, base64, UTF-16, numbers as text, values of a pickle, pictures) and what the places
are called. What cannot be taken apart hides nothing: its bytes are searched all the same.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickletools
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....targets.errors import UnsafeInput
from ....targets.untrusted.files import is_pickle, open_archive, read_entry
from ....targets.untrusted.other_formats import unpacked
from .blocks import Turning
from .pictures import Album
from .protobuf import BFLOAT, Span, onnx_spans
from .streams import streams
from .texts import Text, ascii_text, wide_text

UNPACKED = 2**31  # bytes, of everything that is unpacked, as large a file as is read at all
DEPTH = 4  # of what is packed in what is packed
OPCODES = 2_000_000  # of a pickle that are looked at
SHORT = 64  # characters of a word of base64, below which it holds no record
FEW = 6  # numbers or characters of a pickle, below which they are none

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{%d,}={0,2}" % SHORT)
_HEXADECIMAL = re.compile(rb"[0-9a-fA-F]{%d,}" % SHORT)
_BREAK = rb"(?:\\r)?\\n[ \t]*|\r?\n[ \t]*"  # as it is, or as JSON writes it
_BASE64_LINES = re.compile(rb"(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{56,128}+(?:%s))+[A-Za-z0-9+/]*={0,2}" % _BREAK)
_HEXADECIMAL_LINES = re.compile(rb"(?<![0-9a-fA-F])(?:[0-9a-fA-F]{32,128}+(?:%s))+[0-9a-fA-F]*" % _BREAK)
_BREAKS = re.compile(_BREAK)
_ENCODED = (
    (_BASE64, "base64"),
    (_HEXADECIMAL, "hexadecimal"),
    (_BASE64_LINES, "base64"),
    (_HEXADECIMAL_LINES, "hexadecimal"),
)
TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": BFLOAT,
    "I64": "<i8",
    "I32": "<i4",
    "I8": "<i1",
    "U8": "<u1",
    "I16": "<i2",
    "U16": "<u2",
}


@dataclass(frozen=True)
class Part:
    """Bytes, or numbers, that a file holds.

    Args:
        where: how they are packed in it, for people; "": they are the file itself.
        offset: of what holds them, in the file.
        content: the bytes; empty where they are numbers.
        numbers: uint8 or float64 [m], written as text, as values of a pickle or as pictures; None: they are bytes.
        text: what the content was read from, where that is no plain bytes.
        pieces: of numbers that are pictures of one size, one after the other, where each begins: int64 [k].
        direct: whether the places of its text or its pieces, or of the bytes themselves, are offsets in the file.
    """

    where: str
    offset: int
    content: bytes = b""
    numbers: np.ndarray[Any, Any] | None = None
    text: Text | None = None
    pieces: np.ndarray[Any, Any] | None = None
    direct: bool = False

    def begin(self, offset: int) -> int:
        """Where that is, `offset` bytes into the part, in the bytes that it was read from."""
        if self.text is not None:
            return self.text.place(offset)
        if self.pieces is not None and self.numbers is not None:
            return int(self.pieces[offset * len(self.pieces) // self.numbers.nbytes])
        return offset

    def at(self, offset: int) -> int:
        """The offset in the file of that or, where it is packed, of what holds it."""
        return self.begin(offset) if self.direct else self.offset


@dataclass
class Contents:
    """A file taken apart.

    Attributes:
        parts: the file itself first.
        spans: what lies where in the file itself, ascending.
        kind: what it is, in a word or two.
        cut: whether it holds more pictures than were decoded.
    """

    parts: list[Part]
    spans: list[Span] = field(default_factory=list)
    kind: str = "a file of no known kind"
    cut: bool = False

    def place(self, part: int, offset: int) -> str:
        """What people call the place, `offset` bytes into a part."""
        one = self.parts[part]
        inside = one.at(offset)
        at = bisect_right([span.begin for span in self.spans], inside) - 1
        name = self.spans[at].name if at >= 0 and inside < self.spans[at].end else ""
        return ", ".join(word for word in (name, one.where) if word) or "no named part"


@dataclass
class _Limits:
    """What is left to be spent on one file: bytes that may be unpacked, arrays to turn, pictures to decode."""

    room: list[int]
    turning: Turning
    album: Album


def take_apart(content: bytes, width: int = 0) -> Contents:
    """Everything that can be read out of a file without running it.

    Args:
        width: values of a record, so that arrays of unstated shape are read by columns too, and pictures; 0: neither.

    Raises:
        UnsafeInput: an archive that is damaged or crafted, or unpacks to more than `UNPACKED` bytes.
    """
    found = Contents([Part("", 0, content, direct=True)])
    left = _Limits([UNPACKED], Turning(width), Album(len(content), width))
    found.kind, found.spans = _kind(content)
    found.parts += _inside(content, "", 0, 0, left, found.spans)
    if found.kind == "TFLite":
        found.parts += [Part("columns", at, numbers=values) for at, values in left.turning.prefixed(content)]
    for span in list(found.spans):
        if span.numbers is not None:
            found.parts.append(Part("", span.begin, numbers=span.numbers))
    found.spans.sort(key=lambda span: span.begin)
    found.cut = left.album.cut
    return found


def _kind(content: bytes) -> tuple[str, list[Span]]:
    """What a file is, in a word or two, and what lies where in it; entries of an archive are not among that yet."""
    if content.startswith(b"PK\x03\x04"):
        return "a zip archive", []
    if content[8:10] == b'{"':
        return "safetensors", list(_safetensors(content))
    if content[4:8] == b"TFL3":
        return "TFLite", []
    spans = [] if is_pickle(content[:2]) or content.startswith(b"\x1f\x8b") else onnx_spans(content)
    return ("ONNX" if spans else "a file of no known kind"), spans


def _inside(
    content: bytes, where: str, offset: int, depth: int, left: _Limits, spans: list[Span] | None
) -> Iterator[Part]:
    """What is packed in some bytes; `spans`: of the file itself, which entries of an archive are added to."""
    room, turning = left.room, left.turning
    if depth >= DEPTH:
        if content.startswith((b"PK\x03\x04", b"\x1f\x8b")):
            raise UnsafeInput(
                f"{where or 'the file'} is an archive within {DEPTH} others, and no deeper one is searched: nothing "
                "can be said of what it holds. Unpack it and search what comes out."
            )
        return
    unpacked_here = list[tuple[int, int]]()
    if content.startswith(b"PK\x03\x04"):
        with open_archive(io.BytesIO(content), where or "the file", limit=room[0]) as archive:
            for entry in archive.infolist():
                begin, name = entry.header_offset, f"entry {entry.filename[:200]!r}"
                if spans is not None:
                    spans.append(Span(begin, begin + entry.compress_size + 30 + len(entry.orig_filename) + 64, name))
                stored = entry.compress_type == 0
                data = bytes(read_entry(archive, entry, where or "the file"))
                room[0] -= len(data)
                inner = f"{where}, {name}" if where else ("" if spans is not None else name)
                if not stored:
                    yield Part(inner or "deflated", begin if spans is not None else offset, data)
                place = begin if spans is not None else offset
                if not stored or is_pickle(data[:2]) or data[:4] == b"PK\x03\x04":
                    unpacked_here.append((begin, begin + 30 + len(entry.orig_filename) + entry.compress_size))
                    yield from _inside(data, inner, place, depth + 1, left, None)
                else:
                    yield from (Part(_then(inner, "columns"), place, numbers=one) for one in turning.block(data))
                yield from _by_columns(data, inner, place)
    elif content.startswith(b"\x1f\x8b"):
        unpacked_here.append((0, len(content)))
        data = unpacked(content, where or "the file", max(room[0], 1))
        room[0] -= len(data)
        yield Part(_then(where, "unpacked"), offset, data)
        yield from _inside(data, _then(where, "unpacked"), offset, depth + 1, left, None)
        yield from _by_columns(data, _then(where, "unpacked"), offset)
    elif is_pickle(content[:2]):
        yield from _pickled(content, where, offset, turning)
    for at, values in turning.arrays(content):
        yield Part(_then(where, "columns"), at if spans is not None else offset, numbers=values)
    for one in left.album.pictures(content, unpacked_here):
        inner = _then(where, one.words)
        values = one.pixels if one.pixels.dtype == np.uint8 else one.pixels.astype(np.float64)
        yield Part(inner, offset, numbers=values.ravel(), pieces=one.places, direct=spans is not None)
    for at, word, data in streams(content, room, unpacked_here):
        place, inner = at if spans is not None else offset, _then(where, word)
        yield Part(inner, place, data)
        yield from _inside(data, inner, place, depth + 1, left, None)
        yield from _by_columns(data, inner, place)
    plain, wide = ascii_text(content), wide_text(content)
    yield from _written(plain, where, offset, depth, left, top=spans is not None)
    if wide.content:
        inner = _then(where, "UTF-16 text")
        yield Part(inner, offset, wide.content, text=wide, direct=spans is not None)
        yield from _written(wide, inner, offset, depth, left, top=spans is not None)


def _then(where: str, word: str) -> str:
    return f"{where}, {word}" if where else word


def _by_columns(data: bytes, where: str, offset: int) -> Iterator[Part]:
    """Of a file inside the file: its tensors in the other order, and what is no plain numbers in it."""
    for span in _kind(data)[1]:
        if span.numbers is not None:
            yield Part(_then(where, span.name), offset, numbers=span.numbers)


def _written(text: Text, where: str, offset: int, depth: int, left: _Limits, *, top: bool) -> Iterator[Part]:
    """What is written as text: base64, hexadecimal, numbers."""
    for begin, values in text.numbers():
        for order in (values, *left.turning.columns(values)):
            yield Part(_then(where, "numbers as text"), text.place(begin) if top else offset, numbers=order)
    for pattern, word in _ENCODED:
        for match in pattern.finditer(text.content):
            code = match.group() if pattern in (_BASE64, _HEXADECIMAL) else _BREAKS.sub(b"", match.group())
            for glued in (0, 1):  # the length before a text may end in a byte that looks like its first character
                data = _decoded(code[glued:], word)
                if data is None or len(data) > left.room[0]:
                    continue
                left.room[0] -= len(data)
                at = text.place(match.start()) if top else offset
                yield Part(_then(where, word), at, data)
                yield from _inside(data, _then(where, word), at, depth + 1, left, None)


def _decoded(text: bytes, word: str) -> bytes | None:
    try:
        if word == "hexadecimal":
            return binascii.unhexlify(text[: len(text) // 2 * 2])
        plain = text.rstrip(b"=")
        plain = plain[: len(plain) - (len(plain) % 4 == 1)]
        plain = plain.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(plain) % 4)
        return base64.b64decode(plain)
    except (ValueError, binascii.Error):
        return None


def _pickled(content: bytes, where: str, offset: int, turning: Turning) -> Iterator[Part]:
    """Numbers and Latin-1 texts of a pickle, read opcode by opcode: nothing is built, imported or called."""
    inner = f"{where}, values of a pickle" if where else "values of a pickle"
    values: list[float] = []
    try:
        for at, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if at >= OPCODES:
                break
            if isinstance(argument, int | float) and opcode.name in _PICKLED_NUMBERS:
                values.append(float(argument) if abs(argument) < 2**62 else 0.0)
            elif isinstance(argument, str) and len(argument) >= FEW and not argument.isascii():
                # protocols 0 to 2 write bytes as text
                plain = argument.encode("latin-1", "ignore")
                yield Part(inner, offset, plain)
                yield from (Part(inner, offset, numbers=one) for one in turning.block(plain))
            elif isinstance(argument, bytes | bytearray):
                yield from (Part(inner, offset, numbers=one) for one in turning.block(argument))
    except Exception:  # crafted: what is left is searched as bytes
        pass
    if len(values) >= FEW:
        yield Part(inner, offset, numbers=np.array(values))


_PICKLED_NUMBERS = {"FLOAT", "BINFLOAT", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}


def _safetensors(content: bytes) -> Iterator[Span]:
    length = int.from_bytes(content[:8], "little")
    if length > min(len(content) - 8, 2**24):
        return
    yield Span(8, 8 + length, "the header")
    try:
        header = json.loads(content[8 : 8 + length])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + int(at) for at in entry["data_offsets"])
            yield Span(begin, end, f"tensor {name[:200]!r}").turned(content, TYPES.get(entry["dtype"]), entry["shape"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
