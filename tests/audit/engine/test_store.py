"""The store: whole results or none, damage noticed, one run at a time, nothing lost when the disk says no."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crushproof.audit.engine import on_disk
from crushproof.audit.engine.cells import Cell, Result, cell_key
from crushproof.audit.engine.driver import run
from crushproof.audit.engine.store import Store
from crushproof.targets.errors import Incomplete, InputError

KEY = cell_key("a test")


def result() -> Result:
    arrays = {
        "float": np.linspace(0, 1, 7, dtype=np.float32).reshape(7, 1),
        "bool": np.array([True, False]),
        "int": np.arange(6).reshape(2, 3).T,  # not contiguous
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4)),
    }
    return Result(arrays, {"b": [1, None, "\u20ac"], "a": 0.1}, {"model.onnx": b"\x00\x01", "empty.bin": b""})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    Store(tmp_path / "out").put(KEY, result())
    store = Store(tmp_path / "out")
    assert store.has(KEY)
    read, wrote = store.get(KEY), result()
    assert (read.document, read.files) == (wrote.document, wrote.files)
    assert list(read.arrays) != []
    for name, array in wrote.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array)
        assert (read.arrays[name].dtype, read.arrays[name].shape) == (array.dtype, array.shape)
    assert (store.path(KEY) / "files" / "model.onnx").read_bytes() == b"\x00\x01"


def test_equal_results_are_equal_bytes(tmp_path: Path) -> None:
    turned = result()
    turned = Result(dict(reversed(turned.arrays.items())), dict(reversed(turned.document.items())), turned.files)
    Store(tmp_path / "one").put(KEY, result())
    Store(tmp_path / "two").put(KEY, turned)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert Store(tmp_path / "one").evidence(KEY) == Store(tmp_path / "two").evidence(KEY)


def test_what_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has(KEY)
    with pytest.raises(KeyError):
        store.get(KEY)
    with pytest.raises(KeyError):
        store.evidence(KEY)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", ".."])
def test_file_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        Store(tmp_path).put(KEY, Result(files={name: b""}))


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path).put(KEY, Result(document={"x": float("nan")}))
    assert not Store(tmp_path).has(KEY)


@pytest.mark.parametrize("part", ["document.json", "arrays.safetensors", "files/model.onnx", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "nonsense"])
def test_damage_is_noticed_and_thrown_away(tmp_path: Path, part: str, damage: str) -> None:
    store = Store(tmp_path)
    store.put(KEY, result())
    path = store.path(KEY) / part
    raw = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes([raw[0] ^ 1]) + raw[1:], "cut": raw[:-1], "nonsense": b"[1]"}[damage])
    fresh = Store(tmp_path)
    with pytest.raises(Incomplete, match="damaged"):
        fresh.get(KEY)
    assert not fresh.has(KEY)
    assert list(fresh.damaged) == [KEY]
    assert not fresh.path(KEY).exists()
    fresh.put(KEY, result())
    assert Store(tmp_path).has(KEY)


def test_a_manifest_that_points_elsewhere(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, result())
    manifest = store.path(KEY) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "../../../../secret": "0"}))
    assert not Store(tmp_path).has(KEY)


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o755)
    with Store(out) as store:
        store.put(KEY, result())
        store.log("started", Cell("a", KEY))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (out / "evidence").rglob("*")}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes
    assert stat.S_IMODE((out / "evidence").stat().st_mode) == 0o700
    assert stat.S_IMODE(out.stat().st_mode) == 0o755  # the user's own folder is left as it is


def test_a_second_run_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from crushproof.audit.engine.store import Store\n"
        "with Store(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Incomplete, match=rf"process {holder.pid} on .*--out"), Store(tmp_path):
            pass
        Store(tmp_path).put(KEY, result())  # a worker of the other run may still write
    finally:
        holder.kill()
        holder.wait()
    with Store(tmp_path) as store:  # killed: the lock went with it
        assert store.has(KEY)


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put(KEY, result())
        store.log("finished", Cell("a", KEY, phase="p"), seconds=2.0)
    left = tmp_path / "evidence" / "temporary" / "half"
    left.mkdir()
    (left / "document.json").write_text("{")
    journal = tmp_path / "evidence" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"event":"start')
    (tmp_path / "evidence" / "index.sqlite").write_bytes(b"this is no database" * 100)
    with Store(tmp_path) as store:
        assert not left.exists()
        assert store.has(KEY)
        assert store.seconds([KEY]) == {"p": 2.0}  # from the journal: the index was lost
        store.log("started", Cell("b", KEY))
        assert [line["event"] for line in store.journal()] == ["finished", "started"]


def test_the_index_follows_the_files(tmp_path: Path) -> None:
    other = cell_key("other")
    with Store(tmp_path) as store:
        for key, phase in ((KEY, "p"), (other, "q")):
            store.put(key, result())
            store.record(Cell(key, key, phase=phase), 1.5)
        assert store.seconds([KEY, other]) == {"p": 1.5, "q": 1.5}
        store._discard(other)
    with Store(tmp_path) as store:
        assert store.seconds([KEY, other]) == {"p": 1.5}
    with sqlite3.connect(tmp_path / "evidence" / "index.sqlite") as database:
        assert database.execute("SELECT count(*) FROM cells").fetchone() == (1,)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (errno.ENOSPC, Incomplete, "full"),
        (errno.EDQUOT, Incomplete, "full"),
        (errno.EROFS, InputError, "--out"),
        (errno.EACCES, InputError, "--out"),
    ],
)
def test_a_disk_that_says_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], message: str
) -> None:
    store = Store(tmp_path)
    store.put(KEY, result())
    before = tree(tmp_path)
    calls = 0

    def refuse(path: Path, raw: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # in the middle of a result
            raise OSError(code, os.strerror(code), str(path))
        write(path, raw)

    write = on_disk.write_new
    monkeypatch.setattr(on_disk, "write_new", refuse)
    with pytest.raises(error, match=message):
        store.put(cell_key("another"), result())
    assert tree(tmp_path) == before
    assert Store(tmp_path).has(KEY)


def test_an_output_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        Store(tmp_path / "file")
    with pytest.raises(InputError, match="--out"):
        Store(tmp_path / "file" / "below")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(json_values, json_values)
def test_keys_are_equal_exactly_when_their_parts_are(one: object, other: object) -> None:
    assert (cell_key(one) == cell_key(other)) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_what_would_be_another_result_is_not_computed_twice(tmp_path: Path) -> None:
    class Drawn:
        def cells(self) -> list[Cell]:
            return [Cell("drawn", "1" * 64, once=True), Cell("after", "2" * 64, ("drawn",))]

        def compute(self, cell: Cell, store: Store) -> Result:
            return Result()

    with Store(tmp_path) as store:
        assert run(Drawn(), store).computed == ["drawn", "after"]
        assert run(Drawn(), store).computed == []
        store.drop("1" * 64)
        with pytest.raises(Incomplete, match="drawn is gone or was damaged, and computed again it would be another"):
            run(Drawn(), store)
