"""Bit strings: fixed-width packing, canonical Huffman codes, and a reader that checks lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...targets.errors import InputError

LONGEST_CODE = 16  # bits; codes are optimal under this limit
Symbols = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]


class Reader:
    """Reads bytes from front to back; asking for more than there are raises InputError."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise InputError("The payload is cut off, or does not fit the module it is decoded into.")
        self._position += count
        return self._data[self._position - count : self._position]

    def peek(self) -> int:
        """The next byte, or -1 at the end."""
        return self._data[self._position] if self.left else -1

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise InputError("The payload is damaged: an integer has no end.")


def varint(value: int) -> bytes:
    """An integer >= 0 in 7-bit groups, lowest first; the high bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack(symbols: Symbols, width: int) -> bytes:
    """Each symbol in `width` bits (0..32), highest first, without gaps."""
    if width == 0 or not len(symbols):
        return b""
    octets = symbols.astype(">u4").view(np.uint8).reshape(-1, 4)
    return np.packbits(np.unpackbits(octets, axis=1)[:, 32 - width :]).tobytes()


def unpack(data: bytes, width: int, count: int) -> Symbols:
    """What `pack` packed: uint32 [count]."""
    if width == 0 or count == 0:
        return np.zeros(count, dtype=np.uint32)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count * width).reshape(count, width)
    padded = np.concatenate([np.zeros((count, 32 - width), dtype=np.uint8), bits], axis=1)
    return np.packbits(padded, axis=1).view(">u4").reshape(-1).astype(np.uint32)


def encode_symbols(symbols: Symbols) -> bytes:
    """Symbols 0..255 as: alphabet size, the lengths of their codes (4 or 5 bits each), number of bits, the codes."""
    counts = np.bincount(symbols) if len(symbols) else np.zeros(0, dtype=np.int64)
    lengths = code_lengths(counts)
    width = 4 if lengths.max(initial=0) < 16 else 5
    codes = _canonical(lengths)
    size = lengths[symbols]
    bits = np.unpackbits((codes[symbols] << (16 - size)).astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    stream = bits[np.arange(LONGEST_CODE) < size[:, None]]
    header = varint(len(lengths) << 1 | (width == 5)) + pack(lengths.astype(np.uint32), width)
    return header + varint(len(stream)) + np.packbits(stream).tobytes()


def decode_symbols(reader: Reader, count: int) -> Symbols:
    """`count` symbols that `encode_symbols` wrote: uint8 [count]. Raises InputError if they are not what it writes."""
    header = reader.varint()
    alphabet, width = header >> 1, 4 + (header & 1)
    if alphabet > 256:
        raise InputError("The payload is damaged: an alphabet of impossible size.")
    lengths = unpack(reader.take((alphabet * width + 7) // 8), width, alphabet).astype(np.int64)
    total = reader.varint()
    stream = np.unpackbits(np.frombuffer(reader.take((total + 7) // 8), dtype=np.uint8), count=total)
    used = np.flatnonzero(lengths)
    if np.sum(2.0 ** -lengths[used]) > 1 or lengths.max(initial=0) > LONGEST_CODE or (count and not len(used)):
        raise InputError("The payload is damaged: its code lengths are not those of a prefix code.")
    if count == 0:
        return np.zeros(0, dtype=np.uint8)
    longest = int(lengths.max())
    # For every value of the next `longest` bits: the symbol whose code they start with, and that code's length.
    order = used[np.lexsort((used, lengths[used]))]
    spans = 1 << (longest - lengths[order])
    symbol_of = np.zeros(1 << longest, dtype=np.uint8)
    length_of = np.full(1 << longest, longest, dtype=np.uint8)
    symbol_of[: spans.sum()] = np.repeat(order, spans)
    length_of[: spans.sum()] = np.repeat(lengths[order], spans)
    padded = np.concatenate([stream, np.zeros(longest, dtype=np.uint8)]).astype(np.uint32)
    window = np.zeros(total + 1, dtype=np.uint32)
    for bit in range(longest):
        window += padded[bit : total + 1 + bit] << np.uint32(longest - 1 - bit)
    steps = length_of[window].tolist()
    places = np.empty(count, dtype=np.int64)
    place = 0
    for index in range(count):
        if place >= total:
            raise InputError("The payload is damaged: a Huffman stream ends too early.")
        places[index] = place
        place += steps[place]
    if place != total:
        raise InputError("The payload is damaged: a Huffman stream is longer than its symbols.")
    return symbol_of[window[places]]


def code_lengths(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The length in bits of each symbol's code (0: unused), optimal for `counts` among codes of at most LONGEST_CODE.

    The package-merge algorithm (Larmore and Hirschberg 1990); where no code exceeds the limit it gives Huffman's.
    """
    lengths = np.zeros(len(counts), dtype=np.int64)
    used = np.flatnonzero(counts)
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    coins: list[tuple[int, tuple[int, ...]]] = sorted((int(counts[symbol]), (int(symbol),)) for symbol in used)
    merged = coins
    for _ in range(LONGEST_CODE - 1):
        pairs = zip(merged[::2], merged[1::2], strict=False)
        merged = sorted([*coins, *((a + b, left + right) for (a, left), (b, right) in pairs)])
    chosen = [symbol for _, symbols in merged[: 2 * len(used) - 2] for symbol in symbols]
    return lengths + np.bincount(chosen, minlength=len(counts))


def _canonical(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Each symbol's code as an integer: ascending with (length, symbol), so that lengths alone determine the codes."""
    codes = np.zeros(len(lengths), dtype=np.int64)
    used = np.flatnonzero(lengths)
    order = used[np.lexsort((used, lengths[used]))]
    if len(order):
        spans = 1 << (LONGEST_CODE - lengths[order])
        codes[order] = (np.cumsum(spans) - spans) >> (LONGEST_CODE - lengths[order])
    return codes
