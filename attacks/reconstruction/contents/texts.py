"""Texts in a file, as ASCII and as UTF-16, and the numbers written in them, whatever marks decimals and thousands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]

LEAST = 8  # characters of a text: no word, number or code that is looked for is shorter
FEW = 6  # numbers of a text, below which they are none
CHUNK = 2**24  # bytes that are looked at together
FEW_BYTES = 2**12  # of which it is quicker to ask first whether there is any text

_PRINTED, _BREAKS = range(0x20, 0x7F), range(0x09, 0x0E)  # what texts consist of
_IS_TEXT = bytes(code in _PRINTED or code in _BREAKS for code in range(256))
_FOUR = 0x01010101  # characters of text

_BLANK = rb"\s;|\[\](){}\"'"
_BETWEEN = rb"(?:[,%s]|\\[nrt]){1,32}+" % _BLANK  # a line's end and a tabulator also as JSON writes them
_BETWEEN_COMMAS = rb"(?:[%s]|\\[nrt]|,(?!\d)){1,32}+" % _BLANK  # a comma before a digit begins decimals
_EXPONENT = rb"(?:[eE][-+]?\d{1,3})?"
_NUMBER = rb"[-+]?(?:\d{1,40}+(?:\.\d{0,40}+)?|\.\d{1,40}+)" + _EXPONENT  # no way back: digits are many
_GROUPS = rb"[1-9]\d{0,2}+(?:[%s]\d{3}(?!\d)){1,8}+"  # 1.234.567: digits by threes
_COMMAS = rb"[-+]?(?:%s(?:,\d{1,40}+)?|\d{1,40}+(?:,\d{1,40}+)?|,\d{1,40}+)" % (_GROUPS % rb".' ") + _EXPONENT
_POINTS = rb"[-+]?(?:%s(?:\.\d{0,40}+)?|\d{1,40}+(?:\.\d{0,40}+)?|\.\d{1,40}+)" % (_GROUPS % rb",'") + _EXPONENT
_LONE = re.compile(rb",(?!\d)")
_MARKS = {  # what is no part of a number becomes a blank
    mark: bytes(ord(".") if code == ord(mark) else code if code in b"0123456789+-eE" else 0x20 for code in range(256))
    for mark in (b".", b",")
}
_VALUE = rb"[:=]\s?(%s)" % _NUMBER  # as JSON has a record: "age": 0.5

_ASCII, _WIDE = (re.compile(rb"(?:[\t-\r -~]%s){%d}" % one) for one in ((b"", LEAST), (rb"\0", LEAST - 1)))
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Style:
    """How numbers are written.

    Args:
        look: several of them, and what stands between.
        single: one of them.
        decimal: the mark before decimals; grouping: what stands between thousands.
        named: whether names stand between them.
        sign: without which a text has no number of this style that the plain one would not read alike.
    """

    look: re.Pattern[bytes]
    single: re.Pattern[bytes]
    decimal: bytes = b"."
    grouping: bytes = b""
    sign: re.Pattern[bytes] | None = None
    named: bool = False

    def values(self, text: bytes) -> list[float]:
        """The numbers of a text that holds nothing else but what stands between them."""
        if self.named:
            return list(map(float, self.single.findall(text)))
        if not self.grouping or not re.search(rb"\d[%s]\d{3}(?!\d)" % self.grouping, text):
            found = _LONE.sub(b" ", text) if self.decimal == b"," else text
            return list(map(float, found.translate(_MARKS[self.decimal]).split()))
        parts = b"\n".join(self.single.findall(text)).translate(None, self.grouping)
        return list(map(float, parts.replace(self.decimal, b".").split(b"\n")))


def _several(number: bytes, between: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"%s(?:%s%s){%d,}+" % (number, between, number, FEW - 1))


_STYLES = (
    _Style(_several(_NUMBER, _BETWEEN), re.compile(_NUMBER)),
    _Style(_several(_VALUE, rb"%s[\w.-]{1,64}+[\"']?\s?" % _BETWEEN), re.compile(_VALUE), named=True),
    _Style(
        _several(_COMMAS, _BETWEEN_COMMAS),
        re.compile(_COMMAS),
        b",",
        b".' ",
        re.compile(rb"\d,\d|(?<!\d)[1-9]\d{0,2}[.']\d{3}(?!\d)"),
    ),
    _Style(
        _several(_POINTS, _BETWEEN),
        re.compile(_POINTS),
        b".",
        b",'",
        re.compile(rb"(?<!\d)[1-9]\d{0,2}[,']\d{3}(?!\d)"),
    ),
)


@dataclass(frozen=True)
class Text:
    """The texts of some bytes.

    Args:
        content: all of them, ASCII, with zeros between them.
        starts: where each begins in `content`, ascending.
        places: where each begins in the bytes that it was read from.
        step: bytes from one character to the next there.
    """

    content: bytes
    starts: Ints
    places: Ints
    step: int

    def place(self, at: int) -> int:
        """Where a character of `content` is in the bytes that it was read from."""
        one = int(np.searchsorted(self.starts, at, "right")) - 1
        return int(self.places[one]) + self.step * (at - int(self.starts[one]))

    def numbers(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Where in `content` several numbers begin, one after the other, and which they are: float64 [m].

        Decimals follow a point or a comma, thousands are apart by nothing, a point, a comma, a blank or an apostrophe:
        what can be read in several ways is read in all of them.
        """
        for style in _STYLES:
            if style.sign is not None and not style.sign.search(self.content):
                continue
            for match in style.look.finditer(self.content):
                if style.sign is None or style.sign.search(match.group()):
                    yield match.start(), np.array(style.values(match.group()))


def ascii_text(content: Any) -> Text:
    """Whatever is text of at least `LEAST` characters in some bytes."""
    if len(content) < FEW_BYTES and not _ASCII.search(content):
        return Text(b"", _NONE, _NONE, 1)
    # Such a run holds four characters at a multiple of four: few places of other bytes do, and those alone are tried.
    found = [np.zeros((2, 0), np.int64)]
    for begin in range(0, len(content), CHUNK):
        is_text = bytes(content[begin : begin + CHUNK]).translate(_IS_TEXT)
        found.append(begin + 4 * _edges(np.frombuffer(is_text, "<u4", len(is_text) // 4) == _FOUR))
    begins, ends = _joined(np.concatenate(found, axis=1))
    octets, looks = np.frombuffer(content, np.uint8), np.frombuffer(_IS_TEXT, bool)
    for _ in range(3):
        begins -= (begins > 0) & looks[octets[begins - 1]]
        more = ends < len(octets)
        more[more] = looks[octets[ends[more]]]
        ends += more
    long = ends - begins >= LEAST
    return _text(content, begins[long], ends[long], 1)


def wide_text(content: Any) -> Text:
    """Whatever is text of so many characters as UTF-16 writes it: a zero behind each or, big-endian, before it."""
    if len(content) < FEW_BYTES and not _WIDE.search(content):
        return Text(b"", _NONE, _NONE, 2)
    octets, looks = np.frombuffer(content, np.uint8), np.frombuffer(_IS_TEXT, bool)
    found = [np.zeros((2, 0), np.int64)]
    for phase in (0, 1):
        codes, runs = np.frombuffer(octets[phase : phase + (len(octets) - phase) // 2 * 2], "<u2"), [found[0]]
        for begin in range(0, len(codes), CHUNK):
            some = codes[begin : begin + CHUNK]
            fits = some - np.uint16(_PRINTED[0]) < len(_PRINTED)
            fits |= some - np.uint16(_BREAKS[0]) < len(_BREAKS)
            runs.append(begin + _edges(fits))
        found.append(2 * np.stack(_joined(np.concatenate(runs, axis=1))) + phase)
    begins, ends = np.concatenate(found, axis=1)
    # Behind the last character of big-endian text there need be no zero; before its first there is one.
    more = (begins > 0) & (ends < len(octets))
    more[more] = (octets[begins[more] - 1] == 0) & looks[octets[ends[more]]]
    long = np.flatnonzero(ends - begins + 2 * more >= 2 * LEAST)
    long = long[np.argsort(begins[long], kind="stable")]
    return _text(content, begins[long], (ends + more)[long], 2)


def _text(content: Any, begins: Ints, ends: Ints, step: int) -> Text:
    pieces = [bytes(content[low:high:step]) for low, high in zip(begins.tolist(), ends.tolist(), strict=True)]
    lengths = np.array([len(one) + 1 for one in pieces], dtype=np.int64)
    return Text(b"\0".join(pieces), np.cumsum(lengths) - lengths, begins, step)


def _edges(fits: np.ndarray[Any, Any]) -> Ints:
    """Begins and ends [2, k] of what is true, one after the other."""
    steps = np.flatnonzero(fits[1:] != fits[:-1]) + 1
    first = [0] if len(fits) and fits[0] else []
    last = [len(fits)] if len(fits) and fits[-1] else []
    found = np.concatenate([first, steps, last]).astype(np.int64)
    return np.stack([found[::2], found[1::2]])


def _joined(runs: Ints) -> tuple[Ints, Ints]:
    """Begins and ends, of those that the end of a chunk cut in two as one."""
    begins, ends = runs
    apart = begins[1:] > ends[:-1]
    return begins[np.concatenate([[True], apart])[: len(begins)]], ends[np.concatenate([apart, [True]])[: len(ends)]]
