"""Records in a stream of bytes: exact, scaled, negated, rounded or cut off to 8 bits, their features in any order.

Every window of the bytes is read as every type of number, at every offset, whatever a container says of it. A window
whose signature is a record's (moments.py) is compared value by value, and counts where chance is ruled out
(information.py).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .contents.protobuf import widened
from .information import ALARM, SAMPLE, WORTH, agreement, by_chance
from .moments import (
    CHUNK,
    GRID,
    RAW,
    STEPS,
    TWO,
    Floats,
    Ints,
    Rows,
    Signatures,
    axes,
    order_axes,
    over_windows,
    window_moments,
)

Order = Literal["as stored", "other order"]

BLOCK = 2**15  # windows that are looked at together: they stay in a processor's cache
PAIRS = 4_000_000  # of a window and a record, compared value by value in one file at most
READINGS = 24  # types, offsets and forms that a window is read in, for the bound on chance
TYPES = ("uint8", "int8", "uint16", "int16", "float16", "bfloat16", "float32", "float64", "int32", "int64")
LARGEST = 65_536.0  # what is larger, and larger than twice any value, is no number of a record
SMALLEST = 1e-9
WHOLE = ("uint8", "int8", "uint16", "int16", "int32", "int64")
SHORT = ("uint8", "int8", "uint16", "int16")  # of which every value may be a record's
FLAT = 1 / GRID  # what the second axis of a window of two values lies below: it is 0


@dataclass(frozen=True)
class Match:
    """A window that is a record.

    Args:
        offset: of its first byte.
        step: bytes from one value to the next.
        form: "as they are", "scaled", "standardised ..."; "negated", or that and one of these.
        bound: windows that would agree so well with any record by chance, expected in the whole search, at most.
    """

    record: int
    offset: int
    step: int
    type: str
    form: str
    order: Order
    bound: float


def numbers(content: Any, type_: str, phase: int) -> np.ndarray[Any, Any]:
    """The bytes read as numbers, from this offset on: [m]; bfloat16 as uint16."""
    dtype = np.dtype("<u2" if type_ == "bfloat16" else type_).newbyteorder("<")
    count = max(0, (len(content) - phase) // dtype.itemsize)
    return np.frombuffer(content, dtype, count, phase) if count else np.empty(0, dtype)  # past the end of an empty part


def as_floats(
    values: np.ndarray[Any, Any], type_: str, largest: float = LARGEST
) -> tuple[Floats, np.ndarray[Any, np.dtype[np.bool_]] | None]:
    """float64, and which may be numbers of a record; None: all."""
    if type_ == "bfloat16":
        values = widened(values)
    if type_ in SHORT:
        return values.astype(np.float64), None
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(values)
        fine = size < largest
        if type_ in ("float32", "float64", "bfloat16"):
            fine &= (size > SMALLEST) | (values == 0)
        return values.astype(np.float64), fine


class Search:
    """The search of one file, part after part: matches are collected, and the work that hostile bytes may ask bounded.

    Attributes:
        found: every match, of each record and place the surest.
        cut: whether more pairs were to be compared than `PAIRS`.
    """

    def __init__(self, rows: Rows, windows: int) -> None:
        """`windows`: about how many there are in the whole file, for the bound on chance."""
        self.rows, self.windows = rows, max(windows, 1)
        self.found: list[tuple[int, Match]] = []
        self.cut = False
        self._pairs = 0
        self._length = rows.values.shape[1]
        self._largest = max(LARGEST, 2 * float(max(rows.values.max(), -rows.values.min())))

    def content(self, part: int, content: Any) -> None:
        """Searches bytes, read as all types at all offsets."""
        for type_ in TYPES:
            for phase in range(np.dtype("u2" if type_ == "bfloat16" else type_).itemsize):
                self.stream(part, numbers(content, type_, phase), type_, phase)

    def stream(self, part: int, values: np.ndarray[Any, Any], type_: str, phase: int = 0) -> None:
        """Searches numbers of one type; `phase`: the offset of the first."""
        length = self._length
        if len(values) < length:
            return
        sample: Floats | None = None
        block = max(BLOCK, 2 * length)
        for begin in range(0, len(values) - length + 1, block):
            read = values[begin : begin + block + length - 1]
            if type_ in ("int8", "int16") and not read.min() < 0:
                continue  # without a sign they were read before
            some, fine = as_floats(read, type_, self._largest)
            whole: Any = True
            if fine is not None and not fine.all():
                sums = np.concatenate([[0], np.cumsum(~fine, dtype=np.int32)])
                whole = sums[length:] == sums[:-length]
                if not np.any(whole):
                    continue
                some[~fine] = 0.0
            self._last: tuple[Any, ...] | None = None
            for form in range(len(self.rows.tables)):
                if type_ in WHOLE and not self.rows.rounded(form):
                    continue
                seen = self.rows.seen(form, some)
                pairs = self._pairs_in(seen, whole, form)
                if pairs is None or not len(pairs[0]):
                    continue
                if sample is None:
                    sample = _sample(values, type_, self._largest)
                self._compare(part, seen, *pairs, form, type_, phase, begin, self.rows.seen(form, sample))

    def _pairs_in(self, some: Floats, whole: Any, form: int) -> tuple[Ints, Ints] | None:
        table = self.rows.tables[form]
        if self._last is None or self.rows.forms[form][0] == RAW:
            mean, deviation, skewness, kurtosis = window_moments(some, self._length)
            first, second = axes(skewness, kurtosis)
            self._last = mean, deviation, first, second, (deviation > 0) & whole
        mean, deviation, first, second, usable = self._last
        if self.rows.forms[form][0] == TWO:
            at, rows = self._by_order(table, some, np.flatnonzero(usable & (second < FLAT)), mean, deviation)
        else:
            at, rows = table.candidates(first, second)
            fit = usable[at]
            at, rows = at[fit], rows[fit]
        if not len(at):
            return None
        unit = deviation[at]
        lowest, highest, slack = table.ends
        for join, known in ((np.minimum, lowest), (np.maximum, highest)):
            edge = (over_windows(some, self._length, join, again=True)[at] - mean[at]) / unit
            near = np.abs(edge - known[rows]) <= slack[rows]
            at, rows, unit = at[near], rows[near], unit[near]
        return at, rows

    def _by_order(
        self, table: Signatures, some: Floats, places: Ints, mean: Floats, deviation: Floats
    ) -> tuple[Ints, Ints]:
        """Windows of two values, at `places`, and the rows that each may be."""
        views, found = np.lib.stride_tricks.sliding_window_view(some, self._length), [(places[:0], places[:0])]
        step = max(1, CHUNK // self._length)
        for begin in range(0, len(places), step):
            here = places[begin : begin + step]
            at, rows = table.candidates(*order_axes((views[here] - mean[here, None]) / deviation[here, None]))
            found.append((here[at], rows))
        return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])

    def _compare(
        self,
        part: int,
        some: Floats,
        at: Ints,
        rows: Ints,
        form: int,
        type_: str,
        phase: int,
        begin: int,
        sample: Floats,
    ) -> None:
        """Value by value: in the order of the record, else sorted."""
        length, size = self._length, np.dtype("u2" if type_ == "bfloat16" else type_).itemsize
        count = len(self.rows.values)
        step = max(1, CHUNK // length)
        for place in range(0, len(at), step):
            here, ids = at[place : place + step], rows[place : place + step]
            self._pairs += len(here)
            if self._pairs > PAIRS:
                self.cut = True
                return
            windows = np.lib.stride_tricks.sliding_window_view(some, length)[here]
            records = self.rows.written(form, ids)
            span, whole = self.rows.wide(form), type_ in WHOLE and self.rows.forms[form][0] != RAW
            near, off, alike = _fits(windows, records, span, whole)
            rest = np.flatnonzero(~near)
            if len(rest):
                mixed, off[rest], alike[rest] = _fits(np.sort(windows[rest], 1), np.sort(records[rest], 1), span, whole)
                rest = rest[mixed]
            hits = np.concatenate([np.flatnonzero(near), rest])
            hits = hits[np.lexsort((off[hits], ~near[hits], here[hits]))]
            for hit in hits[np.unique(here[hits], return_index=True)[1]]:  # a window is one record, the most alike
                ordered, window = bool(near[hit]), windows[hit]
                same = ordered and self.rows.plain(form) and bool(np.allclose(window, records[hit], 1e-6, 1e-9))
                if same:  # each value to its own digits: beside an income a small number counts too
                    unit = float(np.abs(window)[window != 0].min())
                    bits = agreement(np.arcsinh(window / unit), 2e-6, np.arcsinh(sample / unit), ordered=True)
                else:
                    bits = agreement(window, float(alike[hit]), sample, ordered=ordered)
                bound = by_chance(bits, 2 * count)
                if bound <= WORTH:
                    negated = "negated" if ids[hit] >= count else ""
                    word = "" if same else self.rows.forms[form][0].split(", ")[-1]
                    order: Order = "as stored" if ordered else "other order"
                    offset = phase + size * (begin + int(here[hit]))
                    how = ", ".join(filter(None, (word, negated))) or "as they are"
                    self.found.append((part, Match(int(ids[hit]) % count, offset, size, type_, how, order, bound)))

    def best(self) -> list[tuple[int, Match]]:
        """Of each record, in each part, the surest match at each place; those that overlap it are the same find.

        Records that lie end to end are a table, which chance would have to meet row after row: their bounds are
        multiplied, and what is no find by itself may be one together.
        """
        found = sorted(self.found, key=lambda item: (item[0], item[1].offset, item[1].record))
        ends: dict[tuple[int, str, str, int], int] = {}
        score, before = np.zeros(len(found)), np.full(len(found), -1)
        for at, (part, one) in enumerate(found):
            width, lane = self._length * one.step, (part, one.type, one.order)
            before[at] = ends.get((*lane, one.offset), -1)
            score[at] = np.log(one.bound) + (score[before[at]] if before[at] >= 0 else 0.0)
            rival = ends.get((*lane, one.offset + width), -1)
            if rival < 0 or score[at] < score[rival]:
                ends[(*lane, one.offset + width)] = at
        tried, taken, sure = np.log(self.windows * READINGS), Taken(), []
        for last in sorted(range(len(found)), key=lambda at: (found[at][1].order != "as stored", score[at], at)):
            bound, at = np.exp(min(tried + score[last], 0.0)), last
            while bound <= ALARM and at >= 0:
                part, one = found[at]
                if taken.free(part, one.offset, one.offset + self._length * one.step):
                    sure.append((part, replace(one, bound=float(max(bound, 1e-300)))))
                at = int(before[at])
        return sorted(sure, key=lambda item: (item[1].record, item[0], item[1].offset))


class Taken:
    """Places that hold a find: another one that overlaps it is the same."""

    def __init__(self) -> None:
        self._begins: dict[int, list[tuple[int, int]]] = {}

    def free(self, part: int, begin: int, end: int) -> bool:
        """Whether nothing is there yet; from now on something is."""
        spans = self._begins.setdefault(part, [])
        at = bisect_left(spans, (begin, end))
        if (at and spans[at - 1][1] > begin) or (at < len(spans) and spans[at][0] < end):
            return False
        spans.insert(at, (begin, end))
        return True


def _fits(windows: Floats, records: Floats, span: float, whole: bool) -> tuple[Any, Floats, Floats]:
    """Which windows are a * record + b with a > 0 but for rounding; how far off each is; and what counts as equal."""
    centred = records - records.mean(1, keepdims=True)
    scale = (windows * centred).sum(1) / np.maximum((centred * centred).sum(1), 1e-300)
    off = np.abs(windows - windows.mean(1, keepdims=True) - scale[:, None] * centred).max(1)
    # Of a step: rounding is off by half of one, cutting off what is behind the point by up to a whole one.
    allowed = np.abs(scale) * span / STEPS if not whole else np.ones(len(off))
    alike = np.maximum(2 * off, 1e-6 * np.abs(windows).max(1))
    return (scale > 0) & (off <= allowed), off, alike


def _sample(values: np.ndarray[Any, Any], type_: str, largest: float) -> Floats:
    floats, fine = as_floats(values[:: max(1, len(values) // SAMPLE)], type_, largest)
    return np.sort(floats if fine is None else floats[fine])
