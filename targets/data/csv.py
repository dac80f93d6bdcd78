"""Data from CSV tables that may come from a stranger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, quoted
from .data import Data
from .declared import Column, Declared
from .encoding import columns_of_text, encoded_columns
from .further.forgetting import set_aside
from .labels import sorted_labels
from .records import Bounds, Records
from .structure import Structure, resolved
from .table import Table, read_table
from .value_range import column_bounds


def load_csv(
    path_train: Path | str | None,
    path_test: Path | str,
    *,
    label: str,
    bounds: Bounds | Mapping[Column, tuple[float, float]] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    name: str | None = None,
    regression: bool = False,
    declared: Declared | None = None,
    drop: Collection[str] = (),
    forget: object = None,
) -> Data:
    """Data from CSV tables (UTF-8, comma, header line): column `label` is the class, the others numbers or categories.

    The features are the columns of numbers, in the order of the training table, then a block of 0 and 1 for each
    column of text, in that order too (as pandas.get_dummies has it); `Data.structure` names them all.

    Args:
        path_train: the members; None when only a test table is at hand.
        path_test: the non-members; its columns are put into the order of the training table.
        label: name of the label column.
        bounds: what a value may be, scalar or [features], or by column. Left out: [0, 1] for columns that fill it, and
            each other column's own range over both tables, which is a guess (`Data.bounds_doubt`).
        class_names: the labels as written in the tables, in the order of the model's outputs. Left out: the distinct
            labels of both tables, sorted (as numbers when all are whole numbers).
        seed: splits the non-members.
        name: what the report calls the data; else the test file's name.
        regression: the label column holds numbers to predict, not classes.
        declared: what the columns are. `categorical` are encoded, as columns of text are.
        drop: columns that are left out.
        forget: which of the training records the model was to forget, positions or a mask; None: none.

    Raises:
        InputError: a missing column, a cell that is no number (named by line and column), or data `Data` refuses.
        UnsafeInput: a pickle, or a line longer than any table's.
    """
    declared = declared or Declared()
    paths = ({} if path_train is None else {"train": Path(path_train)}) | {"test": Path(path_test)}
    tables = {part: read_table(path, label, drop) for part, path in paths.items()}
    columns = next(iter(tables.values())).columns
    if set(tables["test"].columns) != set(columns):
        odd = sorted(set(columns) ^ set(tables["test"].columns))
        raise InputError(
            f"The training and the test table have different columns: {', '.join(map(quoted, odd[:5]))} "
            f"{'is' if len(odd) == 1 else 'are'} in only one of them. Give both the same header."
        )
    x, structure, notes = _features(tables, declared)
    names: list[str] = []
    if not regression:
        every = (table.labels for table in tables.values())
        names = list(class_names) if class_names is not None else sorted_labels(every)
    position = {text: number for number, text in enumerate(names)}
    records = {}
    for part, table in tables.items():
        if regression:
            values = _values(table.labels, f"column {quoted(label)} of {table.where}")
            records[part] = Records(torch.from_numpy(x[part]), torch.from_numpy(values))
            continue
        unknown = sorted(set(table.labels) - set(position))
        if unknown:
            raise InputError(
                f"Label {quoted(unknown[0])} in {table.where} is not among the class names. Name every label the "
                "tables hold, as it is written there."
            )
        y = torch.tensor([position[text] for text in table.labels], dtype=torch.int64)
        records[part] = Records(torch.from_numpy(x[part]), y)
    doubt = ""
    if not isinstance(bounds, Bounds):
        bounds, doubt = column_bounds(np.concatenate(list(x.values())), bounds or {}, structure, "the tables")
        notes += [doubt] if doubt else []
    members, forgotten = records.get("train"), None
    if forget is not None:
        members, forgotten, _ = set_aside(members, forget, "data.forget")
    return Data(
        name=name or paths["test"].stem,
        members=members,
        non_members=records["test"],
        bounds=bounds,
        class_names=tuple(names),
        seed=seed,
        notes=tuple(notes),
        bounds_doubt=doubt,
        structure=structure,
        forgotten=forgotten,
    )


def _features(
    tables: Mapping[str, Table], declared: Declared
) -> tuple[dict[str, NDArray[np.float32]], Structure, list[str]]:
    """float32 [n, features] by table, what the features are, and sentences for the reader of the report."""
    columns = next(iter(tables.values())).columns
    texts = columns_of_text(list(tables.values()), declared.categorical)
    written = set(texts)
    plain = [column for column in columns if column not in written]
    blocks, encoded, notes = encoded_columns(tables, texts, declared.categorical)
    x = {part: np.hstack([table.numbers(plain), blocks[part]]) for part, table in tables.items()}
    names, spread = list(plain), dict[str, tuple[int, ...]]()
    for one in encoded:
        spread[one.column] = tuple(range(len(names), len(names) + len(one.categories)))
        names += [f"{one.column}={category}" for category in one.categories]
    structure = resolved(declared, (len(names),), names, "the tables", spread, encoded)
    notes += _whole_numbers(x, structure) if structure.declared else []
    if encoded:
        notes.insert(
            0,
            f"The columns {', '.join(quoted(one.column) for one in encoded[:8])}{', ...' if len(encoded) > 8 else ''} "
            f"are categories: each became a block of 0 and 1 behind the {len(plain)} columns of numbers, {len(names)} "
            "features in all. The categories and their order are listed with the data.",
        )
    return x, structure, notes


def _whole_numbers(x: Mapping[str, NDArray[np.float32]], structure: Structure) -> list[str]:
    """That columns of whole numbers could be declared as such."""
    known = {*structure.held, *structure.integer}
    free = [at for at in range(len(structure.names)) if at not in known]
    found = [structure.names[at] for at in free if all(bool((one[:, at] % 1 == 0).all()) for one in x.values())]
    if not found:
        return []
    named = f"{', '.join(map(quoted, found[:8]))}{', ...' if len(found) > 8 else ''}"
    return [
        f"Only whole numbers are in {'column' if len(found) == 1 else 'the columns'} {named}, and evasion attacks them "
        f"as if fractions could be sent. Where they cannot, say integer: [{', '.join(found[:8])}]."
    ]


def _values(texts: Sequence[str], where: str) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
            return np.array([float(text) for text in texts], dtype=np.float32).reshape(-1, 1)
    except ValueError as error:
        raise InputError(f"{where} must hold numbers to predict: {error}.") from None
