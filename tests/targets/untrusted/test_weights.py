"""Weight files: what is sound is loaded exactly; what is broken or crafted is refused, and nothing in it runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile_child import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import crushproof
from crushproof.targets.errors import CrushproofError, Incomplete, InputError, UnsafeInput
from crushproof.targets.untrusted import sandbox, weights
from crushproof.targets.untrusted.sandbox import run_limited
from crushproof.targets.untrusted.weights import load_weights, read_safetensors, read_weights


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def state(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 5
        for name, value in net().state_dict().items()
    }


def same(module: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def refused(call: Callable[[], object], error: type[CrushproofError], *words: str) -> str:
    """The one paragraph of exactly this `error`, which contains all `words`; and it came in little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CrushproofError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert caught.value.exit_code == {InputError: 2, UnsafeInput: 5}[error]
    assert message.isprintable(), "one paragraph, nothing a terminal would act on"
    assert message.endswith("."), message
    assert ". " in message, "cause and cure are two sentences"
    assert len(message) < 900
    for word in words:
        assert word in message, message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    return message


def load_bytes(folder: Path, content: bytes, name: str = "weights.safetensors") -> nn.Module:
    """Loads `content` into a module that must stay untouched when the file is refused."""
    (folder / name).write_bytes(content)
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        load_weights(module, folder / name)
    except CrushproofError:
        assert same(module, before)
        raise
    return module


# safetensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ""])
def test_safetensors_load_under_any_suffix(tmp_path: Path, suffix: str) -> None:
    assert same(load_bytes(tmp_path, safetensors.torch.save(state()), f"weights{suffix}"), state())


def test_other_float_types_are_cast(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state().items()}
        loaded = load_bytes(tmp_path, safetensors.torch.save(cast)).state_dict()["0.weight"]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, cast["0.weight"].float())


def test_tied_weights_may_be_saved_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        return nn.Sequential(first, second)

    original, copy = tied(), tied()
    safetensors.torch.save_model(original, str(tmp_path / "tied.safetensors"))
    load_weights(copy, tmp_path / "tied.safetensors")
    assert same(copy, original.state_dict())


MISFITS: dict[str, tuple[dict[str, Tensor], tuple[str, ...]]] = {
    "missing": ({k: v for k, v in state().items() if k != "2.weight"}, ("1 of its 8", "'2.weight'")),
    "unexpected": ({**state(), "3.weight": torch.zeros(2)}, ("1 are not the model's", "'3.weight'")),
    "misspelt": (
        {("0.wieght" if k == "0.weight" else k): v for k, v in state().items()},
        ("Did you mean '0.weight'?",),
    ),
    "DataParallel": ({f"module.{k}": v for k, v in state().items()}, ("nn.DataParallel", "model.module.state_dict()")),
    "torch.compile": ({f"_orig_mod.{k}": v for k, v in state().items()}, ("torch.compile", "model._orig_mod.")),
    "shape": ({**state(), "0.weight": torch.zeros(5, 3)}, ("[5, 3] in the file and [4, 3] in the model",)),
    "transposed": ({**state(), "0.weight": torch.zeros(3, 4)}, ("[3, 4] in the file",)),
    "integers": ({**state(), "0.weight": torch.zeros(4, 3, dtype=torch.int8)}, ("int8", "float32")),
    "NaN": ({**state(), "0.bias": torch.tensor([1, float("nan"), 2, 3])}, ("'0.bias'", "1 NaN", "checkpoint")),
    "infinite": ({**state(), "0.bias": torch.full((4,), -torch.inf)}, ("'0.bias'", "4 NaN or infinite")),
    "beyond float32": ({**state(), "0.bias": torch.full((4,), 1e300, dtype=torch.float64)}, ("infinite",)),
    "markup": ({**state(), "<script>alert(1)</script>": torch.zeros(1)}, ("'<script>",)),
    "nothing": ({}, ("8 of its 8 tensors are missing",)),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_that_do_not_fit(tmp_path: Path, misfit: str) -> None:
    tensors, words = MISFITS[misfit]
    refused(lambda: load_bytes(tmp_path, safetensors.torch.save(tensors)), InputError, "'weights.safetensors'", *words)


def crafted(header: str | dict[str, Any], body: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text.encode()) if length is None else length) + text.encode() + body


def one(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16), name: str = "a") -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HUGE = 2**62
ENTRY = json.dumps(one()["a"])
CRAFTED: dict[str, tuple[bytes, str]] = {
    "header of 2^62 bytes": (crafted(one(), length=HUGE), "4,611,686,018,427,387,904"),
    "header of 2^64 - 1 bytes": (crafted(one(), length=2**64 - 1), "cut short"),
    "truncated header": (crafted(one())[:20], "cut short"),
    "truncated data": (crafted(one())[:-1], "16 bytes and 15"),
    "trailing bytes": (crafted(one(), bytes(17)), "16 bytes and 17"),
    "reversed offsets": (crafted(one(offsets=(16, 0))), "offsets"),
    "negative offsets": (crafted(one(offsets=(-16, 0))), "offsets"),
    "offsets beyond the end": (crafted(one(shape=(HUGE // 4,), offsets=(0, HUGE))), "shape"),
    "overlapping": (crafted({**one(), **one(name="b", offsets=(8, 24))}, bytes(24)), "overlaps"),
    "the same bytes twice": (crafted({**one(), **one(name="b")}), "overlaps"),
    "a gap": (crafted(one(offsets=(8, 24)), bytes(24)), "gap"),
    "shape overflow": (crafted(one(shape=(2**32, 2**32, 4))), "size"),
    "shape overflow to the right size": (crafted(one(shape=(2**62 + 1, 4))), "shape"),
    "shape and offsets differ": (crafted(one(shape=(5,))), "another size"),
    "negative shape": (crafted(one(shape=(-2, -2))), "shape"),
    "shape of floats": (crafted(one(shape=(4.0,))), "shape"),
    "shape of booleans": (crafted(one(shape=(True, 4))), "shape"),
    "unknown dtype": (crafted(one("F31")), "'F31'"),
    "dtype of another sort": (crafted(one(dtype=["F32"])), "dtype"),
    "duplicate tensor": (crafted(f'{{"a":{ENTRY},"a":{ENTRY}}}'), "twice"),
    "duplicate key inside": (crafted('{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'), "twice"),
    "extra key": (crafted({"a": {**one()["a"], "run": "me"}}), "exactly"),
    "metadata of numbers": (crafted({"__metadata__": {"a": 1}, **one()}), "metadata"),
    "deep JSON": (crafted('{"a":' * 200_000 + "1" + "}" * 200_000), "deeply"),
    "deep list": (crafted('{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), "deeply"),
    "a number of 5,000 digits": (crafted(f'{{"a":{"9" * 5000}}}'), "cannot be read"),
    "NaN in the header": (crafted('{"a":NaN}'), "NaN"),
    "not JSON": (crafted("{oops"), "cannot be read"),
    "not UTF-8": (crafted("{xx").replace(b"xx", b"\xff\xfe"), "cannot be read"),
    "NUL in a name": (crafted(one(name="a\0b")), "control"),
    "ESC in a name": (crafted(one(name="\x1b[31m")), "control"),
    "surrogate in a name": (crafted('{"\\ud800":' + ENTRY + "}"), "surrogate"),
    "../ in a name": (crafted(one(name="../../etc/passwd")), "leads out"),
    "absolute name": (crafted(one(name="/etc/passwd")), "leads out"),
    "long name": (crafted(one(name="a" * 1001)), "1,000"),
    "empty name": (crafted(one(name="")), "empty"),
}


@pytest.mark.parametrize("fault", CRAFTED)
def test_crafted_safetensors(tmp_path: Path, fault: str) -> None:
    content, word = CRAFTED[fault]
    start = time.process_time()
    refused(
        lambda: load_bytes(tmp_path, content), UnsafeInput, "'weights.safetensors'", word, "Nothing in it was executed"
    )
    assert time.process_time() - start < 2


def test_the_builder_of_crafted_files_builds_a_good_one() -> None:
    assert read_safetensors(crafted(one()), "it")["a"].tolist() == [0.0] * 4


ANYTHING = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
SOUND = safetensors.torch.save(state())


@ANYTHING
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 30))
def test_mutated_safetensors(changes: list[tuple[int, int]], cut: int) -> None:
    """Never anything but a refusal or what the library itself reads."""
    mutated = bytearray(SOUND)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    content = bytes(mutated[: len(mutated) - cut]) if cut < 15 else bytes(mutated)
    with contextlib.suppress(InputError, UnsafeInput):
        ours, library = read_safetensors(content, "it"), safetensors.torch.load(content)
        assert ours.keys() == library.keys()


@ANYTHING
@given(st.binary(min_size=1, max_size=100), st.sampled_from([b"", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{", b"\x80\x02"]))
def test_random_bytes_as_weights(content: bytes, start: bytes) -> None:
    with contextlib.suppress(InputError, UnsafeInput):
        read_weights(start + content, "it", limit=2**20)


# Other formats --------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def torch_bytes(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def repacked(content: bytes, method: int = zipfile.ZIP_STORED, **replaced: bytes) -> bytes:
    """A torch archive written anew, with the entries whose last name is a key replaced."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name.rpartition("/")[2].replace(".", "_"), old.read(name)))
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".onnx", ".npz"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_never_runs_whatever_its_suffix(tmp_path: Path, suffix: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    content = pickle.dumps(Payload(marker), protocol)
    refused(lambda: load_bytes(tmp_path, content, f"weights{suffix}"), UnsafeInput, "pickle", "save_file")
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists(), "the payload was live"


def test_old_torch_formats_are_refused(tmp_path: Path) -> None:
    legacy = torch_bytes(state(), _use_new_zipfile_serialization=False)
    refused(lambda: load_bytes(tmp_path, legacy, "old.pt"), UnsafeInput, "torch before 1.6", "save_file")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as writer:
        writer.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    refused(lambda: load_bytes(tmp_path, stream.getvalue(), "older.pt"), UnsafeInput, "torch before 1.6")


def test_programs_are_refused_without_starting_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), stream)
    refused(lambda: load_bytes(tmp_path, stream.getvalue(), "a.pt"), UnsafeInput, "TorchScript", "save_file")
    stream = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), stream)
    refused(lambda: load_bytes(tmp_path, stream.getvalue(), "a.pt2"), UnsafeInput, ".pt2")
    compressed = repacked(torch_bytes(state()), zipfile.ZIP_DEFLATED)
    refused(lambda: load_bytes(tmp_path, compressed, "a.pt"), UnsafeInput, "compressed")
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(3))
    refused(lambda: load_bytes(tmp_path, stream.getvalue(), "a.npz"), InputError, "numpy arrays")
    encrypted = torch_bytes(state()).replace(
        b"PK\x01\x02\x00\x00\x00\x00\x08\x08", b"PK\x01\x02\x00\x00\x00\x00\x09\x08"
    )
    refused(lambda: load_bytes(tmp_path, encrypted, "a.pt"), UnsafeInput, "password")
    refused(lambda: load_bytes(tmp_path, torch_bytes(state())[:-30], "a.pt"), UnsafeInput, "zip")
    stranger = torch_bytes(state()).replace(b"data.pkl", b"date.pkl")
    refused(lambda: load_bytes(tmp_path, stranger, "a.pt"), UnsafeInput, "not an archive written by torch.save")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"hello world, this is a text", "unknown format"),
        (bytes(8), "unknown format"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"\x93NUMPY\x01\x00" + bytes(99), "numpy"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x08\x07\x12\x07pytorch" + bytes(99), "unknown format"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, word: str) -> None:
    refused(lambda: load_bytes(tmp_path, content, "weights.pt"), InputError, word, "save_file")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").symlink_to(tmp_path / "gone")
    (tmp_path / "model.pt").write_bytes(b"")
    with (tmp_path / "large.pt").open("wb") as handle:
        handle.truncate(2**40)  # sparse
    for path, word in {
        tmp_path / "modle.pt": "Did you mean 'model.pt'?",
        tmp_path: "is a folder",
        tmp_path / "broken.pt": "link",
        tmp_path / "model.pt": "0 bytes",
        tmp_path / "large.pt": "1,099,511,627,776",
        Path("/dev/zero"): "device",
    }.items():
        refused(lambda path=path: load_weights(net(), path), InputError, word)


# .pt, read by a child process ----------------------------------------------------------------------------------------


@pytest.fixture
def _quick_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """One child that imports torch once and is forked, with the same limits and the same script, for each file."""
    monkeypatch.setattr(weights, "run_limited", shared(Path(crushproof.__file__).parent))


def test_state_dicts_of_any_device_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA checkpoint differs from a CPU one only in the device its storages name; here it loads without CUDA."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    content = torch_bytes(state())
    assert b"cuda:0" in content
    assert same(load_bytes(tmp_path, content, "weights.pt"), state())


@pytest.mark.usefixtures("_quick_reader")
def test_a_payload_inside_a_torch_archive_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = torch_bytes({**state(), "extra": Payload(marker)})
    message = refused(
        lambda: load_bytes(tmp_path, content, "weights.pt"), UnsafeInput, "more than tensors", "save_file"
    )
    assert "mkdir" in message
    assert not marker.exists()
    torch.load(io.BytesIO(content), weights_only=False)
    assert marker.exists(), "the payload was live"


@pytest.mark.usefixtures("_quick_reader")
def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    refused(lambda: load_bytes(tmp_path, torch_bytes(net()), "m.pt"), UnsafeInput, "whole pickled model", "Sequential")


@pytest.mark.usefixtures("_quick_reader")
def test_a_training_checkpoint_is_explained(tmp_path: Path) -> None:
    checkpoint = {"epoch": 3, "state_dict": state(), "optimizer": {"lr": 0.1}}
    refused(lambda: load_bytes(tmp_path, torch_bytes(checkpoint), "c.pt"), InputError, "'state_dict'", "checkpoint[")


@pytest.mark.usefixtures("_quick_reader")
def test_a_tensor_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    large = torch_bytes({"0.weight": torch.zeros(1).expand(2**40)})
    assert len(large) < 4096
    refused(lambda: load_bytes(tmp_path, large, "w.pt"), UnsafeInput, "far larger")


@pytest.mark.usefixtures("_quick_reader")
def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    content = repacked(torch_bytes(state()), data_pkl=b"\x80\x02]" + b"]" * 5000 + b"oops")
    refused(lambda: load_bytes(tmp_path, content, "w.pt"), UnsafeInput)


SCRIPT = """
import sys, time

def main(arguments):
    if arguments[0] == "memory":
        return str(len(bytearray(2 ** 34)))
    if arguments[0] == "time":
        while True:
            pass
    if arguments[0] == "file":
        with open(arguments[1], "wb") as handle:
            for _ in range(9):
                handle.write(bytes(2 ** 21))
    return f"{arguments} {sys.flags.isolated} {'SECRET' in __import__('os').environ} {'' in sys.path}"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on memory are enforced on Linux only")
def test_the_child_is_isolated_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("SECRET", "of the parent")

    def run(*arguments: str, seconds: int = 1) -> str:
        return run_limited(script, list(arguments), what="it", seconds=seconds, memory=2**24)

    assert run("a b", "ü") == "['a b', 'ü'] 1 False False"
    refused(lambda: run("memory"), UnsafeInput, "16,777,216 bytes")
    refused(lambda: run("time", seconds=0), UnsafeInput, "0 s of processor")
    refused(lambda: run("file", str(tmp_path / "out")), UnsafeInput, "stopped")
    assert (tmp_path / "out").stat().st_size <= 2**24
    script.write_text("raise SystemExit('no such library')")
    with pytest.raises(Incomplete, match=r"could not start.*no such library"):
        run("a")


def test_a_child_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ndef main(arguments):\n    time.sleep(60)\n    return ''\n")
    monkeypatch.setattr(sandbox, "STARTING", 0.5)
    refused(lambda: run_limited(script, [], what="it", seconds=0, memory=2**24), UnsafeInput, "took too long")
