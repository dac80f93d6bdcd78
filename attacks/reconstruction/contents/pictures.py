"""PNG pictures anywhere in some bytes, decoded within the memory and time that one file may ask for.

Read are pictures that are not interlaced, of grey or colours, direct or of a palette, in 1 to 16 bits; transparency is
left out. Nothing that a header says is believed before so many bytes have come out, and no more are let out.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .streams import ordered

SIGN = b"\x89PNG\r\n\x1a\n"
HEADER = b"\0\0\0\rIHDR"
LARGEST = 2**22  # bytes of one picture
LEAST_ROOM, MOST_ROOM = 2**22, 2**26  # bytes of all pictures of a file, between which there is room for
ROOM = 3  # bytes for each of the file
CHUNKS = 32  # bytes of the file for each chunk that is looked at
SWEEPS = 2**13  # diagonals that are decoded in one file: width and height of each batch of pictures of one size
PLANES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # numbers of a pixel, by the type of its colour
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@dataclass(frozen=True)
class Layout:
    """Of a picture, as its header says: colour as in `PLANES`, depth in bits."""

    width: int
    height: int
    depth: int
    colour: int

    @property
    def line(self) -> int:
        """Bytes of a row of pixels."""
        return (self.width * PLANES[self.colour] * self.depth + 7) // 8

    @property
    def size(self) -> int:
        """Bytes that come out: each row with the number of its filter before it."""
        return self.height * (self.line + 1)

    @property
    def shown(self) -> int:
        """Numbers of the picture, without its transparency."""
        return self.width * self.height * (3 if self.colour in (2, 3, 6) else 1)


@dataclass
class _Batch:
    """Pictures of one layout: where each begins, what came out of it, and its palette."""

    places: list[int] = field(default_factory=list)
    packed: list[bytes] = field(default_factory=list)
    palettes: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size: uint8 or uint16 [k, planes, height, width], and where each begins, int64 [k]."""

    pixels: np.ndarray[Any, Any]
    places: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def words(self) -> str:
        """What they are, for people."""
        _, planes, height, width = self.pixels.shape
        return f"PNG picture of {width} x {height} pixels{' in colours' if planes == 3 else ''}"


class Album:
    """Collects the pictures of a file, wherever they are packed in it.

    Attributes:
        cut: whether there were more than are looked at.
    """

    def __init__(self, size: int, least: int) -> None:
        """`size`: bytes of the file; `least`: numbers of a record, below which no picture is read; 0: none."""
        self.cut = False
        self._least = least
        self._room = min(max(ROOM * size, LEAST_ROOM), MOST_ROOM)
        self._chunks, self._sweeps = 1024 + size // CHUNKS, SWEEPS

    def pictures(self, content: bytes, unpacked: list[tuple[int, int]]) -> Iterator[Pictures]:
        """Those in some bytes, by size.

        Args:
            unpacked: (begin, end) of what is unpacked elsewhere; those of the pictures' compressed pixels are added.
        """
        begins, ends = ordered(unpacked)
        batches: dict[Layout, _Batch] = {}
        at = content.find(SIGN + HEADER) if self._least else -1
        while at >= 0:
            layout, end = _layout(content, at), at + len(SIGN)
            if layout is not None and at >= ends[bisect_right(begins, at)]:
                palette, parts, end = self._parts(content, at)
                packed = self._unpacked(content, layout, parts) if layout.shown >= self._least else b""
                if packed is not None:
                    unpacked += parts
                if packed:
                    batch = batches.setdefault(layout, _Batch())
                    batch.places.append(at)
                    batch.packed.append(packed)
                    batch.palettes.append(palette)
                    if len(batch.packed) * layout.size >= LARGEST:
                        yield from self._decoded(layout, batches.pop(layout))
            at = content.find(SIGN + HEADER, end)
        for layout, batch in batches.items():
            yield from self._decoded(layout, batch)

    def _parts(self, content: bytes, at: int) -> tuple[bytes, list[tuple[int, int]], int]:
        """The palette, where the compressed pixels lie, and the end of what was understood."""
        palette, parts, begin = b"", list[tuple[int, int]](), at + len(SIGN)
        while begin + 12 <= len(content):
            self._chunks -= 1
            if self._chunks < 0:
                self.cut = True
                break
            length, kind = int.from_bytes(content[begin : begin + 4], "big"), content[begin + 4 : begin + 8]
            end = begin + 12 + length
            if end > len(content) or not kind.isalpha():
                break
            if kind == b"IDAT":
                parts.append((begin + 8, end - 4))
            elif kind == b"PLTE":
                palette = content[begin + 8 : min(end - 4, begin + 8 + 768)]
            begin = end
            if kind == b"IEND":
                break
        return palette, parts, begin

    def _unpacked(self, content: bytes, layout: Layout, parts: list[tuple[int, int]]) -> bytes | None:
        """Rows with their filters; empty: there is no room for them; None: it is no whole picture."""
        if not parts:
            return None
        if layout.size > min(LARGEST, self._room):
            self.cut = True
            return b""
        self._room -= layout.size
        stream, out = zlib.decompressobj(), bytearray()
        fed = layout.size + layout.size // 8 + 1024  # no honest stream is longer
        try:
            for begin, end in parts:
                out += stream.decompress(content[begin : min(end, begin + fed)], layout.size - len(out))
                fed -= end - begin
                if len(out) == layout.size or fed <= 0 or stream.eof:
                    break
        except zlib.error:
            return None
        return bytes(out) if len(out) == layout.size else None

    def _decoded(self, layout: Layout, batch: _Batch) -> Iterator[Pictures]:
        lines = np.frombuffer(b"".join(batch.packed), np.uint8).reshape(-1, layout.height, layout.line + 1)
        valid = lines[:, :, 0].max(1) <= 4
        places, palettes = np.array(batch.places)[valid], [batch.palettes[at] for at in np.flatnonzero(valid)]
        lines = lines[valid]
        self._sweeps -= layout.height + layout.width if len(lines) and lines[:, :, 0].any() else 0
        if self._sweeps < 0:
            self.cut = True
        elif len(lines):
            plain = unfiltered(lines, max(1, PLANES[layout.colour] * layout.depth // 8))
            yield Pictures(_pixels(plain, layout, palettes), places)


def _layout(content: bytes, at: int) -> Layout | None:
    """Of the picture there; None: it is none that is read."""
    begin = at + len(SIGN) + len(HEADER)
    head = content[begin : begin + 13]
    if len(head) < 13:
        return None
    found = Layout(int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big"), head[8], head[9])
    usual = found.depth in DEPTHS.get(found.colour, ()) and head[10:] == bytes(3)
    return found if usual and found.width and found.height else None


def unfiltered(lines: np.ndarray[Any, Any], unit: int) -> np.ndarray[Any, Any]:
    """Rows of bytes as they were before filters made them easier to pack.

    A byte follows from those left of it and above it, so that all of a diagonal, in all pictures, are had at once.

    Args:
        lines: uint8 [k, height, 1 + line]: the number of its filter, 0 to 4, before each row.
        unit: bytes from a pixel to the next.

    Returns:
        uint8 [k, height, line].
    """
    count, height, width = lines.shape
    columns = (width - 1) // unit
    if not lines[:, :, 0].any():
        return lines[:, :, 1:]
    done = np.zeros((height + 1, columns + 1, count, unit), np.int16)
    done[1:, 1:] = lines[:, :, 1:].reshape(count, height, columns, unit).transpose(1, 2, 0, 3)
    filters = lines[:, :, 0].T[:, :, None]
    for diagonal in range(height + columns - 1):
        y = np.arange(max(0, diagonal - columns + 1), min(height - 1, diagonal) + 1)
        x = diagonal - y
        left, above, corner = done[y + 1, x], done[y, x + 1], done[y, x]
        rise = above - corner, left - corner  # how far the sum of both steps is from the left, and from above
        by_left, by_above, by_corner = np.abs(rise[0]), np.abs(rise[1]), np.abs(rise[0] + rise[1])
        nearest = np.where(by_above <= by_corner, above, corner)
        nearest = np.where((by_left <= by_above) & (by_left <= by_corner), left, nearest)
        done[y + 1, x + 1] += np.choose(filters[y], (np.int16(0), left, above, (left + above) >> 1, nearest))
        done[y + 1, x + 1] &= 255
    return done[1:, 1:].transpose(2, 0, 1, 3).reshape(count, height, width - 1).astype(np.uint8)


def _pixels(lines: np.ndarray[Any, Any], layout: Layout, palettes: list[bytes]) -> np.ndarray[Any, Any]:
    """[k, planes, height, width], of rows of bytes [k, height, line]."""
    count, planes = len(lines), PLANES[layout.colour]
    values = np.ascontiguousarray(lines)
    if layout.depth == 16:
        values = values.view(">u2").astype(np.uint16)
    elif layout.depth < 8:
        bits = np.unpackbits(values, axis=2).reshape(count, layout.height, -1, layout.depth)
        values = np.packbits(bits, axis=3)[..., 0][:, :, : layout.width * planes] >> (8 - layout.depth)
    values = values.reshape(count, layout.height, layout.width, planes)
    if layout.colour == 3:
        tables = np.frombuffer(b"".join(one.ljust(768, b"\0") for one in palettes), np.uint8).reshape(-1, 256, 3)
        values = tables[np.arange(count)[:, None, None], values[..., 0]]
    shown = values[..., :1] if layout.colour in (0, 4) else values[..., :3]
    return np.ascontiguousarray(shown.transpose(0, 3, 1, 2))
