"""CSV tables of numbers with a label column, read line by line within limits."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnsafeInput, nearest_hint, quoted
from ..untrusted.files import is_pickle, ordinary_file

TABLE_BYTES = 2**30  # of a file
LINE = 2**20  # characters of a line
COLUMNS = 20_000


def read_table(path: Path, label: str) -> tuple[list[str], NDArray[np.float32], list[str]]:
    """The feature columns' names, their values float32 [n, features], and the label column's texts.

    Raises:
        InputError: no table, no such label column, or a cell that is no finite number (named by line and column).
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
    rows = csv.reader(_lines(path, where), strict=True)
    try:
        header = next(rows, [])
        at = _label_position(header, label, where)
        columns = [column for position, column in enumerate(header) if position != at]
        values, texts = array("d"), []
        for row in rows:
            if not row:
                continue  # a blank line
            if len(row) != len(header):
                raise InputError(
                    f"Line {rows.line_num} of {where} has {len(row)} cells and the header has {len(header)}. Mend the "
                    "line; a comma inside a cell needs quotes around the cell."
                )
            texts.append(row.pop(at))
            if not texts[-1].strip():
                raise InputError(f"Line {rows.line_num} of {where} has no label. Fill it in or leave the record out.")
            try:
                values.extend(map(float, row))
            except ValueError:
                raise InputError(_cell_fault(row, columns, rows.line_num, where)) from None
            if "_" in "".join(row):  # float("1_000") is a number to Python only
                raise InputError(_cell_fault(row, columns, rows.line_num, where))
    except csv.Error as error:
        raise InputError(
            f"Line {rows.line_num} of {where} is not CSV ({error}). A quote that is never closed is the usual cause."
        ) from None
    with np.errstate(over="ignore"):
        x = np.frombuffer(values, np.float64).reshape(-1, len(columns)).astype(np.float32)
    odd = np.argwhere(~np.isfinite(x))
    if len(odd):
        row_number, column_number = int(odd[0, 0]), int(odd[0, 1])
        raise InputError(
            f"Record {row_number + 1} of {where} has no finite number in column {quoted(columns[column_number])} "
            f"({len(odd)} such cells in all). Fill in or leave out records with missing values."
        )
    return columns, x, texts


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
    double = next((column for position, column in enumerate(header) if column in header[:position]), None)
    if double is not None:
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


def _cell_fault(row: list[str], columns: list[str], line: int, where: str) -> str:
    column, cell = next(pair for pair in zip(columns, row, strict=True) if not _is_number(pair[1]))
    if not cell.strip():
        return f"Line {line} of {where} is empty in column {quoted(column)}. Fill it in or leave the record out."
    return (
        f"Line {line} of {where} holds {quoted(cell)} in column {quoted(column)}, where a number is expected. Encode "
        "categories as numbers and leave out text before the audit."
    )
