"""Arrays inside a file whose shape nothing says, or says otherwise: read by columns, for a record may lie in one."""

from __future__ import annotations

import ast
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

TURNED = 2**22  # values of one array that are read by columns, at most
ROOM = 2**25  # of all arrays of a file
ARRAYS = 256  # .npy arrays and blocks of a file that are looked at
HEADER = 10_000  # bytes of the header of a .npy array
TYPES = ("<f4", "<f2", "<f8", "|u1")
NPY = b"\x93NUMPY"


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
            size = np.dtype(type_).itemsize * self.width
            if not size or len(content) % size or len(content) < 2 * size:
                continue
            yield from self._turned(np.frombuffer(content, type_).reshape(self.width, -1))

    def arrays(self, content: bytes) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Every .npy array in some bytes, by its offset, with the values in the other order than they lie in."""
        at = content.find(NPY)
        for _ in range(ARRAYS):
            if at < 0:
                return
            found = _npy(content, at)
            for values in () if found is None else self._turned(found):
                yield at, values
            at = content.find(NPY, at + 1)

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
        wide = content[at + 6] > 1
        (length,) = struct.unpack_from("<I" if wide else "<H", content, at + 8)
        begin = at + (12 if wide else 10)
        if length > HEADER:
            return None
        header = ast.literal_eval(content[begin : begin + length].decode("latin-1").strip())
        type_, shape = np.dtype(header["descr"]), [int(size) for size in header["shape"]]
        if type_.hasobject or type_.kind not in "fiu" or len(shape) < 2 or min(shape) < 1:
            return None
        values = np.frombuffer(content, type_, math.prod(shape), begin + length)
        rows = math.prod(shape[1:]) if header["fortran_order"] else shape[0]
        return values.reshape(rows, -1)
    except Exception:  # crafted, or chance: its bytes are searched all the same
        return None
