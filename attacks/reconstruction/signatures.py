"""The signatures of the training records, as work that all files of an audit share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ..effort import Effort
from ..preparation import Inputs, Preparation, Prepared, Scope
from .moments import COARSEST, GRID, Rows, Signatures
from .search import rows_of

COLUMNS = ("mean", "deviation", "lowest", "highest", "slack")


class Forms(Document):
    """The document of `RecordSignatures`: `span` and `forms` as in `Rows`, `sizes` of the grids; no forms: none."""

    span: Annotated[float, Field(ge=0)]
    forms: tuple[str, ...]
    sizes: tuple[Annotated[int, Field(ge=COARSEST // 2, le=GRID)], ...]


@dataclass(frozen=True)
class RecordSignatures(Preparation):
    """What to look for in a file: the signatures of every training record (`moments.Signatures`).

    Arrays, of each form: `<form>/mean`, `deviation`, `lowest`, `highest`, `slack` float64 [n], `cells`, `rows` int32
    [pairs] (n more than a record's: it is negated), and of its features `centre`, `unit` float64 [d]. The records
    themselves are not stored.
    """

    phase: ClassVar[str] = "leakage"

    @property
    def name(self) -> str:
        return "signatures"

    @property
    def words(self) -> str:
        return "what the training records look like, however they are written"

    @property
    def identity(self) -> Any:
        return []

    @property
    def effort(self) -> Effort:
        return Effort(seconds=0.1)

    def compute(self, inputs: Inputs) -> Prepared:
        members = inputs.scope.data.members
        rows = None if members is None else rows_of(members.x)
        if rows is None:
            return Prepared({}, {"span": 0.0, "forms": [], "sizes": []})
        arrays: dict[str, Any] = {}
        for at, ((_, centre, unit), table) in enumerate(zip(rows.forms, rows.tables, strict=True)):
            own = {name: getattr(table, name) for name in COLUMNS}
            own |= {"cells": table.cells.astype(np.int32), "rows": table.rows.astype(np.int32)}
            arrays |= {f"{at}/{name}": array for name, array in {**own, "centre": centre, "unit": unit}.items()}
        names, sizes = [form[0] for form in rows.forms], [table.size for table in rows.tables]
        return Prepared(arrays, {"span": rows.span, "forms": names, "sizes": sizes})

    def form(self, scope: Scope) -> Form:
        members = scope.data.members
        n, length = (0, 0) if members is None else (len(members), members.x[0].numel())

        def layout(document: Forms) -> Layout:
            found: dict[str, Array] = {}
            for at in range(len(document.forms)):
                found |= {f"{at}/{name}": Array("float64", (n,)) for name in COLUMNS}
                found |= {f"{at}/{name}": Array("float64", (length,)) for name in ("centre", "unit")}
                found |= {f"{at}/{name}": Array("int32", (f"pairs {at}",), 0) for name in ("cells", "rows")}
            return found

        def holds(document: Forms, arrays: Arrays, files: Any) -> None:
            require(len(document.sizes) == len(document.forms), "a form without a grid")
            for at, size in enumerate(document.sizes):
                cells, rows = arrays[f"{at}/cells"], arrays[f"{at}/rows"]
                require(bool((cells < size * size).all()) and bool((np.diff(cells) >= 0).all()), "no such cells")
                require(bool((rows < 2 * n).all()), "a signature of no record")

        return Form(Forms, layout, holds=holds)


def rows_in(prepared: Prepared, scope: Scope) -> Rows | None:
    """The records of a scope with their prepared signatures; None: they cannot be told from chance."""
    found, arrays, members = Forms.model_validate(prepared.document), prepared.arrays, scope.data.members
    if members is None or not found.forms:
        return None
    values = np.ascontiguousarray(members.x.detach().cpu().float().flatten(1).numpy())
    forms, tables = [], []
    for at, (name, size) in enumerate(zip(found.forms, found.sizes, strict=True)):
        forms.append((name, arrays[f"{at}/centre"], arrays[f"{at}/unit"]))
        cells, rows = (arrays[f"{at}/{one}"].astype(np.int64) for one in ("cells", "rows"))
        known = np.zeros(size * size, dtype=bool)
        known[cells] = True
        mean, deviation, lowest, highest, slack = (arrays[f"{at}/{one}"] for one in COLUMNS)
        tables.append(Signatures(mean, deviation, lowest, highest, slack, size, known, cells, rows))
    return Rows(values, found.span, tuple(forms), tuple(tables))
