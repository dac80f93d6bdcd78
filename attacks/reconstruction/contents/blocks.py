"""Arrays inside a file whose shape nothing says, or says otherwise: read by columns, for a record may lie in one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ....targets.data.npy import MAGIC, read_header
from ....targets.errors import CrushproofError

TURNED = 2**22  # values of one array that are read by columns, at most
ROOM = 3 * 2**24  # of all arrays of a file
ARRAYS = 256  # .npy arrays and blocks of a file that are looked at
TYPES = ("<f4", "<f2", "<f8", "|u1", "<u2", "<i2")


class Turning:
    """Reads arrays by columns, within the memory and time that one file may ask for.

    Args:
        width: values of a record; 0: not known, and only what states its shape is read.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._room = ROOM

    def block(self, content: Any) -> Iterator[np.ndarray[Any, Any]]:
        """Bytes that are one array, as [width, n] of each type that fits: float64 [n * width], record by record."""
        for type_ in TYPES:
            if self.width and len(content) % (np.dtype(type_).itemsize * self.width) == 0:
                values = np.frombuffer(content, type_)
                if type_ != "<i2" or values.min(initial=0) < 0:  # else they are what they were without a sign
                    yield from self.columns(values)

    def columns(self, values: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Numbers that are one array, as [width, n]: float64 [n * width], record by record."""
        if self.width and len(values) % self.width == 0:
            yield from self._turned(values.reshape(self.width, -1))

    def arrays(self, content: bytes) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Every .npy array in some bytes, by its offset, with the values in the other order than they lie in.

        Big-endian numbers and integers of 16 bits also as they lie.
        """
        at = content.find(MAGIC)
        for _ in range(ARRAYS):
            if at < 0:
                return
            found = _npy(content, at)
            for values in () if found is None else self._turned(found):
                yield at, values
            unread = found is not None and (found.dtype.byteorder == ">" or found.dtype.str[1:] in ("i2", "u2"))
            if found is not None and unread and found.size <= min(TURNED, self._room):
                self._room -= found.size
                yield at, found.astype(np.float64).ravel()
            at = content.find(MAGIC, at + 1)

    def prefixed(self, content: bytes) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Vectors of a FlatBuffers file that could hold records, by offset: the length lies before each."""
        if not self.width:
            return
        lengths = np.frombuffer(content, "<u4", len(content) // 4).astype(np.int64)
        begins = np.arange(1, len(lengths) + 1, dtype=np.int64) * 4
        fits = (lengths >= 2 * self.width) & (lengths % self.width == 0) & (begins + lengths <= len(content))
        for begin in begins[fits][:ARRAYS].tolist():
            length = int(lengths[begin // 4 - 1])
            for values in self.block(memoryview(content)[begin : begin + length]):
                yield begin, values

    def _turned(self, matrix: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        if matrix.size > min(TURNED, self._room) or min(matrix.shape) < 2:
            return
        self._room -= matrix.size
        with np.errstate(invalid="ignore"):  # signalling NaN
            yield matrix.T.astype(np.float64).ravel()


def _npy(content: bytes, at: int) -> np.ndarray[Any, Any] | None:
    """The array there as a matrix whose transpose is the order it does not lie in; None: it is none."""
    try:
        header = read_header(content, "a part of the file", at)
        shape = header.shape
        if header.dtype.kind not in "fiu" or len(shape) < 2 or min(shape) < 1:
            return None
        values = np.frombuffer(content, header.dtype, math.prod(shape), header.begin)
        return values.reshape(math.prod(shape[1:]) if header.fortran else shape[0], -1)
    except (CrushproofError, ValueError):  # crafted, or chance: its bytes are searched all the same
        return None
