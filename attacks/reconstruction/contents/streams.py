"""Compressed streams that begin anywhere in some bytes: behind a file, in a tensor, in a value of a pickle."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from ....targets.errors import UnsafeInput
from ....targets.untrusted.files import RATIO, SMALL

FEWEST = 64  # bytes that come out, below which it was none
FIRST, FED = 2**12, 2**20  # bytes at a time, at first, as most are no stream, and at most
WASTED = 16  # bytes in for each of the file, beyond what came out, with which it is one that is made to take time
MEMORY = 2**28  # bytes that unpacking xz may take

_BEGIN = re.compile(rb"PK\x03\x04|\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|BZh[1-9]1AY&SY|\xfd7zXZ\x00")
_ZIPPED: dict[int, Callable[[], Any]] = {8: lambda: zlib.decompressobj(-15), 12: bz2.BZ2Decompressor}
_OPENED: tuple[tuple[bytes, str, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", "gzip", lambda: zlib.decompressobj(31)),
    (b"x", "zlib", zlib.decompressobj),
    (b"B", "bzip2", bz2.BZ2Decompressor),
    (b"\xfd", "xz", lambda: lzma.LZMADecompressor(memlimit=MEMORY)),
)


def streams(content: bytes, room: list[int], known: Sequence[tuple[int, int]]) -> Iterator[tuple[int, str, bytes]]:
    """Offset, kind and what comes out of every stream (zip, gzip, zlib, bzip2, xz); a damaged one as far as it goes.

    Args:
        room: bytes that may come out of all, which is counted down.
        known: (begin, end) of what is unpacked elsewhere.

    Raises:
        UnsafeInput: more comes out than there is room for or than of anything but a bomb, or far more goes in.
    """
    begins, ends = ordered(known)
    wasted, most, packed, out = 0, WASTED * len(content) + 2**24, 0, 0
    for match in _BEGIN.finditer(content):
        at = begin = match.start()
        if at < ends[bisect_right(begins, at)]:
            continue
        if match.group().startswith(b"PK"):
            begin += 30 + sum(int.from_bytes(content[at + field : at + field + 2], "little") for field in (26, 28))
            word, opened = "zip", _ZIPPED.get(int.from_bytes(content[at + 8 : at + 10], "little"))
        else:
            word, opened = next((name, make) for sign, name, make in _OPENED if match.group().startswith(sign))
        fed, data = (0, b"") if opened is None else _unpacked(memoryview(content)[begin:], opened(), room[0])
        packed, out = packed + fed, out + len(data)
        if out > SMALL and out > RATIO * packed:
            raise UnsafeInput(f"{packed:,} bytes of the file unpack to {out:,}, as those of a zip bomb do.")
        wasted += max(0, fed - len(data))
        if wasted > most:
            raise UnsafeInput("The file looks like compressed streams at so many places that it is made to take time.")
        if len(data) >= FEWEST:
            room[0] -= len(data)
            yield at, word, data


def ordered(spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Begins of spans, ascending, and up to where those reach that begin before: there is one more of these."""
    ascending = sorted(spans)
    return [low for low, _ in ascending], [-1, *accumulate((high for _, high in ascending), max)]


def _unpacked(packed: memoryview, stream: Any, room: int) -> tuple[int, bytes]:
    """How many bytes went in, and what came out."""
    found, begin, size = bytearray(), 0, FIRST
    while begin < len(packed) and not stream.eof:
        fed: Any = packed[begin : begin + size]
        begin, size = begin + len(fed), min(FED, 4 * size)
        while not stream.eof:
            try:
                some = stream.decompress(fed, FED)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
                return begin, bytes(found)
            found += some
            if len(found) > room:
                raise UnsafeInput(f"More than {room:,} bytes come out of a part of the file, as of a zip bomb.")
            fed = getattr(stream, "unconsumed_tail", b"")
            if not fed and len(some) < FED and getattr(stream, "needs_input", True):
                break
    return begin, bytes(found)
