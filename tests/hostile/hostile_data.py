"""Records: archives that lie about what is in them, arrays of every type and shape, tables with odd cells."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from hostile_case import UNSAFE, USAGE, Case

from crushproof.targets.data.csv import load_csv
from crushproof.targets.data.declared import Declared
from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.records import Bounds

Arrays = dict[str, Any]


class Canary:
    """What a pickle of it does when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, ("canary",)


def records() -> Arrays:
    x = np.random.default_rng(0).random((60, 4)).astype(np.float32)
    y = np.arange(60) % 3
    return {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:], "y_test": y[30:]}


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def archive(parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as packed:
        for name, content in parts.items():
            packed.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


@cache
def _entries() -> dict[str, bytes]:
    return {f"{name}.npy": npy(one) for name, one in records().items()}


def saved(**changed: Any) -> dict[str, bytes]:
    """The entries of a good file but for some arrays, as they are or ready-made."""
    made = {f"{name}.npy": one if isinstance(one, bytes) else npy(one) for name, one in changed.items()}
    return {**_entries(), **made}


def header(text: str, version: bytes = b"\x01\x00", content: bytes = bytes(96)) -> bytes:
    """A test array whose header says `text`."""
    width = 2 if version == b"\x01\x00" else 4
    return (
        b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text.encode("utf-8", "surrogatepass") + content
    )


def with_shape(shape: str, descr: str = "'<f4'", fortran: str = "False") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n")


HEADERS: dict[str, tuple[bytes, int]] = {
    "no header": (b"\x93NUMPY\x01\x00", UNSAFE),
    "a header of another version": (header("{}", b"\x07\x00"), UNSAFE),
    "a header longer than the file": (b"\x93NUMPY\x01\x00\xff\xff{}", UNSAFE),
    "a header of 4 GiB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", UNSAFE),
    "a program for a header": (header("__import__('os').mkdir('canary')"), UNSAFE),
    "a header that is no mapping": (header("[1, 2]"), UNSAFE),
    "a header without a shape": (header("{'descr': '<f4', 'fortran_order': False}"), UNSAFE),
    "a header nested deep": (header("(" * 5000 + ")" * 5000), UNSAFE),
    "a header of a huge power": (header("9**9**9"), UNSAFE),
    "a header that is no text": (header("\ud800"), UNSAFE),
    "8 TiB": (with_shape("(2**41,)"), UNSAFE),
    "8 TiB written out": (with_shape("(2199023255552,)"), UNSAFE),
    "a negative size": (with_shape("(-24,)"), UNSAFE),
    "two negative sizes": (with_shape("(-4, -6)"), UNSAFE),
    "a size of 5,000 digits": (with_shape(f"({'9' * 5000},)"), UNSAFE),
    "a size that is a fraction": (with_shape("(24.0,)"), UNSAFE),
    "a size that is true": (with_shape("(True, 24)"), UNSAFE),
    "a size that is a text": (with_shape("('24',)"), UNSAFE),
    "a shape that is no tuple": (with_shape("24"), UNSAFE),
    "a shape that is a list": (with_shape("[24]"), UNSAFE),
    "a shape that overflows to nothing": (with_shape("(0, 2147483647, 2147483647, 2147483647, 2147483647)"), UNSAFE),
    "sixty-five axes": (with_shape(f"({'1, ' * 65})"), UNSAFE),
    "fewer bytes than it says": (with_shape("(25,)"), UNSAFE),
    "more bytes than it says": (with_shape("(23,)"), UNSAFE),
    "an order that is none": (with_shape("(24,)", fortran="'C'"), UNSAFE),
    "objects": (with_shape("(12,)", "'|O'"), UNSAFE),
    "objects within": (with_shape("(12,)", "[('a', '|O')]"), UNSAFE),
    "fields": (with_shape("(12,)", "[('a', '<f4'), ('b', '<f4')]"), USAGE),
    "nothing for a type": (with_shape("(24,)", "None"), USAGE),
    "a type of its own": (with_shape("(24,)", "'<f4, <f4'"), USAGE),
    "a void": (with_shape("(24,)", "'|V4'"), USAGE),
    "texts of no length": (with_shape("(24,)", "'<U0'"), USAGE),
    "texts without end": (with_shape("(1,)", "'<U999999999'"), USAGE),
    "dates": (with_shape("(12,)", "'<M8[ns]'"), USAGE),
    "complex numbers": (with_shape("(12,)", "'<c8'"), USAGE),
    "long doubles": (with_shape("(6,)", "'<f16'"), USAGE),
    "a pickle for an array": (pickle.dumps(Canary()), UNSAFE),
    "an empty array file": (b"", UNSAFE),
    "HTML for an array": (b"<html></html>", UNSAFE),
}
X, Y = records()["x_test"], records()["y_test"]


def texts(*words: str) -> Any:
    return np.array(words)


ARRAYS: dict[str, tuple[Arrays, int]] = {
    "objects that are pickled": ({"x_test": np.array([Canary()] * 30, dtype=object)}, UNSAFE),
    "labels that are pickled": ({"y_test": np.array([Canary()] * 30, dtype=object)}, UNSAFE),
    "no records": ({"x_test": X[:0], "y_test": Y[:0]}, USAGE),
    "one record": ({"x_test": X[:1], "y_test": Y[:1]}, USAGE),
    "fewer labels than records": ({"y_test": Y[:7]}, USAGE),
    "records of no values": ({"x_test": X[:, :0], "x_train": X[:, :0]}, USAGE),
    "a single number": ({"x_test": np.float32(1)}, USAGE),
    "numbers without records": ({"x_test": X[:, 0]}, USAGE),
    "other records than members": ({"x_test": X[:, :3]}, USAGE),
    "eight axes": ({"x_test": X.reshape(30, 4, 1, 1, 1, 1, 1, 1)}, USAGE),
    "texts for values": ({"x_test": X.astype(str)}, USAGE),
    "complex values": ({"x_test": X.astype(complex)}, USAGE),
    "dates for values": ({"x_test": X.astype("M8[s]")}, USAGE),
    "NaN": ({"x_test": np.where(X > 0.5, np.nan, X)}, USAGE),
    "infinity": ({"x_test": np.where(X > 0.5, np.inf, X)}, USAGE),
    "values beyond float32": ({"x_test": X.astype(float) * 1e308}, USAGE),
    "whole numbers beyond all": ({"x_test": np.full((30, 4), 2**64 - 1, np.uint64)}, USAGE),
    "the same value everywhere": ({"x_test": X * 0 + 7, "x_train": X * 0 + 7}, USAGE),
    "members among the others": ({"x_test": records()["x_train"]}, USAGE),
    "negative labels": ({"y_test": Y - 1}, USAGE),
    "labels of a million": ({"y_test": Y * 1_000_000}, USAGE),
    "labels beyond all": ({"y_test": (Y + 2.0**63).astype(np.uint64)}, USAGE),
    "labels that are fractions": ({"y_test": Y + 0.5}, USAGE),
    "labels that are NaN": ({"y_test": Y * np.nan}, USAGE),
    "labels that are infinite": ({"y_test": Y + np.inf}, USAGE),
    "labels that are texts": ({"y_test": Y.astype(str)}, USAGE),
    "labels in rows": ({"y_test": np.eye(3)[Y]}, USAGE),
    "labels of several": ({"y_test": np.ones((30, 3))}, USAGE),
    "labels in nine axes": ({"y_test": Y.reshape(30, 1, 1)}, USAGE),
    "one class": ({"y_test": Y * 0, "y_train": Y * 0}, USAGE),
    "two names for three classes": ({"class_names": texts("a", "b")}, USAGE),
    "one name twice": ({"class_names": texts("a", "a", "b")}, USAGE),
    "names in two axes": ({"class_names": texts("a", "b", "c", "d").reshape(2, 2)}, USAGE),
    "names that are pickled": ({"class_names": np.array(["a", "b", Canary()], dtype=object)}, UNSAFE),
    "groups for other records": ({"groups_test": texts("a", "b")}, USAGE),
    "names for other columns": ({"feature_names": texts("a", "b")}, USAGE),
    "one column name twice": ({"feature_names": texts("a", "b", "c", "c")}, USAGE),
    "an array that nobody knows": ({"x_tset": X}, USAGE),
    "an array named as a class": ({"__class__": X}, USAGE),
    "a population": ({"x_population": X}, USAGE),
}
DECLARED: dict[str, tuple[Declared, Any]] = {
    "ids that are fractions": (Declared(tokens=True), None),
    "ids and columns": (Declared(tokens=True, immutable=(0,)), None),
    "a column that is none": (Declared(immutable=(4,)), None),
    "a column before the first": (Declared(immutable=(-1,)), None),
    "a name where there are none": (Declared(integer=("age",)), None),
    "a position of 5,000 digits": (Declared(integer=("9" * 5000,)), None),
    "a stretch without end": (Declared(immutable=("0-999999",)), None),
    "a stretch turned round": (Declared(immutable=("3-0",)), None),
    "a block of fractions": (Declared(one_hot=((0, 1),)), None),
    "a block of one": (Declared(one_hot=((0,),)), None),
    "two blocks of one column": (Declared(one_hot=((0, 1), (1, 2))), None),
    "codes that are fractions": (Declared(categorical={0: "codes"}), None),
    "a column to be written out": (Declared(categorical={0: "one-hot"}), None),
    "bounds turned round": (Declared(), (1, 0)),
    "bounds beyond float32": (Declared(), (0, 1e300)),
    "bounds that leave records out": (Declared(), (0, 0.5)),
    "bounds far too wide": (Declared(), (-1e38, 1e38)),
    "bounds of a column beyond float32": (Declared(), {0: (0.0, 1e300)}),
    "bounds of no column": (Declared(), {9: (0.0, 1.0)}),
}


def archives() -> dict[str, tuple[bytes | Callable[[], bytes], int]]:
    good = archive(saved())
    entries = saved()
    directory = good.index(b"PK\x01\x02")

    def patched(at: int, new: bytes, of: bytes = good) -> bytes:
        return of[:at] + new + of[at + len(new) :]

    def bomb() -> bytes:
        return archive({**entries, "x_train.npy": npy(np.zeros((80_000, 256), np.float32))}, zipfile.ZIP_DEFLATED)

    return {
        "cut off": (good[:-40], UNSAFE),
        "cut in half": (good[: len(good) // 2], UNSAFE),
        "something behind it": (good + b"x", UNSAFE),
        "another archive behind it": (good + good, UNSAFE),
        "a comment": (good[:-2] + b"\x03\x00abc", UNSAFE),
        "something before it": (b"x" * 16 + good, USAGE),
        "a bomb": (bomb, UNSAFE),
        "an entry twice": (archive(entries) and _twice(entries), UNSAFE),
        "names that differ in case": (archive({**entries, "X_TEST.npy": b""}), UNSAFE),
        "a way out": (archive({**entries, "../../canary.npy": npy(X)}), UNSAFE),
        "an absolute path": (archive({**entries, "/tmp/canary.npy": npy(X)}), UNSAFE),
        "a backslash": (archive({**entries, "..\\canary.npy": npy(X)}), UNSAFE),
        "an escape in a name": (archive({**entries, "\x1b[31m.npy": npy(X)}), UNSAFE),
        "a name of a program": (archive({**entries, "code.py": b"import os"}), USAGE),
        "a folder": (archive({**entries, "x/": b""}), USAGE),
        "no entries": (archive({}), USAGE),
        "a password": (patched(6, b"\x01\x00", patched(directory + 8, b"\x01\x00")), UNSAFE),
        "flags that are none": (patched(6, b"\x40\x00", patched(directory + 8, b"\x40\x00")), UNSAFE),
        "bzip2": (archive(entries, zipfile.ZIP_BZIP2), UNSAFE),
        "lzma": (archive(entries, zipfile.ZIP_LZMA), UNSAFE),
        "a method of its own": (patched(8, b"\x63\x00", patched(directory + 10, b"\x63\x00")), UNSAFE),
        "another checksum": (patched(14, b"\0\0\0\0"), UNSAFE),
        "another checksum twice": (patched(14, b"\0\0\0\0", patched(directory + 16, b"\0\0\0\0")), UNSAFE),
        "another size in the directory": (patched(directory + 24, struct.pack("<I", 2**31)), UNSAFE),
        "a size of 4 GiB": (patched(directory + 20, b"\xff" * 8), UNSAFE),
        "another name in the directory": (patched(directory + 46, b"y_train"), UNSAFE),
        "an offset beyond the end": (patched(directory + 42, b"\xff\xff\xff\x7f"), UNSAFE),
        "an entry on top of another": (patched(good.index(b"PK\x01\x02", directory + 4) + 42, b"\0\0\0\0"), UNSAFE),
        "a directory elsewhere": (patched(len(good) - 6, b"\0\0\0\0"), UNSAFE),
        "more entries than there are": (patched(len(good) - 14, b"\xff\xff\xff\xff"), UNSAFE),
        "a single array": (npy(X), USAGE),
        "a pickle": (pickle.dumps(Canary()), UNSAFE),
        "an old pickle": (b"cos\nmkdir\n(S'canary'\ntR.", USAGE),
        "HTML": (b"<html>", USAGE),
        "gzip": (b"\x1f\x8b\x08\0", USAGE),
        "zeros": (bytes(5000), USAGE),
    }


def _twice(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, content in [*entries.items(), ("x_test.npY", npy(X))]:
            packed.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue().replace(b"x_test.npY", b"x_test.npy")


GOOD = "a,b,y\n" + "".join(f"{at / 40},{1 - at / 40},{at % 2}\n" for at in range(40))
TABLES: dict[str, tuple[str | bytes, int]] = {
    "only a header": ("a,b,y\n", USAGE),
    "no header": (GOOD.partition("\n")[2], USAGE),
    "no label": (GOOD.replace(",y\n", ",z\n", 1), USAGE),
    "only labels": ("y\n0\n1\n", USAGE),
    "a column without a name": (GOOD.replace("a,b", ",b", 1), USAGE),
    "two columns of one name": (GOOD.replace("a,b", "a,a", 1), USAGE),
    "a missing cell": (GOOD.replace("0.5,0.5", "0.5,", 1), USAGE),
    "a cell too many": (GOOD.replace("0.5,0.5", "0.5,0.5,0.5", 1), USAGE),
    "a cell too few": (GOOD.replace("0.5,0.5", "0.5", 1), USAGE),
    "a missing label": (GOOD + "0.1,0.2,\n", USAGE),
    "NaN": (GOOD.replace("0.5,", "nan,", 1), USAGE),
    "infinity": (GOOD.replace("0.5,", "inf,", 1), USAGE),
    "beyond all": (GOOD.replace("0.5,", "1e999,", 1), USAGE),
    "beyond float32": (GOOD.replace("0.5,", "1e39,", 1), USAGE),
    "a number of 5,000 digits": (GOOD.replace("0.5,", f"{'9' * 5000},", 1), USAGE),
    "a formula": (GOOD.replace("0.5,", '=HYPERLINK("x"),', 1), USAGE),
    "a formula behind a blank": (GOOD.replace("0.5,", " =1+1,", 1), USAGE),
    "an underscore": (GOOD.replace("0.5,", "1_0,", 1), USAGE),
    "a word": (GOOD.replace("0.5,", "half,", 1), USAGE),
    "names for values": ("a,b,y\n" + "".join(f"n{at},0.5,{at % 2}\n" for at in range(40)), USAGE),
    "semicolons": (GOOD.replace(",", ";"), USAGE),
    "tabs": (GOOD.replace(",", "\t"), USAGE),
    "a quote never closed": (GOOD.replace("0.5,", '"0.5,', 1), USAGE),
    "something behind a quote": (GOOD.replace("0.5,", '"0.5"x,', 1), USAGE),
    "NUL": (GOOD.replace("0.5,", "0\0.5,", 1), USAGE),
    "an escape": (GOOD.replace("0.5,", "\x1b[31m,", 1), USAGE),
    "Latin-1": (GOOD.replace("0.5,", "é,", 1).encode("latin-1"), USAGE),
    "UTF-16": (GOOD.encode("utf-16"), USAGE),
    "half a surrogate pair": (GOOD.replace("0.5,", "\ud800,", 1).encode("utf-8", "surrogatepass"), USAGE),
    "a line of 2 MB": (GOOD + "0.1," * 500_000, UNSAFE),
    "20,000 columns, one name twice": (",".join(f"c{at}" for at in range(19_998)) + ",c0,y\n", USAGE),
    "a header of 30,000 columns": (",".join(f"c{at}" for at in range(30_000)) + ",y\n", USAGE),
    "a cell of 200,000 characters": (GOOD.replace("0.5,", f"{'x' * 200_000},", 1), USAGE),
    "a pickle": (pickle.dumps(Canary()), UNSAFE),
    "a spreadsheet": (b"PK\x03\x04", USAGE),
    "an old spreadsheet": (b"\xd0\xcf\x11\xe0", USAGE),
    "one class": (GOOD.replace(",1\n", ",0\n"), USAGE),
    "a class for each record": ("a,b,y\n" + "".join(f"0.{at},0.5,{at}\n" for at in range(11_000)), USAGE),
    "HTML": ("<html><body>Not found</body></html>", USAGE),
    "JSON": ('{"a": [1, 2]}', USAGE),
    "only line ends": ("\n" * 1000, USAGE),
    "only commas": (",,,,\n,,,,\n", USAGE),
}


def _bounds(given: Any) -> Any:
    return Bounds.of(*given) if isinstance(given, tuple) else given


def npz(
    content: bytes | Callable[[], bytes], declared: Declared | None = None, bounds: Any = None
) -> Callable[[Path], Callable[[], object]]:
    def call(folder: Path) -> Callable[[], object]:
        (folder / "data.npz").write_bytes(content if isinstance(content, bytes) else content())
        return lambda: load_npz(folder / "data.npz", declared=declared, bounds=_bounds(bounds))

    return call


def table(text: str | bytes) -> Callable[[Path], Callable[[], object]]:
    def call(folder: Path) -> Callable[[], object]:
        (folder / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return lambda: load_csv(None, folder / "t.csv", label="y")

    return call


def cases() -> Iterator[Case]:
    for name, (content, code) in HEADERS.items():
        yield Case(f"npz: {name}", npz(partial(archive, saved(x_test=content))), code)
        deflated = partial(archive, saved(y_train=content), zipfile.ZIP_DEFLATED)
        yield Case(f"npz, deflated: {name}", npz(deflated), code)
    for name, (arrays, code) in ARRAYS.items():
        yield Case(f"npz: {name}", npz(lambda arrays=arrays: archive(saved(**arrays))), code)
    for name, (declared, bounds) in DECLARED.items():
        yield Case(f"npz: {name}", npz(archive(saved()), declared=declared, bounds=bounds), USAGE)
    for name, (content, code) in archives().items():
        yield Case(f"npz: {name}", npz(content), code)
    for name, (text, code) in TABLES.items():
        yield Case(f"CSV: {name}", table(text), code)
