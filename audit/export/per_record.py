"""What an audit found of each training record, as a table: on demand alone, for whoever answers for the data."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...targets.errors import InputError
from ..findings.assemble import results_of
from ..findings.results import AttackResults
from ..schema.read import folder_of, read_audit
from ..verification.rebuild import NoEvidenceError, rebuild
from ..verification.stored import StoredCells
from ..writing import write_new, writing

AGAIN = "Add {kind: exposure} to `attacks` and run the audit again: what is intact is kept."


def write_per_record(folder: Path, out: Path) -> int:
    """Writes a line per candidate, attack and training record, the gravest first, from the evidence of an audit.

    Returns:
        How many lines.

    Raises:
        InputError: the audit has no such attack, its evidence is not there, or the file is.
        UnsafeInput: the evidence was changed.
    """
    lines = list(_lines(folder))
    if len(lines) < 2:
        raise InputError(f"{folder} says nothing of single records. {AGAIN}")
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    with writing(out, "Name another file with --out."):
        write_new(out, text.getvalue().encode())
    return len(lines) - 1


def _lines(folder: Path) -> Iterator[list[Any]]:
    folder = folder_of(folder)
    cells = StoredCells(folder)
    try:
        rebuilt = rebuild(read_audit(folder), cells)
    except NoEvidenceError as why:
        raise InputError(f"{folder} has nothing to write: {why}. Run the audit where its evidence lies.") from None
    suite, header = rebuilt.suite, False
    results = results_of(suite, cells, rebuilt.outcome, "")
    for attack, label in suite.lineup.attacks:
        for model in suite.models.values():
            position = rebuilt.reached.get((label, model.name), 0)
            own = suite.round_label(label, position)
            found = attack.per_record(AttackResults(results, suite.scope(own), model, suite.level(label, position)))
            if found is None:
                continue
            if not header:
                yield ["candidate", "attack", "record", *found.columns]
                header = True
            for at in found.order.tolist():
                yield [
                    model.name,
                    label,
                    int(found.ids[at]),
                    *(_cell(one[at].item()) for one in found.columns.values()),
                ]


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value
