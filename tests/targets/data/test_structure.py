"""What the values of a record are: declared by name or position, checked on the records, kept in the digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crushproof.audit.plan.plan import validated
from crushproof.audit.plan.sections import CsvData, NpzData
from crushproof.audit.plan.yaml_text import Source
from crushproof.targets.data.csv import load_csv
from crushproof.targets.data.data import Data
from crushproof.targets.data.declared import Declared
from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import InputError

Refused = Callable[..., str]


def table(folder: Path, text: str, name: str = "test.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


CITIES = ("Oslo", "?", "Bern", "", " Rome ")


def people(n: int, start: int = 0) -> str:
    """age (whole), height (fractions), city (text), plan (codes as numbers), bought."""
    lines = [
        f"{20 + i % 50},{1.5 + (i * 37 % 40) / 100},{CITIES[i % 5]},{i % 3},{'no' if i % 2 else 'yes'}"
        for i in range(start, start + n)
    ]
    return "age,height,city,plan,bought\n" + "\n".join(lines) + "\n"


def test_a_table_with_text_runs_as_it_is(tmp_path: Path) -> None:
    """The same columns as pandas makes of it: numbers first, then sorted 0/1 blocks; missing texts are categories."""
    train, test = table(tmp_path, people(60), "train.csv"), table(tmp_path, people(40, 61))
    data = load_csv(train, test, label="bought")
    names = ["age", "height", "plan", "city=(empty)", "city=?", "city=Bern", "city=Oslo", "city=Rome"]
    assert list(data.structure.names) == names
    assert data.structure.one_hot == ((3, 4, 5, 6, 7),)
    assert [(one.column, one.categories) for one in data.structure.encoded] == [
        ("city", ("(empty)", "?", "Bern", "Oslo", "Rome"))
    ]
    assert data.members is not None
    assert data.members.x[4].tolist() == pytest.approx([24, 1.5 + 0.28, 1, 0, 0, 0, 0, 1])
    assert data.members.x[3, 3:].tolist() == [1, 0, 0, 0, 0]
    assert data.bounds.held is not None
    assert data.bounds.held.tolist() == [False] * 3 + [True] * 5
    assert any("'city'" in note and "8 features" in note for note in data.notes)
    assert "3 of 8 columns are a guess" in data.bounds_doubt


def test_what_is_declared_of_a_table(tmp_path: Path) -> None:
    train, test = table(tmp_path, people(60), "train.csv"), table(tmp_path, people(40, 61))
    order = ("Rome", "Oslo", "Bern", "?", "(empty)")
    declared = Declared(("age", "city"), {"city": order, "plan": "one-hot"}, (), ("age",))
    data = load_csv(train, test, label="bought", declared=declared, bounds={"height": (1, 2)}, drop=("plan",)[:0])
    assert data.structure.names[2:5] == ("city=Rome", "city=Oslo", "city=Bern")
    assert data.structure.names[7:] == ("plan=0", "plan=1", "plan=2")
    assert data.structure.immutable == (0, 2, 3, 4, 5, 6)
    assert data.structure.held == (0, *range(2, 10))
    assert (data.bounds.low[1], data.bounds.high[1], data.bounds_doubt) == (1, 2, "")  # age is held: its range is sure
    assert data.bounds.whole is None  # age, the only whole number, stays as it is
    codes = load_csv(train, test, label="bought", declared=Declared(categorical={"plan": "codes"}), drop=["city"])
    assert (codes.structure.names, codes.structure.codes) == (("age", "height", "plan"), (2,))
    assert len({data.digest, codes.digest, load_csv(train, test, label="bought", drop=["city"]).digest}) == 3


def test_a_category_of_the_test_table_alone_is_a_feature_and_is_named(tmp_path: Path) -> None:
    train = table(tmp_path, people(60).replace("Bern", "Oslo"), "train.csv")
    data = load_csv(train, table(tmp_path, people(40, 61)), label="bought")
    assert "city=Bern" in data.structure.names
    assert any("'Bern' in the test table only" in note for note in data.notes)
    ids = [f"{i},id-{i},{'ab'[i % 2]}" for i in range(30)]
    wide = table(tmp_path, "x,who,y\n" + "\n".join(ids) + "\n", "wide.csv")
    with pytest.raises(InputError, match=r"'who' holds 30 different texts in 30 records.*drop: \[who\]"):
        load_csv(None, wide, label="y")
    assert load_csv(None, wide, label="y", drop=["who"]).shape == (1,)
    assert load_csv(None, wide, label="y", declared=Declared(categorical={"who": "one-hot"})).shape == (31,)


def arrays(folder: Path, **changes: Any) -> Path:
    """60 + 40 records of a fraction, a count, a block of three, a code."""
    stream = np.random.default_rng(0)

    def split(n: int) -> np.ndarray[Any, Any]:
        block = np.eye(3)[stream.integers(0, 3, n)]
        return np.c_[stream.random(n), stream.integers(0, 90, n), block, stream.integers(0, 5, n)].astype(np.float32)

    content = {f"x_{part}": split(n) for part, n in (("train", 60), ("test", 40))}
    content |= {f"y_{part}": np.arange(n) % 2 for part, n in (("train", 60), ("test", 40))}
    path = folder / "data.npz"
    np.savez(path, **{**content, **changes})
    return path


NAMES = np.array(["rate", "count", "red", "green", "blue", "shop"])


def test_columns_by_name_and_by_position_are_the_same(tmp_path: Path) -> None:
    by_position = Declared((0,), {5: "codes"}, (("2-4",),), (1,))
    by_name = Declared(("rate",), {"shop": "codes"}, (("red", "green", 4),), ("count",))
    positions = load_npz(arrays(tmp_path), declared=by_position)
    names = load_npz(arrays(tmp_path, feature_names=NAMES), declared=by_name)
    assert replace(names.structure, names=()) == positions.structure
    assert positions.structure == Structure((), (0,), ((2, 3, 4),), (5,), (1,))
    assert positions.bounds.high.tolist()[1:5] == [float(positions.bounds.high[1]), 1, 1, 1]  # each column its own
    assert positions.bounds.whole is not None
    assert positions.bounds.whole.tolist() == [False, True, False, False, False, False]


FAULTS: dict[str, tuple[Declared, tuple[str, ...]]] = {
    "unknown name": (Declared(("rat",)), ("immutable", "'rat'", "Did you mean 'rate'?")),
    "beyond the last": (Declared(integer=(6,)), ("integer", "'6'", "Known")),
    "two meanings": (Declared(one_hot=((2, 3, 4),), integer=(4,)), ("'blue'", "declared twice")),
    "two blocks": (Declared(one_hot=((2, 3), (3, 4))), ("'green'", "declared twice")),
    "fractions": (Declared(integer=("rate",)), ("'rate'", "as integer", "in record 0")),
    "codes with fractions": (Declared(categorical={"rate": "codes"}), ("'rate'", "as categorical")),
    "not written out": (Declared(categorical={"shop": "one-hot"}), ("'shop'", "codes")),
    "block with a count": (Declared(one_hot=((1, 2, 3),)), ("'count' to 'green'", "holds 0 and 1 only")),
    "block of one": (Declared(one_hot=((2,),)), ("list of lists",)),
    "tokens with fractions": (Declared(tokens=True), ("are ids", "in record 0")),
    "tokens and columns": (Declared(immutable=(0,), tokens=True), ("Keep one of the two",)),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_not_so_is_refused(tmp_path: Path, case: str, refused: Refused) -> None:
    declared, words = FAULTS[case]
    refused(lambda: load_npz(arrays(tmp_path, feature_names=NAMES), declared=declared), InputError, *words)


def test_a_block_with_two_ones_names_the_record(refused: Refused) -> None:
    x = torch.cat([torch.eye(3)[torch.arange(30) % 3], torch.arange(30)[:, None] / 29], 1)
    y = torch.arange(30) % 2
    block = Structure(one_hot=((0, 1, 2),))
    assert Data("d", None, Records(x, y), Bounds.of(0, 1), ("a", "b"), structure=block).structure == block
    x[7, :2] = 1
    data = [x, x * torch.tensor([1.0, 1.0, 0.0, 1.0])]
    refused(
        lambda: Data("d", None, Records(data[0], y), Bounds.of(0, 1), ("a", "b"), structure=block),
        InputError,
        "2 ones in record 7 of the test records (1 such records)",
    )
    dropped = data[1].clone()
    dropped[7, :3] = 0
    noted = Data("d", None, Records(dropped, y), Bounds.of(0, 1), ("a", "b"), structure=block)
    assert any("have no 1 in the one-hot block" in note for note in noted.notes)


def test_ids_of_any_shape_are_tokens(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 40_000, (100, 7))
    path = arrays(tmp_path, x_train=ids[:60], x_test=ids[60:])
    data = load_npz(path, declared=Declared(tokens=True))
    assert data.bounds.held is not None
    assert bool(data.bounds.held.all())
    assert data.bounds_doubt == ""


def test_a_plan_declares_it() -> None:
    def csv(**keys: Any) -> Declared:
        raw = {"kind": "csv", "test_path": "t.csv", "label": "y", **keys}
        return validated(CsvData, raw, Source("plan")).declared

    assert csv(categorical=["a", "b"]).categorical == {"a": "one-hot", "b": "one-hot"}
    assert csv(categorical={"a": None, "b": [2, 1], "c": "codes"}).categorical == {
        "a": "one-hot",
        "b": ("2", "1"),
        "c": "codes",
    }
    assert csv(one_hot=[3, 4]).one_hot == ((3, 4),)
    assert csv(one_hot=["3-5", "6-9"]).one_hot == (("3-5",), ("6-9",))
    assert csv(immutable="sex").immutable == ("sex",)
    for keys, words in (
        ({"imutable": ["sex"]}, "did you mean 'immutable'"),
        ({"immutable": [1.5]}, "list of columns"),
        ({"one_hot": True}, "list of lists"),
        ({"categorical": {"a": "onehot"}}, "one-hot, codes, or a list"),
        ({"bounds": {"age": [90, 17]}}, "smallest and the largest"),
    ):
        with pytest.raises(InputError, match=words):
            csv(**keys)
    npz = validated(NpzData, {"kind": "npz", "path": "d.npz", "bounds": {0: [0, 9.5]}}, Source("plan"))
    assert npz.bounds == {0: (0, 9.5)}
