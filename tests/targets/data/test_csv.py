"""CSV tables: what is accepted becomes the right records; what is broken or crafted is refused, and nothing runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crushproof.targets.data import table as table_module
from crushproof.targets.data.csv import load_csv
from crushproof.targets.data.records import Bounds
from crushproof.targets.errors import InputError, UnsafeInput

Refused = Callable[..., str]


def table(folder: Path, text: str | bytes, name: str = "test.csv") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def rows(n: int = 12, start: int = 0) -> str:
    return "".join(f"{i},{(i * 7919) % 101 / 7},{'no' if i % 2 else 'yes'}\n" for i in range(start, start + n))


HEAD = "age,income,bought\n"


def test_tables_become_records(tmp_path: Path) -> None:
    train = table(tmp_path, HEAD + rows(30, 50), "train.csv")
    test = table(tmp_path, "bought,income,age\n" + "".join(f"yes,{i},{-i}\nno,{i / 3},{i}\n" for i in range(20)))
    data = load_csv(train, test, label="bought")
    assert data.members is not None
    assert data.class_names == ("no", "yes")
    assert data.members.x[:2].tolist() == [
        [50, pytest.approx(50 * 7919 % 101 / 7)],
        [51, pytest.approx(51 * 7919 % 101 / 7)],
    ]
    assert data.non_members.x[2:4].tolist() == [[-1, 1], [1, pytest.approx(1 / 3)]]  # the training table's order
    assert data.non_members.y[:2].tolist() == [1, 0]
    assert data.bounds.low[0] == -19  # of both tables
    assert data.bounds.high[0] == 79


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEAD + rows(),
        (HEAD + rows()).replace("\n", "\r\n"),
        HEAD + rows().rstrip("\n"),
        HEAD + "\n" + rows() + "\n\n",
        '"age","income","bought"\n' + rows().replace("yes", '"yes"'),
    ],
    ids=["BOM", "CRLF", "no last line end", "blank lines", "quotes"],
)
def test_dialects_of_honest_tables(tmp_path: Path, text: str) -> None:
    data = load_csv(None, table(tmp_path, text), label="bought", bounds=Bounds.of(-1, 100))
    plain = load_csv(None, table(tmp_path, HEAD + rows()), label="bought", bounds=Bounds.of(-1, 100))
    assert data.digest == plain.digest


def test_numeric_labels_are_sorted_as_numbers_and_names_can_be_given(tmp_path: Path) -> None:
    path = table(tmp_path, "x,y\n" + "".join(f"{i},{i % 11}\n" for i in range(44)))
    assert load_csv(None, path, label="y").class_names == tuple(str(i) for i in range(11))
    names = tuple(str(i) for i in reversed(range(11)))
    data = load_csv(None, path, label="y", class_names=names)
    assert data.non_members.y[:3].tolist() == [10, 9, 8]


def test_a_column_is_sure_of_its_bounds_only_where_it_fills_0_to_1(tmp_path: Path) -> None:
    """Zeros and ones, only zeros, filled; then half filled, and two others."""
    filled = [f"{i % 2},0,{i / 19 * 0.97}" for i in range(20)]
    sure = load_csv(
        None, table(tmp_path, "a,b,c,y\n" + "".join(f"{row},{i % 3}\n" for i, row in enumerate(filled))), label="y"
    )
    assert (sure.bounds.low.tolist(), sure.bounds.high.tolist()) == ([0, 0, 0], [1, 1, 1])
    assert (sure.bounds_doubt, sure.notes) == ("", ())
    text = "a,b,c,d,e,f,y\n" + "".join(f"{row},{i / 38},{i},{i - 5},{i % 3}\n" for i, row in enumerate(filled))
    path = table(tmp_path, text)
    guessed = load_csv(None, path, label="y")
    assert guessed.bounds.low.tolist() == [0, 0, 0, 0, 0, -5]
    assert guessed.bounds.high.tolist() == [1, 1, 1, 0.5, 19, 14]
    assert "3 of 6 columns are a guess ('d', 'e', 'f')" in guessed.bounds_doubt
    assert guessed.notes == (guessed.bounds_doubt,)
    assert load_csv(None, path, label="y", bounds=Bounds.of(-5, 19)).bounds_doubt == ""


def test_a_constant_column_has_a_range(tmp_path: Path) -> None:
    path = table(tmp_path, "x,c,y\n" + "".join(f"{i},5e8,{i % 2}\n" for i in range(20)))
    data = load_csv(None, path, label="y")
    assert bool((data.bounds.low < data.bounds.high).all())


BAD_TABLES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "formula": (HEAD + rows(3) + "7,=cmd|' /C calc'!A0,no\n", ("Line 5", "=cmd", "'income'", "number is expected")),
    "formula with escapes": (HEAD + "7,=\x1b[31m,no\n", ("Line 2", r"\x1b[31m")),
    "text among numbers": (HEAD + rows(3) + "7,high,no\n", ("Line 5", "'high'", "3 of its 4 cells", "`categorical`")),
    "missing number": (HEAD + rows(3) + "7,?,no\n8,?,no\n", ("Line 5", "'income'", "2 such cells")),
    "underscore": (HEAD + rows(3) + "7,1_000,no\n", ("Line 5", "'1_000'", "number is expected")),
    "empty cell": (HEAD + rows(2) + "7,,no\n", ("Line 4", "empty", "'income'")),
    "NaN": (HEAD + rows(2) + "7,nan,no\n", ("Record 3", "'income'", "1 such")),
    "infinite": (HEAD + rows(2) + "-inf,3,no\n", ("'age'",)),
    "beyond float32": (HEAD + rows(2) + "1e300,3,no\n", ("'age'",)),
    "no label in a line": (HEAD + "7,3,\n", ("Line 2", "no label")),
    "ragged": (HEAD + rows(2) + "1,2\n", ("Line 4", "2 cells", "3")),
    "too long a line": (HEAD + "1,2,yes,4\n", ("4 cells",)),
    "no header": ("1,2,3\n4,5,6\n", ("holds numbers, not names",)),
    "no such label": (
        HEAD.replace("bought", "bougth") + rows(),
        ("no label column 'bought'", "Did you mean 'bougth'?"),
    ),
    "same column twice": ("age,age,bought\n" + rows(), ("Two columns", "'age'")),
    "index column": (",income,bought\n" + rows(), ("Column 1", "to_csv(index=False)")),
    "only labels": ("bought\nyes\nno\n", ("no column beside",)),
    "semicolons": (HEAD.replace(",", ";") + rows().replace(",", ";"), ("';'", "commas")),
    "open quote": (HEAD + '1,"2,yes\n' + rows(), ("not CSV", "quote")),
    "open quote in a long file": (HEAD + '1,"2,yes\n' + rows(20_000), ("not CSV", "quote")),
    "Latin-1": (HEAD.encode() + b"1,2,\xe9t\xe9\n", ("UTF-8",)),
    "UTF-16": ((HEAD + rows()).encode("utf-16"), ("UTF-16",)),
    "spreadsheet": (b"PK\x03\x04 xlsx", ("spreadsheet",)),
    "NUL": (HEAD.encode() + b"1,2,y\0es\n", ("Line 2", "NUL")),
    "header only": (HEAD, ("two classes",)),
    "blank": ("\n\n", ("no label column",)),
    "single class": (HEAD + "".join(f"{i},1,no\n" for i in range(20)), ("two classes",)),
    "long label": (HEAD + rows() + f"1,2,{'x' * 300}\n", ("300 characters",)),
}


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_bad_tables(tmp_path: Path, fault: str, refused: Refused) -> None:
    text, words = BAD_TABLES[fault]
    refused(lambda: load_csv(None, table(tmp_path, text), label="bought"), InputError, *words)


def test_tables_that_do_not_belong_together(tmp_path: Path, refused: Refused) -> None:
    train = table(tmp_path, HEAD.replace("age", "Age") + rows(), "train.csv")
    test = table(tmp_path, HEAD + rows(12, 20))
    refused(lambda: load_csv(train, test, label="bought"), InputError, "'Age'", "'age'", "same header")
    refused(lambda: load_csv(test, test, label="bought"), InputError, "12 of the 12")
    refused(lambda: load_csv(None, test, label="bought", class_names=("a", "b")), InputError, "'no'", "class names")
    refused(lambda: load_csv(None, test, label="bought", bounds=Bounds.of(0, 1)), InputError, "outside the bounds")


def test_a_line_of_a_gigabyte_is_not_read(tmp_path: Path, refused: Refused) -> None:
    path = table(tmp_path, HEAD + "1,2")
    with path.open("r+b") as handle:
        handle.truncate(table_module.TABLE_BYTES)  # sparse: NULs up to 1 GiB, and no line end
    refused(lambda: load_csv(None, path, label="bought"), UnsafeInput, "Line 2", "1,048,576")
    with path.open("r+b") as handle:
        handle.truncate(table_module.TABLE_BYTES + 1)
    refused(lambda: load_csv(None, path, label="bought"), InputError, "1,073,741,824")


ANYTHING = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANYTHING
@given(st.text(alphabet=st.sampled_from('0123456789.,-eE"\n\r\t =;naif_\x1b'), max_size=120))
def test_any_table(tmp_path: Path, text: str) -> None:
    with contextlib.suppress(InputError, UnsafeInput):
        load_csv(None, table(tmp_path, "a,b,y\n" + text), label="y")
