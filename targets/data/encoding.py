"""Columns of text as one 0/1 feature per category: which columns, which categories, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, nearest_hint, quoted
from .declared import Categories, Column
from .labels import in_order
from .structure import Encoded
from .table import COLUMNS, Table, read_texts

MOST_CATEGORIES = 100  # of a column that nobody declared; more are names or ids
MOST_UNIQUE = 0.5  # of the records that a category of their own may have, where there are more than FEW categories
FEW = 20
ROOM, ROOM_BY_BYTE = 2**28, 50  # bytes of what is written out: at least, and for each byte of the tables
EMPTY = "(empty)"


def columns_of_text(tables: Sequence[Table], categorical: Mapping[Column, Categories]) -> list[str]:
    """In the order of the first table: those that are declared, and those of which most cells say something that is no
    number.

    Raises:
        InputError: a declared column that there is not.
    """
    columns = tables[0].columns
    known = set(columns)
    for column in map(str, categorical):
        if column not in known:
            hint = nearest_hint(column, columns) or f" Known: {', '.join(map(quoted, columns[:12]))}."
            raise InputError(
                f"categorical names the column {quoted(column)}, which {tables[0].where} does not have.{hint} Columns "
                "are named as they are written there."
            )
    kinds = {str(column): kind for column, kind in categorical.items()}
    found = []
    for column in columns:
        others = [table.others[column] for table in tables if column in table.others]
        texts, missing = sum(other.texts for other in others), sum(other.missing for other in others)
        numbers = sum(len(table.labels) for table in tables) - texts - missing
        seen = texts > 0 and texts >= numbers
        if kinds.get(column, "codes") != "codes" or (seen and column not in kinds):
            found.append(column)
    return found


def encoded_columns(
    tables: Mapping[str, Table], columns: Sequence[str], categorical: Mapping[Column, Categories]
) -> tuple[dict[str, NDArray[np.float32]], tuple[Encoded, ...], list[str]]:
    """The features of some columns by table, float32 [n, categories of the first column + of the second + ...].

    A category is a text as it is written, without the blanks around it; an empty cell, "?" and "NA" are categories
    too. Their order is the declared one, else sorted (as numbers where all are whole numbers), over all tables.

    Args:
        tables: by name; the first is the one a model was trained on, where there is one.

    Returns:
        The features, how each column was written out, and sentences for the reader of the report.

    Raises:
        InputError: a text that is not among those declared, or a column that holds names or ids.
    """
    kinds = {str(column): kind for column, kind in categorical.items()}
    texts = {name: read_texts(table, columns) for name, table in tables.items()}
    features: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tables}
    encoded, notes, width = [], [], 0
    records, size = sum(len(table.labels) for table in tables.values()), sum(table.size for table in tables.values())
    for column in columns:
        by_table = {name: [text or EMPTY for text in texts[name].pop(column)] for name in tables}
        kind = kinds.get(column, ())
        if kind and isinstance(kind, tuple):
            categories = list(kind)
            _check_known(column, categories, by_table, tables)
        else:
            distinct = {name: set(own) for name, own in by_table.items()}
            every: set[str] = set().union(*distinct.values())
            if column not in kinds:
                _refuse_ids(column, every, sum(map(len, by_table.values())))
            categories = in_order(every)
            late = sorted(every - distinct[next(iter(tables))])
            if late:
                notes.append(
                    f"Column {quoted(column)} holds {', '.join(map(quoted, late[:4]))}"
                    f"{', ...' if len(late) > 4 else ''} in the test table only: {len(late)} more of its "
                    f"{len(categories)} features than the training table has. Where the model was trained without "
                    f"them, name its categories under `categorical` and leave those records out."
                )
        width += len(categories)
        if width > COLUMNS or 4 * width * records > max(ROOM, ROOM_BY_BYTE * size):
            raise InputError(
                f"Written out as 0 and 1, the text columns up to {quoted(column)} make {width:,} features of "
                f"{records:,} records: at most {COLUMNS:,} features are read, and {max(ROOM, ROOM_BY_BYTE * size):,} "
                "bytes of them for tables of this size. Leave columns out with drop, or write categories as numbers."
            )
        position = {text: number for number, text in enumerate(categories)}
        for name, own in by_table.items():
            block = np.zeros((len(own), len(categories)), np.float32)
            block[np.arange(len(own)), [position[text] for text in own]] = 1
            features[name].append(block)
        encoded.append(Encoded(column, tuple(categories)))
    empty = {name: np.zeros((len(table.labels), 0), np.float32) for name, table in tables.items()}
    return {name: np.hstack([empty[name], *features[name]]) for name in tables}, tuple(encoded), notes


def _check_known(
    column: str, categories: Sequence[str], by_table: Mapping[str, Sequence[str]], tables: Mapping[str, Table]
) -> None:
    known = set(categories)
    if len(known) < len(categories):
        raise InputError(f"categorical names a category of column {quoted(column)} twice. Name each once.")
    for name, own in by_table.items():
        record = next((number for number, text in enumerate(own) if text not in known), None)
        if record is not None:
            raise InputError(
                f"Record {record + 1} of {tables[name].where} holds {quoted(own[record])} in column {quoted(column)}, "
                f"which is not among the categories declared for it.{nearest_hint(own[record], categories)} Add it in "
                "the place it has in the model's input, or leave such records out."
            )


def _refuse_ids(column: str, categories: set[str], records: int) -> None:
    many, unique = len(categories) > MOST_CATEGORIES, len(categories) > max(FEW, MOST_UNIQUE * records)
    if many or unique:
        raise InputError(
            f"Column {quoted(column)} holds {len(categories):,} different texts in {records:,} records, such as "
            f"{quoted(min(categories))}: names, ids or dates rather than categories. Leave it out with drop: [{column}]"
            " (and train without it), or write it as numbers; where they are categories after all, name it under "
            "`categorical`."
        )
