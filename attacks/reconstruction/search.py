"""The search of a file for what it gives away by itself, whatever kind of file it is: callable without an audit."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contents.containers import Contents, take_apart
from .moments import Rows, prepare
from .rows import Match, Search
from .words import Word, words_in

TOGETHER = 2**22  # bytes of parts that are searched as one


@dataclass(frozen=True)
class Record:
    """A record that was found.

    Args:
        place: where, for people: "tensor 'rows'".
        offset: in the file, of its first byte (of a picture, of the picture's); of what holds it, where it is packed.
        match: how it is written there, and how sure the find is.
    """

    place: str
    offset: int
    match: Match


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Args:
        kind: of the file, in a word or two.
        records: each with every place it is at, in the order of their ids.
        words: with their places; those of a packed part count from its own begin.
        cut: whether more places looked like records, or pictures, than were compared: there may be others.
    """

    kind: str
    records: tuple[Record, ...]
    words: tuple[tuple[str, Word], ...]
    cut: bool

    @property
    def ids(self) -> list[int]:
        """Of the records found, ascending."""
        return sorted({one.match.record for one in self.records})


def rows_of(x: Tensor) -> Rows | None:
    """What to search for, of records float32 [n, *shape]; None: they hold too little to be told from chance."""
    channels = x.shape[1] if x.dim() == 4 and x.shape[1] <= 4 else 0
    return prepare(x.detach().cpu().float().flatten(1).numpy(), channels)


def search_file(content: bytes, records: Tensor | Rows | None = None) -> Searched:
    """Searches the bytes of a file for training records and for words that give something away.

    The file is taken apart but never loaded: ONNX, safetensors, zip archives (`.pt`, `.pt2`, `.npz`), what zip, gzip,
    zlib, bzip2 or xz packed anywhere in it, pickles, base64, hexadecimal, PNG pictures, numbers written as text (with
    decimal points or commas), text in UTF-16, and any other file as bytes. A record is found exact, scaled (in a table
    by feature too), negated, rounded or cut off to 8 bits or more, standardised by feature or channel or as for
    ImageNet, with its features in any order, in the types of `rows.TYPES`, at any offset. It is not found encrypted,
    packed otherwise, in big-endian numbers whose type nothing states, in further units or signs by feature, compressed
    with loss, with noise, cropped or resized, or as one of several in a picture; of one with two values only (one-hot
    columns) the order must be its own.

    Args:
        records: float32 [n, *shape], or what `rows_of` made of them once for several files; None: words alone.

    Raises:
        UnsafeInput: an archive that is damaged or crafted, or lies more than 4 deep in others.
    """
    rows = rows_of(records) if isinstance(records, torch.Tensor) else records
    contents = take_apart(content, 0 if rows is None else rows.values.shape[1])
    found, cut = [], False
    if rows is not None:
        batches = _batches(contents)
        search = Search(rows, sum(len(one.content) for one in batches))
        for at, batch in enumerate(batches):
            if isinstance(batch.content, bytes):
                search.content(at, batch.content)
            else:
                search.stream(at, batch.content, batch.content.dtype.name)
        found = [_located(contents, *batches[at].part(match.offset), match) for at, match in search.best()]
        cut = search.cut or contents.cut
    words = [
        (contents.place(at, word.offset), replace(word, offset=part.begin(word.offset)))
        for at, part in enumerate(contents.parts)
        for word in words_in(part.content)
    ]
    return Searched(contents.kind, tuple(found), tuple(words), cut)


@dataclass(frozen=True)
class _Batch:
    """Parts that are searched as one, for a crafted file may hold 100,000 small ones; the content is theirs in a row.

    Args:
        begins: of each, ascending, in bytes.
    """

    content: bytes | np.ndarray[Any, Any]
    parts: list[int]
    begins: list[int]

    def part(self, offset: int) -> tuple[int, int]:
        """Which part lies there, and how far into it."""
        one = bisect_right(self.begins, offset) - 1
        return self.parts[one], offset - self.begins[one]


def _batches(contents: Contents) -> list[_Batch]:
    """Of all bytes, and of all numbers of each type, one after the other; what was read as text is no bytes."""
    kinds: dict[str, list[list[int]]] = {}
    sizes: dict[str, int] = {}
    for at, part in enumerate(contents.parts):
        kind = "" if part.numbers is None else part.numbers.dtype.name
        size = len(part.content) if part.numbers is None else part.numbers.nbytes
        if part.text is not None or not size:
            continue
        if not kinds.get(kind) or sizes[kind] + size > TOGETHER:
            kinds.setdefault(kind, []).append([])
            sizes[kind] = 0
        kinds[kind][-1].append(at)
        sizes[kind] += size
    found = []
    for kind, groups in kinds.items():
        for group in groups:
            parts = [contents.parts[at] for at in group]
            lengths = [len(one.content) if one.numbers is None else one.numbers.nbytes for one in parts]
            if kind:
                content: Any = np.concatenate([one.numbers for one in parts if one.numbers is not None])
            else:
                content = b"".join(one.content for one in parts)
            found.append(_Batch(content, group, [0, *accumulate(lengths[:-1])]))
    return found


def _located(contents: Contents, part: int, offset: int, match: Match) -> Record:
    return Record(contents.place(part, offset), contents.parts[part].at(offset), match)
