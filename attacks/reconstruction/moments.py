"""Signatures of rows of numbers that neither scale, offset nor order change, of all windows of a stream at once.

A window's skewness and kurtosis stay what they are when its values are scaled, shifted or exchanged with each other;
when they are negated, the skewness changes its sign alone, so that each row is looked for as its mirror image too.
Of rows of two values (one-hot columns, answers of yes and no) they tell next to nothing, and their order tells all.
Sums over windows are put together from sums over powers of two, so that a huge value spoils those windows alone that
hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from ...targets.seeds import derive

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

GRID, COARSEST = 4096, 64  # cells of an axis; fewer where a record's own rounding covers several
AT_MOST = 16  # cells of a record, on average
STEPS = 255  # of the data's whole range, in the coarsest rounding that is searched for
SLACK = 6.0  # standard deviations of a signature under such rounding; cutting off takes more of them than rounding does
CHUNK = 2**21  # values that are held at a time
SHORTEST = 6  # values of a record: fewer are met by chance
SCALED, TWO = "scaled", "two values, scaled"  # forms; that of records of two values, which their order alone tells
RANGES = "scaled by feature"  # each by its least and largest value
RAW = "in units of their own, as they are"  # an income beside an age: values are held against each other as logarithms
DWARFED = 1 / 3  # of the features: where so many lie within a step of the whole range, units are their own
TINY = 2.5  # what `STEPS` are steps of in logarithms: .6 % of a value, which bfloat16 keeps
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation by channel, of many models' inputs


def over_windows(values: Floats, length: int, join: Callable[..., Any] = np.add, *, again: bool = False) -> Floats:
    """`join` over every window of `length` consecutive values: [m - length + 1].

    Args:
        again: a value may count twice (minimum, maximum), which saves some of the work.
    """
    width, power = 1, values
    found: Floats | None = None
    covered, count = 0, len(values) - length + 1
    while True:
        if again and 2 * width > length:
            return np.asarray(join(power[:count], power[length - width : length - width + count]))
        if not again and length & width:
            part = power[covered : covered + count]
            found = part.copy() if found is None else join(found, part, out=found)
            covered += width
            if covered == length and found is not None:
                return found
        power = join(power[:-width], power[width:])
        width *= 2


def window_moments(values: Floats, length: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean, standard deviation, skewness, kurtosis of every window; of one without spread the last two are 0."""
    power = values * values
    mean, second = over_windows(values, length) / length, over_windows(power, length) / length
    third = over_windows(power * values, length) / length
    fourth = over_windows(np.multiply(power, power, out=power), length) / length
    square = mean * mean
    variance = second - square
    plain = variance <= 1e-9 * second
    variance[plain] = 1.0
    fourth += mean * (-4 * third + mean * (6 * second - 3 * square))
    third += mean * (2 * square - 3 * second)
    deviation = np.sqrt(variance)
    third /= variance * deviation
    fourth /= variance * variance
    third[plain] = fourth[plain] = deviation[plain] = 0.0
    return mean, deviation, third, fourth


def axes(skewness: Floats, kurtosis: Floats) -> tuple[Floats, Floats]:
    """The two in [0, 1] and [0, 1): cheap, monotone, and without the part of the kurtosis that skewness explains."""
    first = skewness / (1 + np.abs(skewness))
    with np.errstate(divide="ignore", invalid="ignore"):
        second = 1 - (1 + skewness * skewness) / kurtosis
    return 0.5 + 0.5 * first, np.clip(np.nan_to_num(second, nan=0.0, posinf=0.0, neginf=0.0), 0, 1 - 1e-9)


def order_axes(z: Floats) -> tuple[Floats, Floats]:
    """Two numbers in [0, 1] of each row of z-scores [k, d] that its order decides: random projections."""
    first, second = (z @ _directions(z.shape[1])).T
    return 0.5 + 0.5 * first / (1 + np.abs(first)), 0.5 + 0.5 * second / (1 + np.abs(second))


@lru_cache(maxsize=1)
def _directions(length: int) -> Floats:
    found: Floats = np.random.default_rng(derive(0, "order of a row")).standard_normal((length, 2)) / np.sqrt(length)
    return found


@dataclass(frozen=True)
class Signatures:
    """Of n rows, on a grid.

    Args:
        mean, deviation: float64 [n]; a deviation of 0: the row has no spread and is not searched for.
        lowest, highest: in deviations from the mean.
        slack: how far those two may be off, in deviations.
        size: cells of an axis.
        known: bool [size * size], in which cells a row may be.
        cells, rows: pairs of a cell and a row, in the order of the cells; row n + i is row i, negated.
    """

    mean: Floats
    deviation: Floats
    lowest: Floats
    highest: Floats
    slack: Floats
    size: int
    known: np.ndarray[Any, np.dtype[np.bool_]]
    cells: Ints
    rows: Ints

    def candidates(self, first: Floats, second: Floats) -> tuple[Ints, Ints]:
        """Places [k] in these signatures of windows, and rows [k], below 2 n, that each may be: every fitting pair."""
        cell = (first * self.size).astype(np.int64) * self.size + (second * self.size).astype(np.int64)
        np.clip(cell, 0, self.size * self.size - 1, out=cell)
        at = np.flatnonzero(self.known[cell])
        begin, end = (np.searchsorted(self.cells, cell[at], side) for side in ("left", "right"))
        counts = end - begin
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(at, counts), self.rows[np.repeat(begin, counts) + offsets]

    @cached_property
    def ends(self) -> tuple[Floats, Floats, Floats]:
        """Lowest, highest and slack of 2 n rows: of a negated one, lowest and highest change places."""
        both = np.concatenate
        return both([self.lowest, -self.highest]), both([self.highest, -self.lowest]), both([self.slack, self.slack])


def signatures(
    count: int, length: int, rows_at: Callable[[Ints], Floats], span: float, sought: Any, *, by_order: bool = False
) -> Signatures:
    """Of `count` rows of `length` values.

    Args:
        rows_at: gives the rows of some numbers: float64 [k, length].
        span: how far apart the values of the data lie at most, which rounding to `STEPS` steps is measured by.
        sought: bool [count], which of them are looked for by this signature.
        by_order: by `order_axes`, else by `axes`.
    """
    parts = [_described(rows_at(some), span, by_order) for some in _chunks(count, length)]
    mean, deviation, lowest, highest, slack, first, second, wide, high = (
        np.concatenate([part[at] for part in parts]) for at in range(9)
    )
    deviation = np.where(sought, deviation, 0.0)
    spread = np.flatnonzero(deviation > 0)
    first, second, wide, high = (one[spread] for one in (first, second, wide, high))
    first, second = np.concatenate([first, 1 - first]), np.concatenate([second, 1 - second if by_order else second])
    wide, high, spread = np.tile(wide, 2), np.tile(high, 2), np.concatenate([spread, spread + count])
    size = GRID
    while True:
        low_u, high_u = (_cell(first + sign * wide, size) for sign in (-1, 1))
        low_v, high_v = (_cell(second + sign * high, size) for sign in (-1, 1))
        across, along = high_u - low_u + 1, high_v - low_v + 1
        total = int((across * along).sum())
        if total <= AT_MOST * max(1, len(spread)) or size <= COARSEST:
            break
        size //= 2
    areas = across * along
    owner = np.repeat(np.arange(len(spread)), areas)
    inside = np.arange(total) - np.repeat(np.cumsum(areas) - areas, areas)
    cells = (low_u[owner] + inside // along[owner]) * size + low_v[owner] + inside % along[owner]
    order = np.argsort(cells, kind="stable")
    known = np.zeros(size * size, dtype=bool)
    known[cells] = True
    return Signatures(mean, deviation, lowest, highest, slack, size, known, cells[order], spread[owner[order]])


@dataclass(frozen=True)
class Rows:
    """The records that are searched for, with their signatures.

    Args:
        values: float32 [n, d].
        span: how far apart values of the data lie at most.
        forms: the ways in which records are written down, beside scale and offset of all values alike; each with the
            mean and the deviation [d] that a feature is held against.
        tables: the signatures of each form.
    """

    values: np.ndarray[Any, np.dtype[np.float32]]
    span: float
    forms: tuple[tuple[str, Floats, Floats], ...]
    tables: tuple[Signatures, ...]

    def plain(self, form: int) -> bool:
        """Whether all features alike are scaled."""
        return self.forms[form][0] in (SCALED, TWO)

    def rounded(self, form: int) -> bool:
        """Whether whole numbers may be values of this form."""
        return self.plain(form) or self.forms[form][0] in (RANGES, RAW)

    def wide(self, form: int) -> float:
        """What `STEPS` are steps of."""
        return self.span if self.plain(form) else {RANGES: 1.0, RAW: TINY}.get(self.forms[form][0], 2.0)

    def written(self, form: int, ids: Ints) -> Floats:
        """Records as this form has them; n + i is record i, negated."""
        name, mean, deviation = self.forms[form]
        values = (self.values[ids % len(self.values)].astype(np.float64) - mean) / deviation
        values[ids >= len(self.values)] *= -1
        return np.arcsinh(values) if name == RAW else values

    def seen(self, form: int, values: Floats) -> Floats:
        """What `written` is held against, of numbers of a file."""
        name, _, unit = self.forms[form]
        return np.arcsinh(values / unit[0]) if name == RAW else values


def prepare(values: np.ndarray[Any, Any], channels: int = 0) -> Rows | None:
    """What to search for; None: records of fewer than `SHORTEST` values, or all without spread.

    Args:
        values: [n, d].
        channels: equal parts of a record that are scaled by themselves; 0: it is no image of few.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    n, length = values.shape
    if n == 0 or length < SHORTEST:
        return None
    span = float(values.max()) - float(values.min())
    if not span > 0:
        return None
    nothing, one = np.zeros(length), np.ones(length)
    mean, square, two = np.zeros(length), np.zeros(length), np.zeros(n, dtype=bool)
    for begin in range(0, n, max(1, CHUNK // length)):
        part = values[begin : begin + max(1, CHUNK // length)].astype(np.float64)
        ends = part.min(1, keepdims=True), part.max(1, keepdims=True)
        two[begin : begin + len(part)] = ((part == ends[0]) | (part == ends[1])).all(1)
        mean += part.sum(0)
        square += (part * part).sum(0)
    mean /= n
    variance = np.maximum(square / n - mean * mean, 0)
    varies = variance > 1e-12 * square / n
    deviation = np.where(varies, np.sqrt(variance), 1.0)
    own = not channels and float((deviation[varies] < span / STEPS).mean()) > DWARFED
    forms = [("standardised by feature", mean, deviation)]
    if not own:
        forms.insert(0, (SCALED, nothing, one))
    low, wide = values.min(0).astype(np.float64), np.ptp(values, 0).astype(np.float64)
    if not channels and max(np.ptp(low[varies]), np.ptp(wide[varies])) > span / STEPS:
        forms.append((RANGES, low, np.where(varies, wide, 1.0)))
    if channels > 1 and length % channels == 0:
        parts = mean.reshape(channels, -1)
        whole = np.sqrt(np.maximum((square / n).reshape(channels, -1).mean(1) - parts.mean(1) ** 2, 1e-12))
        by = [np.repeat(one, length // channels) for one in (parts.mean(1), whole)]
        forms.append(("standardised by channel", by[0], by[1]))
    if channels == 3 and length % 3 == 0:
        by = [np.repeat(one, length // 3) for one in IMAGENET]
        forms.append(("standardised as for ImageNet", by[0], by[1]))
    if two.any():
        forms.append((TWO, nothing, one))
    if own:
        forms.append((RAW, nothing, np.full(length, deviation[varies].min())))
    rows, tables = Rows(values, span, tuple(forms), ()), []
    for at, (name, _, _) in enumerate(forms):
        sought = {SCALED: ~two, TWO: two}.get(name, np.ones(n, dtype=bool))
        # Standardised values were not rounded before: what they are stored in is fine enough.
        steps = rows.wide(at) if rows.rounded(at) else float(STEPS) * 2e-3
        tables.append(signatures(n, length, partial(rows.written, at), steps, sought, by_order=name == TWO))
    return replace(rows, tables=tuple(tables))


def _cell(value: Floats, size: int) -> Ints:
    return np.clip((value * size).astype(np.int64), 0, size - 1)


def _chunks(count: int, length: int) -> Iterator[Ints]:
    step = max(1, CHUNK // length)
    for begin in range(0, max(count, 1), step):
        yield np.arange(begin, min(begin + step, count))


def _described(rows: Floats, span: float, by_order: bool) -> tuple[Floats, ...]:
    length = rows.shape[1]
    mean, deviation = rows.mean(1), rows.std(1)
    deviation[deviation <= 1e-6 * (np.abs(mean) + span)] = 0.0
    unit = np.where(deviation > 0, deviation, 1.0)
    z = (rows - mean[:, None]) / unit[:, None]
    slack = 2 * span / STEPS / unit + 1e-5
    if by_order:
        near = np.full(len(rows), 1e-5)
        return mean, deviation, z.min(1), z.max(1), slack, *order_axes(z), near, near
    square = z * z
    powers = [np.einsum("ij,ij->i", square, one) / length for one in (z, square, square * square)]
    noise = span / STEPS / np.sqrt(12) / unit  # of one value, rounded
    wide = SLACK * 3 * noise * np.sqrt(powers[1] / length) + 3 * np.abs(powers[0]) * noise**2
    high = SLACK * 4 * noise * np.sqrt(powers[2] / length) + 6 * powers[1] * noise**2
    skewness, kurtosis = powers[:2]
    wide = wide / (1 + np.abs(skewness)) ** 2 / 2 + 1e-6
    share = (1 + skewness**2) / np.maximum(kurtosis, 1)
    high = share / np.maximum(kurtosis, 1) * high + 4 * np.abs(skewness) * wide * share + 1e-6
    return mean, deviation, z.min(1), z.max(1), slack, *axes(skewness, kurtosis), wide, high
