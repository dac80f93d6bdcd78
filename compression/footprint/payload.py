"""The fewest honest bytes a module's values fit into: what would be sent to a device.

Every tensor is coded by whichever of these is smallest, and decodes to equal values:

    raw         its own bytes
    packed      integers as offsets from their minimum, in as few bits as the largest needs
    codebook    the distinct values (at most 256), and an index per element: packed, Huffman coded, or, of three values,
                five to a byte (1.6 bits each)
    sparse      the gaps between nonzero values, Huffman coded (Han et al. 2016, arXiv:1510.00149), and those values
    repeated    the position of the earlier tensor that this one is (tied weights): what layers share is sent once

A payload holds no names and no shapes: those come from the module it is decoded into, whose structure ships apart
(`compression.structure`). -0.0 becomes 0.0 (pruning by a mask leaves such zeros); every other bit pattern is kept.

Bytes: b"CRW1", then per tensor, in state-dict order, its coding (one byte) and that coding's fields; numbers are
varints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.errors import InputError
from ..quantization.quantized_layer import QuantizedLayer
from .huffman import Reader, decode_symbols, encode_symbols, pack, unpack, varint

MAGIC = b"CRW1"
RAW, PACKED, CODEBOOK_PACKED, CODEBOOK_HUFFMAN, SPARSE, DERIVED, CODEBOOK_OF_3, REPEATED = range(8)
POWERS_OF_3 = 3 ** np.arange(5)  # 3^5 = 243 fits a byte
LARGEST_CODEBOOK = 256
LONGEST_GAP = 255  # a longer gap takes several symbols
WORDS: dict[int, tuple[torch.dtype, Any]] = {  # an element's bits as an unsigned integer, by its size in bytes
    1: (torch.uint8, np.uint8),
    2: (torch.int16, np.uint16),
    4: (torch.int32, np.uint32),
    8: (torch.int64, np.uint64),
}
Words = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]
Place = tuple[int, torch.dtype, torch.Size, tuple[int, ...]] | int


def encode(module: nn.Module) -> bytes:
    """The whole state of `module` (parameters and buffers), packed. Equal states, equally tied, give equal bytes."""
    state = module.state_dict()
    derived = _derived_biases(module, state)
    out = bytearray(MAGIC)
    first: dict[Place, int] = {}
    for position, (name, value) in enumerate(state.items()):
        if name in derived and torch.equal(derived[name], value):
            out.append(DERIVED)
            continue
        codings = [_encode(_words(value), signed=not value.dtype.is_floating_point)]
        if first.setdefault(_place(value), position) != position:
            codings.append(bytes([REPEATED]) + varint(first[_place(value)]))
        out += min(codings, key=len)
    return bytes(out)


def distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the names that hold the very tensor of an earlier one."""
    first: dict[Place, str] = {}
    return {name: value for name, value in state.items() if first.setdefault(_place(value), name) == name}


def _place(value: Tensor) -> Place:
    """The same for one tensor under two names."""
    return (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else id(value)


def decode(payload: bytes, module: nn.Module) -> dict[str, Tensor]:
    """The state that was encoded; `module` gives names, shapes and types, its values are not used. On the CPU.

    Raises:
        InputError: the payload is cut off, too long, or does not fit the module.
    """
    reader = Reader(payload)
    if reader.take(len(MAGIC)) != MAGIC:
        raise InputError("This is not a packed payload: its first bytes are wrong.")
    state: dict[str, Tensor] = {}
    derived = []
    read: list[Words] = []
    for name, like in module.state_dict().items():
        if reader.peek() == DERIVED:
            reader.take(1)
            derived.append(name)
            state[name] = like.cpu()  # holds the place
            read.append(np.zeros(0, np.uint8))
            continue
        kind = WORDS[like.element_size()][1]
        if reader.peek() == REPEATED:
            reader.take(1)
            words = _earlier(read, reader.varint(), like.numel(), kind)
        else:
            words = _decode(reader, like.numel(), kind)
        read.append(words)
        state[name] = torch.from_numpy(words.view(f"i{like.element_size()}")).view(like.dtype).view(like.shape)
    if reader.left:
        raise InputError(f"The payload does not fit the module: {reader.left} bytes are left over.")
    biases = _derived_biases(module, state)
    for name in derived:
        if name not in biases:
            raise InputError(f"The payload does not fit the module: {name} cannot be derived from other values.")
        state[name] = biases[name]
    return state


def _earlier(read: Sequence[Words], position: int, count: int, kind: Any) -> Words:
    """A copy of the tensor that was read as the one at `position`."""
    if position >= len(read) or len(read[position]) != count or read[position].dtype != np.dtype(kind):
        raise InputError("The payload does not fit the module: it repeats a tensor that is not there.")
    return read[position].copy()


def _derived_biases(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases that follow from integers: quantised layers hold bias = bias_codes * (input_scale * weight_scale)."""
    biases = {}
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(layer, QuantizedLayer) and f"{prefix}bias_codes" in state:
            unit = state[f"{prefix}input_scale"] * state[f"{prefix}weight_scale"]
            biases[f"{prefix}bias"] = state[f"{prefix}bias_codes"] * unit
    return biases


def _words(value: Tensor) -> Words:
    """The bits of each element, [n]; -0.0 as 0.0."""
    flat = value.detach().cpu().reshape(-1)
    if flat.dtype.is_floating_point:
        flat = torch.where(flat == 0, torch.zeros_like(flat), flat)
    dtype, words = WORDS[flat.element_size()]
    return flat.contiguous().view(dtype).numpy().view(words)


def _encode(words: Words, *, signed: bool) -> bytes:
    """The shortest coding of `words`; `signed` says that they are integers, so that packing offsets makes sense."""
    codings = [_encode_dense(words, signed=signed)]
    nonzero = np.flatnonzero(words)
    if len(nonzero) < len(words):
        gaps = np.diff(nonzero, prepend=-1) - 1
        longs = gaps // LONGEST_GAP
        symbols = np.full(len(gaps) + int(longs.sum()), LONGEST_GAP, dtype=np.uint8)
        symbols[np.arange(len(gaps)) + np.cumsum(longs)] = gaps % LONGEST_GAP
        positions = varint(len(symbols)) + encode_symbols(symbols)
        codings.append(bytes([SPARSE]) + positions + _encode_dense(words[nonzero], signed=signed))
    return min(codings, key=len)


def _encode_dense(words: Words, *, signed: bool) -> bytes:
    codings = [_encode_raw(words, signed=signed)]
    values, indices = np.unique(words, return_inverse=True)
    if 0 < len(values) <= LARGEST_CODEBOOK:
        table = varint(len(values)) + _encode_raw(values, signed=signed)
        width = int(len(values) - 1).bit_length()
        symbols = indices.astype(np.uint8)
        codings.append(bytes([CODEBOOK_PACKED]) + table + pack(symbols, width))
        codings.append(bytes([CODEBOOK_HUFFMAN]) + table + encode_symbols(symbols))
        if len(values) == 3:
            fives = np.pad(symbols, (0, -len(symbols) % 5)).reshape(-1, 5)
            codings.append(bytes([CODEBOOK_OF_3]) + table + (fives @ POWERS_OF_3).astype(np.uint8).tobytes())
    return min(codings, key=len)


def _encode_raw(words: Words, *, signed: bool) -> bytes:
    plain = bytes([RAW]) + words.astype(words.dtype.newbyteorder("<")).tobytes()
    if not signed or not len(words):
        return plain
    integers = words.view(f"i{words.itemsize}")
    low = int(integers.min())
    width = (int(integers.max()) - low).bit_length()
    if width > 32:
        return plain
    offsets = (integers - integers.dtype.type(low)).view(words.dtype)  # wraps around and back
    zigzag = low << 1 if low >= 0 else (-low << 1) - 1
    packed = bytes([PACKED, width]) + varint(zigzag) + pack(offsets, width)
    return min(plain, packed, key=len)


def _decode(reader: Reader, count: int, kind: Any) -> Words:
    """`count` words of numpy type `kind`."""
    coding = reader.take(1)[0]
    if coding == RAW:
        raw = np.frombuffer(reader.take(count * np.dtype(kind).itemsize), dtype=np.dtype(kind).newbyteorder("<"))
        return raw.astype(kind)
    if coding == PACKED:
        width, zigzag = reader.take(1)[0], reader.varint()
        low = zigzag >> 1 if zigzag % 2 == 0 else -((zigzag + 1) >> 1)
        bits = np.dtype(kind).itemsize * 8
        if width > min(32, bits) or not -(1 << bits - 1) <= low < 1 << bits - 1:
            raise InputError("The payload is damaged: an integer is out of range.")
        offsets = unpack(reader.take((count * width + 7) // 8), width, count).astype(kind)
        integers: Words = offsets + np.array(low % (1 << bits), dtype=kind)
        return integers
    if coding in (CODEBOOK_PACKED, CODEBOOK_HUFFMAN, CODEBOOK_OF_3):
        size = reader.varint()
        if not 0 < size <= LARGEST_CODEBOOK:
            raise InputError("The payload is damaged: a codebook of impossible size.")
        values = _decode(reader, size, kind)
        if coding == CODEBOOK_HUFFMAN:
            indices = decode_symbols(reader, count)
        elif coding == CODEBOOK_OF_3:
            fives = np.frombuffer(reader.take((count + 4) // 5), dtype=np.uint8)
            if len(fives) and int(fives.max()) >= 3**5:
                raise InputError("The payload is damaged: a byte that no five of three values make.")
            indices = (fives[:, None] // POWERS_OF_3 % 3).reshape(-1)[:count].astype(np.uint32)
        else:
            width = (size - 1).bit_length()
            indices = unpack(reader.take((count * width + 7) // 8), width, count)
        if len(indices) and int(indices.max()) >= size:
            raise InputError("The payload is damaged: an index beyond its codebook.")
        return values[indices]
    if coding == SPARSE:
        length = reader.varint()
        if length > count:
            raise InputError("The payload does not fit the module: more values than places.")
        gaps = decode_symbols(reader, length)
        ends = gaps < LONGEST_GAP  # the last symbol of each gap
        places = (np.cumsum(gaps, dtype=np.int64) + np.cumsum(ends) - 1)[ends]
        if len(places) and places[-1] >= count:
            raise InputError("The payload does not fit the module: a value beyond the last place.")
        words = np.zeros(count, dtype=kind)
        words[places] = _decode(reader, len(places), kind)
        return words
    raise InputError(f"The payload is damaged: there is no coding {coding}.")
