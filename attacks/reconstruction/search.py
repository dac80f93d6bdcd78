"""The search of a file for what it gives away by itself, whatever kind of file it is: callable without an audit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .containers import Contents, take_apart
from .moments import Rows, prepare
from .rows import Match, Search
from .words import Word, words_in


@dataclass(frozen=True)
class Record:
    """A record that was found.

    Args:
        place: where, for people: "tensor 'rows'".
        offset: in the file, of its first byte; of what holds it, where it is packed.
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
        cut: whether more places looked like records than were compared: there may be others.
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
    zlib, bzip2 or xz packed anywhere in it, pickles, base64, hexadecimal, numbers written as text, and any other file
    as bytes. A record is found exact, scaled (in a table by feature too), rounded to 8 bits or more, standardised by
    feature or channel or as for ImageNet, with its features in any order, in the types of `rows.TYPES`, at any offset.
    It is not found encrypted, packed otherwise, in big-endian numbers or integers of 16 bits whose type nothing
    states, in further units by feature, compressed with loss, with noise, cropped, or negated; of one with two values
    only (one-hot columns) the order must be its own.

    Args:
        records: float32 [n, *shape], or what `rows_of` made of them once for several files; None: words alone.

    Raises:
        UnsafeInput: an archive that is damaged or crafted, or lies more than 4 deep in others.
    """
    rows = rows_of(records) if isinstance(records, torch.Tensor) else records
    contents = take_apart(content, 0 if rows is None else rows.values.shape[1])
    found, cut = [], False
    if rows is not None:
        search = Search(rows, sum(len(one.content) for one in contents.parts))
        for at, part in enumerate(contents.parts):
            if part.numbers is not None:
                search.stream(at, np.asarray(part.numbers, dtype=np.float64), "float64")
            else:
                search.content(at, part.content)
        found = [_located(contents, part, match) for part, match in search.best()]
        cut = search.cut
    words = [
        (contents.place(at, word.offset), word)
        for at, part in enumerate(contents.parts)
        for word in words_in(part.content)
    ]
    return Searched(contents.kind, tuple(found), tuple(words), cut)


def _located(contents: Contents, part: int, match: Match) -> Record:
    offset = match.offset if part == 0 else contents.parts[part].offset
    return Record(contents.place(part, match.offset), offset, match)
