"""CSV tables with a label column, read line by line within limits: which columns are numbers, and what others say."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnsafeInput, nearest_hint, quoted
from ..untrusted.files import is_pickle, ordinary_file

TABLE_BYTES = 2**30  # of a file
LINE = 2**20  # characters of a line
COLUMNS = 20_000
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})  # what people write where there is no value


@dataclass
class Other:
    """The cells of a column that are no numbers.

    Args:
        texts, missing: how many say something, and how many nothing.
        line, cell: the first of either.
    """

    line: int
    cell: str
    texts: int = 0
    missing: int = 0


@dataclass
class Table:
    """One table. `values` are float32 [n, columns], NaN where a cell is no number."""

    path: Path
    columns: list[str]
    values: NDArray[np.float32]
    labels: list[str]
    others: dict[str, Other] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @property
    def where(self) -> str:
        return quoted(self.path.name)

    def numbers(self, columns: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, columns], finite.

        Raises:
            InputError: a cell that is no finite number, named by line or record and column.
        """
        for column in columns:
            if column in self.others:
                raise InputError(self._cell_fault(column))
        place = {column: at for at, column in enumerate(self.columns)}
        x = self.values[:, [place[column] for column in columns]]
        odd = np.argwhere(~np.isfinite(x))
        if len(odd):
            raise InputError(
                f"Record {int(odd[0, 0]) + 1} of {self.where} has no finite number in column "
                f"{quoted(columns[int(odd[0, 1])])} ({len(odd)} such cells in all). Fill in or leave out records with "
                "missing values."
            )
        return x

    def _cell_fault(self, column: str) -> str:
        other, n = self.others[column], len(self.labels)
        if not other.cell.strip():
            return (
                f"Line {other.line} of {self.where} is empty in column {quoted(column)}. Fill it in or leave the "
                "record out."
            )
        if not other.texts:
            return (
                f"Line {other.line} of {self.where} has no value in column {quoted(column)} ({quoted(other.cell)}; "
                f"{other.missing:,} such cells), which holds numbers. Fill in or leave out records with missing values."
            )
        return (
            f"Line {other.line} of {self.where} holds {quoted(other.cell)} in column {quoted(column)}, where a number "
            f"is expected: {n - other.texts - other.missing:,} of its {n:,} cells are numbers. Mend the cell; a column "
            "of categories is named under `categorical`."
        )


def read_table(path: Path, label: str, drop: Collection[str] = ()) -> Table:
    """The feature columns and the label column's texts.

    Args:
        drop: columns that are left out.

    Raises:
        InputError: no table, no such label column, or a formula.
        UnsafeInput: a pickle, or a line longer than any table's.
    """
    path = ordinary_file(path, "the table", TABLE_BYTES)
    where = quoted(path.name)
    with path.open("rb") as stream:
        head = stream.read(4)
    if is_pickle(head):
        raise UnsafeInput(f"The table {where} is a pickle; it was not read. Export it as CSV.")
    if head.startswith(b"PK") or head[:2] in (b"\xff\xfe", b"\xfe\xff", b"\xd0\xcf"):
        raise InputError(f"The table {where} is a spreadsheet or UTF-16 text. Export it as CSV in UTF-8.")
    rows = _rows(path, where)
    _, header = next(rows, (0, []))
    at = _label_position(header, label, where)
    known, dropped = set(header), set(drop)
    unknown = next((column for column in drop if column not in known), None)
    if unknown is not None:
        raise InputError(
            f"drop names the column {quoted(unknown)}, which {where} does not have.{nearest_hint(unknown, header)} "
            "Columns are named as they are written there."
        )
    kept = [position for position, column in enumerate(header) if position != at and column not in dropped]
    if not kept:
        raise InputError(f"The table {where} has no column beside the label that is not dropped.")
    columns = [header[position] for position in kept]
    values, labels, others = array("d"), [], dict[str, Other]()
    for line, row in rows:
        labels.append(row[at])
        if not row[at].strip():
            raise InputError(f"Line {line} of {where} has no label. Fill it in or leave the record out.")
        cells = row[:at] + row[at + 1 :] if not drop else [row[position] for position in kept]
        try:
            numbers = [] if "_" in "".join(cells) else list(map(float, cells))
        except ValueError:
            numbers = []
        values.extend(numbers or _numbers(cells, columns, line, others, where))
    with np.errstate(over="ignore"):
        x = np.frombuffer(values, np.float64).reshape(-1, len(columns)).astype(np.float32)
    return Table(path, columns, x, labels, others)


def read_texts(table: Table, columns: Sequence[str]) -> dict[str, list[str]]:
    """The cells of some columns as they are written, without the blanks around them; the file is read once more."""
    rows = _rows(table.path, table.where)
    _, header = next(rows)
    place = {column: at for at, column in enumerate(header)}
    places = [place[column] for column in columns]
    found: dict[str, list[str]] = {column: [] for column in columns}
    known: dict[str, str] = {}  # each text once in memory
    for _, row in rows:
        for column, at in zip(columns, places, strict=True):
            text = row[at].strip()
            found[column].append(known.setdefault(text, text))
    return found


def _numbers(cells: list[str], columns: list[str], line: int, others: dict[str, Other], where: str) -> list[float]:
    """NaN where a cell is none, which is noted in `others`; a formula is refused."""
    numbers = []
    for column, cell in zip(columns, cells, strict=True):
        if _is_number(cell):
            numbers.append(float(cell))
            continue
        if cell.lstrip().startswith("="):
            raise InputError(
                f"Line {line} of {where} holds the formula {quoted(cell)} in column {quoted(column)}, where a number "
                "is expected or the name of a category. Save the values in place of formulas."
            )
        other = others.setdefault(column, Other(line, cell))
        if cell.strip().lower() in MISSING:
            other.missing += 1
        else:
            if not other.texts:
                other.line, other.cell = line, cell
            other.texts += 1
        numbers.append(float("nan"))
    return numbers


def _rows(path: Path, where: str) -> Iterator[tuple[int, list[str]]]:
    """The header and the records, each with the number of its line; blank lines are skipped behind the header."""
    rows = csv.reader(_lines(path, where), strict=True)
    try:
        header = next(rows, [])
        yield rows.line_num, header
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"Line {rows.line_num} of {where} has {len(row)} cells and the header has {len(header)}. Mend the "
                    "line; a comma inside a cell needs quotes around the cell."
                )
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(
            f"Line {rows.line_num} of {where} is not CSV ({error}). A quote that is never closed is the usual cause."
        ) from None


def _lines(path: Path, where: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        number = 0
        while True:
            number += 1
            try:
                line = handle.readline(LINE)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"The table {where} is not UTF-8 near line {number} ({error.reason}). Save it so."
                ) from None
            if not line:
                return
            if len(line) == LINE and not line.endswith("\n"):
                raise UnsafeInput(
                    f"Line {number} of {where} has more than {LINE:,} characters, which no table needs; it was not "
                    "read further. Check that the file is CSV with one record per line."
                )
            if "\0" in line:
                raise InputError(
                    f"Line {number} of {where} contains a NUL character, so it is not text. Export it anew."
                )
            yield line


def _label_position(header: list[str], label: str, where: str) -> int:
    hint = "The first line must name every column once."
    if len(header) > COLUMNS:
        raise InputError(f"The table {where} has {len(header):,} columns; at most {COLUMNS:,} are read.")
    for position, column in enumerate(header):
        if not column.strip():
            raise InputError(
                f"Column {position + 1} of {where} has no name. {hint} (pandas writes its index so: "
                "to_csv(index=False).)"
            )
    if len(set(header)) < len(header):
        double = next(column for column, times in Counter(header).items() if times > 1)
        raise InputError(f"Two columns of {where} are named {quoted(double)}. {hint}")
    if label not in header:
        separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        if separator is not None:
            raise InputError(f"The table {where} is separated by {separator!r}. Export it with commas.")
        if header and all(_is_number(column) for column in header):
            raise InputError(f"The first line of {where} holds numbers, not names. {hint}")
        raise InputError(f"The table {where} has no label column {quoted(label)}.{nearest_hint(label, header)} {hint}")
    if len(header) == 1:
        raise InputError(f"The table {where} has no column beside the label. Name a table with the inputs too.")
    return header.index(label)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
