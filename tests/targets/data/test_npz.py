"""`.npz` data: what is accepted becomes the right records; what is broken or crafted is refused, and nothing runs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crushproof.targets.data.csv import load_csv
from crushproof.targets.data.data import Data
from crushproof.targets.data.npy import parse_npy
from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.records import Bounds
from crushproof.targets.errors import InputError, UnsafeInput

Refused = Callable[..., str]
RNG = np.random.default_rng(0)
N = 40


def arrays(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "x_train": RNG.random((N, 4, 4)),
        "y_train": np.arange(N) % 3,
        "x_test": RNG.random((N, 4, 4)),
        "y_test": np.arange(N) % 3,
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "data.npz", **arrays(**changes))
    return folder / "data.npz"


# Accepted -------------------------------------------------------------------------------------------------------------


def test_an_npz_becomes_members_and_non_members(tmp_path: Path) -> None:
    original = arrays()
    np.savez_compressed(tmp_path / "mine.npz", **original, class_names=np.array(["α", "b", "c"]))
    data = load_npz(tmp_path / "mine.npz")
    assert data.members is not None
    assert (data.name, data.shape, data.class_names) == ("mine", (1, 4, 4), ("α", "b", "c"))
    assert (data.members.x[:, 0].numpy() == original["x_train"].astype(np.float32)).all()
    assert (data.non_members.x[:, 0].numpy() == original["x_test"].astype(np.float32)).all()
    assert data.non_members.y.tolist() == original["y_test"].tolist()
    assert (float(data.bounds.low), float(data.bounds.high)) == (0, 1)


def test_a_test_set_alone_is_enough(tmp_path: Path) -> None:
    data = load_npz(saved(tmp_path, x_train=None, y_train=None), name="only", seed=3)
    assert (data.members, data.name, data.seed) == (None, "only", 3)


@pytest.mark.parametrize("dtype", ["u1", ">i4", "<i8", "f2", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_plain_type_and_order_is_read_as_numpy_does(tmp_path: Path, dtype: str, order: Any) -> None:
    x = np.asarray(RNG.integers(0, 2, (N, 6)), dtype=dtype, order=order)
    data = load_npz(saved(tmp_path, x_train=None, y_train=None, x_test=x, y_test=(np.arange(N) % 3).astype(">u2")))
    assert (data.non_members.x.numpy() == x.astype(np.float32)).all()
    assert data.non_members.x.is_contiguous()


def test_pixels_keep_their_units_and_channels_come_first(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (N, 8, 6, 3), dtype=np.uint8)
    data = load_npz(saved(tmp_path, x_train=None, y_train=None, x_test=x, y_test=(np.arange(N) % 3)[:, None]))
    assert data.shape == (3, 8, 6)
    assert (float(data.bounds.low), float(data.bounds.high)) == (0, 255)
    assert (data.non_members.x[5, 2].numpy() == x[5, :, :, 2]).all()
    assert sorted(note.split()[1] for note in data.notes) == ["images", "values"]


def _images(low: int, high: int, dtype: str, reached: float) -> np.ndarray[Any, Any]:
    """Whole numbers [n, 4, 4]; `reached`: the share of images that hold both ends, the first one always."""
    x = np.random.default_rng(1).integers(min(low + 1, 0) if high - low < 3 else low + 1, high, (N, 4, 4))
    if high - low < 3:  # too few between the ends to tell images apart
        x[:, 2:] = high * np.random.default_rng(1).integers(0, 2, (N, 2, 4))
    x[: max(1, int(reached * N)), 0, :2] = low, high
    return x.astype(dtype)


GRIDS: dict[str, tuple[np.ndarray[Any, Any], tuple[float, float], bool]] = {  # values, bounds, whether a guess
    "binary": (_images(0, 1, "i8", 0.5), (0, 1), False),
    "0..16": (_images(0, 16, "i8", 0.9), (0, 16), False),
    "0..16 as floats": (_images(0, 16, "f8", 0.9), (0, 16), False),
    "0..16 in 8 bits": (_images(0, 16, "u1", 0.9), (0, 16), False),
    "percent": (_images(0, 100, "i4", 0.2), (0, 100), False),
    "8 bits": (_images(0, 255, "u1", 0.1), (0, 255), False),
    "8 bits without white": (_images(0, 235, "i8", 0.1), (0, 255), False),
    "8 bits, dark": (_images(0, 100, "u1", 0), (0, 255), True),
    "whole numbers, dark": (_images(0, 100, "i8", 0), (0, 100), True),
    "12 bits": (_images(0, 4090, "u2", 0), (0, 4095), False),
    "12 bits, dark": (_images(0, 1500, "u2", 0), (0, 1500), True),
    "16 bits": (_images(0, 65535, "u2", 0), (0, 65535), False),
    "signs": (_images(-1, 1, "i1", 0.5), (-1, 1), False),
    "signed bytes": (_images(-128, 127, "i1", 0), (-128, 127), False),
    "signed bytes of a dark image": (_images(-128, 10, "i8", 0), (-128, 127), False),
    "signed bytes, narrow": (_images(-50, 60, "i1", 0), (-128, 127), True),
    "a scanner's 16 bits": (_images(-1024, 3071, "i2", 0), (-1024, 3071), True),
    "a scanner's 16 bits, one bright record": (_images(-1024, 31000, "i2", 0), (-1024, 31000), True),
    "sound": (_images(-32000, 20000, "i2", 0), (-32768, 32767), False),
    "symmetrical": (_images(-8, 8, "i8", 0.9), (-8, 8), False),
    "fractions of both signs": (_images(-1, 1, "f4", 0.5) / 2, (-0.5, 0.5), False),
    "fractions, dark": (_images(0, 60, "f4", 0) / 255, (0, 1), True),
    "columns of other ranges": (np.hstack([_images(0, 1, "i8", 1).reshape(N, 16), np.full((N, 1), 99)]), (0, 99), True),
}


@pytest.mark.parametrize("name", GRIDS)
def test_bounds_fit_the_grid_of_the_values(name: str, tmp_path: Path) -> None:
    x, bounds, guessed = GRIDS[name]
    data = load_npz(saved(tmp_path, x_train=None, y_train=None, x_test=x))
    assert (float(data.bounds.low), float(data.bounds.high)) == bounds
    assert bool(data.bounds_doubt) is guessed
    assert (data.bounds_doubt in data.notes) is guessed
    given = load_npz(saved(tmp_path, x_train=None, y_train=None, x_test=x), bounds=Bounds.of(*bounds))
    assert given.bounds_doubt == ""


@pytest.mark.parametrize("x", [_images(-300, 900, "i8", 0), _images(0, 90_000, "i8", 0)])
def test_bounds_that_no_grid_tells_are_asked_for(x: np.ndarray[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be guessed.*smallest and largest"):
        load_npz(saved(tmp_path, x_train=None, y_train=None, x_test=x))


def test_channels_first_stays(tmp_path: Path) -> None:
    x = RNG.random((N, 3, 8, 4))
    assert load_npz(saved(tmp_path, x_train=None, y_train=None, x_test=x)).shape == (3, 8, 4)


def test_groups_and_given_bounds_and_names(tmp_path: Path) -> None:
    groups = np.array(["old", "young"] * (N // 2))
    x = RNG.random((N, 5)) * 4 - 2
    path = saved(tmp_path, x_train=None, y_train=None, x_test=x, groups_test=groups)
    data = load_npz(path, bounds=Bounds.of(-2, 2), class_names=("x", "y", "z", "w"))
    assert data.groups == tuple(groups.tolist())
    assert data.classes == 4


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to(saved(tmp_path))
    assert load_npz(tmp_path / "link.npz").name == "link"


# Honest mistakes ------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "misspelt key": ({"y_tset": np.zeros(3)}, ("'y_tset'", "Did you mean 'y_test'?")),
    "no labels": ({"y_train": None}, ("lacks y_train",)),
    "no test records": ({"x_test": None, "y_test": None}, ("lacks x_test and y_test",)),
    "one-hot": ({"y_test": np.eye(3)[np.arange(N) % 3]}, ("one-hot", "argmax")),
    "one-hot of floats": ({"y_test": np.eye(3, dtype="f4")[np.arange(N) % 3]}, ("one-hot", "argmax")),
    "several labels": ({"y_test": RNG.integers(0, 2, (N, 5))}, ("Multi-label data is not supported",)),
    "no or one label": ({"y_test": np.eye(4)[np.arange(N) % 4, :3]}, ("10 records", "Multi-label")),
    "probabilities": ({"y_test": RNG.dirichlet(np.ones(3), N)}, ("probabilities", "argmax")),
    "rows of numbers": ({"y_test": RNG.integers(0, 9, (N, 2))}, ("several numbers", "regression")),
    "fractions": ({"y_test": np.arange(N) % 3 + 0.5}, ("first 0.5 in record 0", "regression")),
    "a NaN label": ({"y_test": np.where(np.arange(N) == 7, np.nan, 1.0)}, ("1 NaN", "record 7")),
    "labels as floats": ({"y_test": np.arange(N) % 3 / 1.0}, ("float64", "astype('int64')")),
    "labels as text": ({"y_test": np.array(["a"] * N)}, ("y_test", "holds texts")),
    "a label of 2^63": ({"y_test": np.full(N, 2**63, np.uint64)}, ("9223372036854775808",)),
    "negative label": ({"y_test": np.arange(N) % 3 - 1}, ("-1",)),
    "single class": ({"y_test": np.zeros(N, int)}, ("single-class",)),
    "empty split": ({"x_test": np.zeros((0, 4, 4)), "y_test": np.zeros(0, int)}, ("empty",)),
    "NaN": ({"x_test": np.full((N, 4, 4), np.nan)}, ("NaN",)),
    "beyond float32": ({"x_test": np.full((N, 4, 4), 1e300)}, ("1e+300", "bounds")),
    "unknown bounds": ({"x_test": RNG.random((N, 4, 4)) * 9}, ("bounds", "cannot be guessed")),
    "signed whole numbers": ({"x_test": RNG.integers(-9, 9, (N, 4, 4)), "x_train": None, "y_train": None}, ("-9",)),
    "other shape": ({"x_train": RNG.random((N, 5, 5))}, ("[1, 5, 5]",)),
    "one value per record": ({"x_test": RNG.random(N)}, ("[40]",)),
    "text as inputs": ({"x_test": np.array([["a"]] * N)}, ("x_test", "<U1")),
    "complex": ({"x_test": np.zeros((N, 2), complex)}, ("c16",)),
    "structured": ({"x_test": np.zeros(N, [("a", "f4")])}, ("'a'",)),
    "long double": ({"x_test": np.zeros((N, 2), np.longdouble)}, ("f16",)),
    "too few names": ({"class_names": np.array(["a", "b"])}, ("0 to 1",)),
    "names in a square": ({"class_names": np.array([["a"], ["b"]])}, ("class_names", "one row")),
    "surrogate": ({"class_names": np.array(["a", "b", "\ud800"])}, ("\\ud800",)),
    "groups": ({"groups_test": np.array(["a"])}, ("1 group names for 40",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_honest_mistakes(tmp_path: Path, mistake: str, refused: Refused) -> None:
    changes, words = MISTAKES[mistake]
    refused(lambda: load_npz(saved(tmp_path, **changes)), InputError, *words)


def test_members_among_the_non_members(tmp_path: Path, refused: Refused) -> None:
    x = RNG.random((N, 4, 4))
    refused(lambda: load_npz(saved(tmp_path, x_train=x, x_test=x)), InputError, "40 of the 40")


@pytest.mark.parametrize("load", [load_npz, lambda path: load_csv(None, path, label="y")], ids=["npz", "csv"])
def test_paths_that_are_no_files(tmp_path: Path, load: Callable[[Path], Data], refused: Refused) -> None:
    (tmp_path / "data.npz").write_bytes(b"")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: load(tmp_path / "data.npy"), InputError, "does not exist", "Did you mean 'data.npz'?")
    refused(lambda: load(tmp_path / "no" / "folder"), InputError, "does not exist")
    refused(lambda: load(tmp_path / "broken"), InputError, "link to", "gone")
    refused(lambda: load(tmp_path), InputError, "is a folder")
    refused(lambda: load(tmp_path / "pipe"), InputError, "pipe")
    refused(lambda: load(Path("/dev/zero")), InputError, "device")
    refused(lambda: load(tmp_path / "data.npz"), InputError, "0 bytes")
    refused(lambda: load(tmp_path / "a\0b"), InputError, "null byte")
    refused(lambda: load(tmp_path / ("a" * 5000)), InputError, "too long")


# Crafted archives -----------------------------------------------------------------------------------------------------


def npy(header: str | dict[str, Any], body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header if isinstance(header, str) else repr(header)
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode() + body


def header(shape: Any, descr: Any = "<f4") -> dict[str, Any]:
    return {"descr": descr, "fortran_order": False, "shape": shape}


def archive(x_test: bytes, method: int = zipfile.ZIP_STORED, name: str = "x_test.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as writer:
        writer.writestr(name, x_test)
        writer.writestr("y_test.npy", npy(header((N,), "|u1"), bytes(i % 3 for i in range(N))))
    return stream.getvalue()


GOOD = npy(header((N, 2)), RNG.random((N, 2), dtype=np.float32).tobytes())


def load_bytes(folder: Path, content: bytes) -> Data:
    (folder / "crafted.npz").write_bytes(content)
    return load_npz(folder / "crafted.npz")


def test_the_builder_of_crafted_archives_builds_a_good_one(tmp_path: Path) -> None:
    assert load_bytes(tmp_path, archive(GOOD)).shape == (2,)
    assert load_bytes(tmp_path, archive(GOOD, zipfile.ZIP_DEFLATED)).shape == (2,)


BAD_ARRAYS = {
    "8 TiB": npy(header((2**20, 2**21)), b"1234"),
    "a shape beyond 64 bits": npy(header((2**30, 2**30, 2**30)), b"1234"),
    "negative shape": npy(header((-1, 2)), b"12345678"),
    "two negatives": npy(header((-2, -2)), bytes(16)),
    "empty, with a huge side": npy(header((0, 2**30, 2**30, 2**30))),
    "thirty dimensions": npy(header((1,) * 30), b"1234"),
    "shape of text": npy(header("12"), b"12"),
    "shape of booleans": npy(header((True, True)), b"1234"),
    "cut short": GOOD[:-3],
    "trailing bytes": GOOD + b"!",
    "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "header beyond the end": npy(header((1,)))[:40],
    "version 9": npy(header((1,)), b"1234", b"\x09\x00"),
    "not a literal": npy("__import__('os').mkdir('marker')", b"1234"),
    "nested 4,000 deep": npy("[" * 4000 + "]" * 4000),
    "a number of 5,000 digits": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}"),
    "missing key": npy("{'descr': '<f4'}"),
    "a list": npy("[1, 2]"),
    "not UTF-8": npy("x").replace(b"x", b"\xff"),
    "order of text": npy("{'descr': '<f4', 'fortran_order': 'yes', 'shape': (1,)}", b"1234"),
    "empty array file": b"",
    "text": b"hello",
}


@pytest.mark.parametrize("fault", BAD_ARRAYS)
def test_malformed_arrays(tmp_path: Path, fault: str, refused: Refused) -> None:
    refused(lambda: load_bytes(tmp_path, archive(BAD_ARRAYS[fault])), UnsafeInput, "x_test.npy")


def patched(content: bytes, at: bytes, offset: int, value: bytes, every: bool = False) -> bytes:
    """`content` with `value` written `offset` behind each occurrence (or only the first) of `at`."""
    result, position = bytearray(content), -1
    while (position := content.find(at, position + 1)) >= 0:
        result[position + offset : position + offset + len(value)] = value
        if not every:
            break
    return bytes(result)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def renamed(name: str) -> bytes:
    stand_in = "z" * len(name.encode())
    return archive(GOOD, name=stand_in).replace(stand_in.encode(), name.encode())


def twice() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as writer:
        for name in ("x_test.npy", "x_tesT.npy"):
            writer.writestr(name, GOOD)
    return stream.getvalue().replace(b"x_tesT", b"x_test")


def overlapping() -> bytes:
    """Both directory entries point at the first entry's bytes."""
    content = archive(GOOD)
    second = content.rfind(CENTRAL)
    return content[: second + 42] + bytes(4) + content[second + 46 :]


BAD_ARCHIVES = {
    "password": (lambda: patched(patched(archive(GOOD), LOCAL, 6, b"\x01"), CENTRAL, 8, b"\x01"), "password"),
    "password in the directory only": (lambda: patched(archive(GOOD), CENTRAL, 8, b"\x01", every=True), "password"),
    "flag bits": (lambda: patched(archive(GOOD), CENTRAL, 8, b"\x20"), "flags"),
    "flags differ": (lambda: patched(archive(GOOD), LOCAL, 6, b"\x02"), "differs"),
    "method differs": (lambda: patched(archive(GOOD), LOCAL, 8, b"\x08"), "differs"),
    "unknown method": (lambda: patched(archive(GOOD), CENTRAL, 10, b"\x63", every=True), "compression method"),
    "local size differs": (lambda: patched(archive(GOOD), LOCAL, 22, b"\x01\x00\x00\x00"), "differs"),
    "directory sizes differ": (lambda: patched(archive(GOOD), CENTRAL, 24, b"\x01\x00\x00\x00"), "sizes"),
    "local name differs": (lambda: patched(archive(GOOD), LOCAL, 30, b"q"), "differs"),
    "wrong checksum": (lambda: archive(GOOD).replace(GOOD, GOOD[:-1] + b"~"), "damaged"),
    "directory offset": (lambda: patched(archive(GOOD), END, 16, b"\xff\xff\xff\x7f"), "zip"),
    "directory size": (lambda: patched(archive(GOOD), END, 12, b"\xff\xff\xff\x7f"), "zip"),
    "entry offset": (lambda: patched(archive(GOOD), CENTRAL, 42, b"\x05\x00\x00\x00"), "gap"),
    "overlapping entries": (overlapping, "overlaps"),
    "two entries of one name": (twice, "two entries"),
    "two entries that differ in case": (lambda: twice().replace(b"x_test", b"x_tesT", 1), "zip"),
    "a comment": (lambda: archive(GOOD)[:-2] + b"\x03\x00abc", "comment"),
    "bytes behind": (lambda: archive(GOOD) + b"!", "zip"),
    "bytes inside": (lambda: archive(GOOD).replace(CENTRAL, bytes(64) + CENTRAL, 1), "zip"),
    "cut short": (lambda: archive(GOOD)[:-40], "zip"),
    "parent folder": (lambda: renamed("../../x_test.npy"), "leads out"),
    "absolute": (lambda: renamed("/x_test.npy"), "leads out"),
    "backslash": (lambda: renamed("..\\x_test.npy"), "leads out"),
    "NUL": (lambda: renamed("x_test.npy\0.txt"), "control"),
    "escape": (lambda: renamed("\x1b[31mx.npy"), "control"),
    "bad deflate": (lambda: patched(archive(GOOD, zipfile.ZIP_DEFLATED), b"x_test.npy", 14, b"\xff" * 20), "damaged"),
}


@pytest.mark.parametrize("fault", BAD_ARCHIVES)
def test_tampered_archives(tmp_path: Path, fault: str, refused: Refused) -> None:
    build, word = BAD_ARCHIVES[fault]
    refused(lambda: load_bytes(tmp_path, build()), UnsafeInput, word)


def bomb(blocks: int, declared: int | None = None) -> bytes:
    """An npz whose entries unpack to `blocks` MiB of zeros each, from 1 KiB a block; `declared` is the size claimed."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    packed = block * blocks + b"\x03\x00"  # an empty last block
    size = blocks * 2**20 if declared is None else declared
    data, directory = b"", b""
    for name in (b"x_test.npy", b"y_test.npy"):
        fields = (0, 8, 0, 0, 0, len(packed), size, len(name), 0)
        directory += struct.pack("<4s6H3I5H2I", CENTRAL, 20, 20, *fields, 0, 0, 0, 0, len(data)) + name
        data += struct.pack("<4s5H3I2H", LOCAL, 20, *fields) + name + packed
    return data + directory + struct.pack("<4s4H2IH", END, 0, 0, 2, 2, len(directory), len(data), 0)


@pytest.mark.parametrize(("declared", "word"), [(None, "zip bomb"), (2**20, "damaged"), (2**32 - 2, "zip bomb")])
def test_bombs_are_not_unpacked(tmp_path: Path, declared: int | None, word: str, refused: Refused) -> None:
    content = bomb(2048, declared)
    assert len(content) < 6 * 2**20
    refused(lambda: load_bytes(tmp_path, content), UnsafeInput, word)


def test_sparse_but_honest_arrays_are_no_bomb(tmp_path: Path) -> None:
    x = np.zeros((N, 1000))
    x[np.arange(N), np.arange(N)] = 1
    np.savez_compressed(tmp_path / "sparse.npz", x_test=x, y_test=np.arange(N) % 3)
    assert load_npz(tmp_path / "sparse.npz").shape == (1000,)


# Pickles --------------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_the_payload_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv"])
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_never_runs_whatever_its_suffix(tmp_path: Path, suffix: str, protocol: int, refused: Refused) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "marker"), protocol))
    for load in (load_npz, lambda path: load_csv(None, path, label="y")):
        refused(lambda load=load: load(path), UnsafeInput if protocol >= 2 else InputError)
    assert not (tmp_path / "marker").exists()


def test_object_arrays_never_run(tmp_path: Path, refused: Refused) -> None:
    marker = tmp_path / "marker"
    objects = np.empty(N, object)
    objects[:] = [Payload(marker)] * N
    refused(lambda: load_npz(saved(tmp_path, y_test=objects)), UnsafeInput, "y_test", "pickled", "astype")
    structured = npy(header((1,), [("a", "|O")]), pickle.dumps(Payload(marker)))
    refused(lambda: load_bytes(tmp_path, archive(structured)), UnsafeInput, "pickled")
    refused(lambda: load_bytes(tmp_path, archive(pickle.dumps(Payload(marker)))), UnsafeInput, "but a pickle")
    assert not marker.exists()


def test_other_formats_are_named(tmp_path: Path, refused: Refused) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    refused(lambda: load_npz(tmp_path / "one.npy"), InputError, "single numpy array", "numpy.savez")
    (tmp_path / "notes.npz").write_text("hello world")
    refused(lambda: load_npz(tmp_path / "notes.npz"), InputError, "not an npz")
    with zipfile.ZipFile(tmp_path / "docs.npz", "w") as writer:
        writer.writestr("a.txt", "hello")
    refused(lambda: load_npz(tmp_path / "docs.npz"), InputError, "'a.txt'")


# Anything at all ------------------------------------------------------------------------------------------------------

ANYTHING = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def survives(call: Callable[[], object]) -> None:
    with contextlib.suppress(InputError, UnsafeInput):
        call()


@ANYTHING
@given(st.binary(min_size=1, max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x02"]))
def test_random_bytes_as_data(tmp_path: Path, content: bytes, start: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(start + content)
    survives(lambda: load_npz(path))
    survives(lambda: load_csv(None, path, label="y"))
    survives(lambda: parse_npy(start + content, "it"))


COMPRESSED, STORED = archive(GOOD, zipfile.ZIP_DEFLATED), archive(GOOD)


@ANYTHING
@given(
    st.sampled_from([COMPRESSED, STORED]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)
)
def test_mutated_archives(tmp_path: Path, content: bytes, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(content)
    for position, value in changes:
        # half of the changes hit the structure (the last 300 bytes and the first 150), where the faults are
        place = position % len(mutated) if position % 2 else (position // 2 % 450 - 300) % len(mutated)
        mutated[place] = value
    survives(lambda: load_bytes(tmp_path, bytes(mutated)))


def test_what_is_read_is_what_numpy_reads(tmp_path: Path) -> None:
    """numpy.load as the oracle, on what `numpy.savez` and `savez_compressed` write."""
    for save in (np.savez, np.savez_compressed):
        x = RNG.standard_normal((N, 7)).astype(np.float32)
        save(tmp_path / "a.npz", x_test=x, y_test=np.arange(N) % 3)
        data = load_npz(tmp_path / "a.npz", bounds=Bounds.of(-9, 9))
        with np.load(tmp_path / "a.npz", allow_pickle=False) as oracle:
            assert torch.equal(data.non_members.x, torch.from_numpy(oracle["x_test"]))
