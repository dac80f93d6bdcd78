"""One array of an `.npy` file that may come from a stranger. Nothing is ever unpickled."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnsafeInput, quoted
from ..untrusted.files import FETCH_HINT, is_pickle

Array = NDArray[np.generic]
MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Header:
    """What an array in some bytes says of itself; `begin`: where its values do, and `size`, of all of them in bytes."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    begin: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(content: bytes | bytearray, where: str, at: int = 0) -> Header:
    """The header of the array that begins at byte `at`: of plain numbers or text.

    Raises:
        InputError: structured, complex or otherwise unsupported values.
        UnsafeInput: pickled objects, or a malformed header.
    """
    version = content[at + 6 : at + 8]
    if content[at : at + 6] != MAGIC or version not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        pickled = " but a pickle" if is_pickle(content[at : at + 2]) else ""
        raise UnsafeInput(f"{where} is not a numpy array{pickled}. {FETCH_HINT}")
    start = at + (10 if version == b"\x01\x00" else 12)
    length = int.from_bytes(content[at + 8 : start], "little")
    if length > 10_000 or start + length > len(content):  # numpy's own limit; a real header has about 120 bytes
        raise UnsafeInput(f"{where} declares a header of {length:,} bytes, so it is cut short or crafted. {FETCH_HINT}")
    try:
        header = ast.literal_eval(content[start : start + length].decode("utf-8").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, KeyError):
        raise UnsafeInput(f"{where} has a malformed header. {FETCH_HINT}") from None
    if "O" in str(descr):
        raise UnsafeInput(
            f"{where} holds pickled Python objects, which can run any program when they are read; it was not read. "
            "Save plain numbers: x.astype('float32') for inputs, y.astype('int64') for labels, names.astype(str) for "
            "text."
        )
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|[US][1-9]\d{0,5})", descr):
        raise InputError(f"{where} holds values of the type {quoted(descr)}. Save float32 inputs and int64 labels.")
    plain = type(shape) is tuple and all(type(size) is int and 0 <= size < 2**31 for size in shape)
    if not plain or len(shape) > 8 or type(fortran) is not bool:
        raise UnsafeInput(f"{where} has a malformed shape ({quoted(shape)}). {FETCH_HINT}")
    return Header(np.dtype(descr), shape, fortran, start + length)


def parse_npy(content: bytes | bytearray, where: str) -> Array:
    """The array in an `.npy` file's bytes (a view of them): plain numbers or text only.

    Raises:
        InputError: structured, complex or otherwise unsupported values.
        UnsafeInput: pickled objects, a malformed header, or a shape that does not fit the bytes that follow.
    """
    header = read_header(content, where)
    dtype, shape = header.dtype, header.shape
    if header.size != len(content) - header.begin:
        raise UnsafeInput(
            f"{where} claims {header.size:,} bytes and holds {len(content) - header.begin:,}, so it is cut short or "
            f"crafted. {FETCH_HINT}"
        )
    values: Array = np.frombuffer(content, dtype, offset=header.begin)
    if dtype.kind == "U" and values.size:
        beyond = int(values.view(np.dtype(f"{dtype.byteorder}u4")).max())
        if beyond > 0x10FFFF:  # which Python cannot hold, and numpy ends in a SystemError
            raise UnsafeInput(
                f"{where} holds text with the character number {beyond:#x}, and Unicode ends at 0x10ffff. {FETCH_HINT}"
            )
    try:
        return values.reshape(shape, order="F" if header.fortran else "C")
    except ValueError:  # an empty array with other sizes beyond numpy's own limit
        raise UnsafeInput(f"{where} has a malformed shape ({quoted(shape)}). {FETCH_HINT}") from None
