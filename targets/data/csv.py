"""Data from CSV tables that may come from a stranger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, quoted
from .data import Data
from .labels import sorted_labels
from .records import Bounds, Records
from .table import read_table
from .value_range import fitted_columns


def load_csv(
    path_train: Path | str | None,
    path_test: Path | str,
    *,
    label: str,
    bounds: Bounds | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    name: str | None = None,
    regression: bool = False,
) -> Data:
    """Data from CSV tables (UTF-8, comma, header line): column `label` is the class, every other column a number.

    Args:
        path_train: the members; None when only a test table is at hand.
        path_test: the non-members; its columns are put into the order of the training table.
        label: name of the label column.
        bounds: what a value may be, scalar or [features]. Left out: [0, 1] for columns that fill it, and each other
            column's own range over both tables, which is a guess (`Data.bounds_doubt`).
        class_names: the labels as written in the tables, in the order of the model's outputs. Left out: the distinct
            labels of both tables, sorted (as numbers when all are whole numbers).
        seed: splits the non-members.
        name: what the report calls the data; else the test file's name.

        regression: the label column holds numbers to predict, not classes.

    Raises:
        InputError: a missing column, a cell that is no number (named by line and column), or data `Data` refuses.
        UnsafeInput: a pickle, or a line longer than any table's.
    """
    paths = {"test": Path(path_test)} | ({} if path_train is None else {"train": Path(path_train)})
    tables = {part: read_table(path, label) for part, path in paths.items()}
    columns, x_test, labels_test = tables["test"]
    if "train" in tables:
        train_columns = tables["train"][0]
        if set(train_columns) != set(columns):
            odd = sorted(set(train_columns) ^ set(columns))
            raise InputError(
                f"The training and the test table have different columns: {', '.join(map(quoted, odd[:5]))} "
                f"{'is' if len(odd) == 1 else 'are'} in only one of them. Give both the same header."
            )
        x_test = x_test[:, [columns.index(column) for column in train_columns]]
        columns = train_columns
    tables["test"] = (columns, x_test, labels_test)
    notes: list[str] = []
    names: list[str] = []
    if not regression:
        every = (labels for _, _, labels in tables.values())
        names = list(class_names) if class_names is not None else sorted_labels(every)
    position = {text: number for number, text in enumerate(names)}
    records = {}
    for part, (_, x, texts) in tables.items():
        if regression:
            values = _values(texts, f"column {quoted(label)} of {quoted(paths[part].name)}")
            records[part] = Records(torch.from_numpy(x), torch.from_numpy(values))
            continue
        unknown = sorted(set(texts) - set(position))
        if unknown:
            raise InputError(
                f"Label {quoted(unknown[0])} in {quoted(paths[part].name)} is not among the class names. Name every "
                "label the tables hold, as it is written there."
            )
        y = torch.tensor([position[text] for text in texts], dtype=torch.int64)
        records[part] = Records(torch.from_numpy(x), y)
    doubt = ""
    if bounds is None:
        low, high, doubt = fitted_columns(np.concatenate([x for _, x, _ in tables.values()]), columns)
        bounds = Bounds(torch.from_numpy(low), torch.from_numpy(high))
        notes += [doubt] if doubt else []
    return Data(
        name=name or paths["test"].stem,
        members=records.get("train"),
        non_members=records["test"],
        bounds=bounds,
        class_names=tuple(names),
        seed=seed,
        notes=tuple(notes),
        bounds_doubt=doubt,
    )


def _values(texts: Sequence[str], where: str) -> NDArray[np.float32]:
    try:
        return np.array([float(text) for text in texts], dtype=np.float32).reshape(-1, 1)
    except ValueError as error:
        raise InputError(f"{where} must hold numbers to predict: {error}.") from None
