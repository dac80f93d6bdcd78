"""Forged results, each with what must be said of it: their digests are right, so that only the form can tell."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Parts = dict[str, bytes]
EVIDENCE, INT8 = "attack/evasion/int8", "candidate/int8"
MEMBERSHIP, EXTRACTION, CHURN = (f"attack/{kind}/int8" for kind in ("membership", "extraction", "churn"))
RADIUS, SHADOWS, SIGNALS = "radius/linf", "shadows/dense/0", "signals/dense/dense"
DOCUMENT, ARRAYS, MANIFEST = "document.json", "arrays.safetensors", "manifest.json"


def _other_model(document: Any, arrays: Any, files: Any) -> None:
    files["model.onnx"] = bytes(len(files["model.onnx"]))
    document["digest"] = hashlib.sha256(files["model.onnx"]).hexdigest()


def _large_layer(document: Any, arrays: Any, files: Any) -> None:
    layer = next(one for one in document["description"] if isinstance(one["arguments"], dict) and one["arguments"])
    layer |= {"type": "Linear", "arguments": {"in_features": 2**20, "out_features": 2**20, "bias": True}}


def _many_layers(document: Any, arrays: Any, files: Any) -> None:
    document["description"][-1]["arguments"] = {"num_layers": 10**9}


def _to(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, Any, Any], None]:
    """Changes every array whose name begins so; there is one at least."""

    def forge(document: Any, arrays: Any, files: Any) -> None:
        chosen = [one for one in arrays if one.startswith(name)]
        assert chosen
        for one in chosen:
            arrays[one] = change(np.array(arrays[one]))

    return forge


def _without(name: str) -> Callable[[Any, Any, Any], None]:
    return lambda document, arrays, files: arrays.pop(next(one for one in arrays if one.startswith(name)))


def _set(*path: Any) -> Callable[[Any, Any, Any], None]:
    """Sets a value in the document: the keys to it, then the value."""
    *inside, key, value = path

    def forge(document: Any, arrays: Any, files: Any) -> None:
        for one in inside:
            document = document[one]
        document[key] = value

    return forge


def _nan(array: np.ndarray) -> np.ndarray:
    array.flat[0] = np.nan
    return array


# name: (cell, what is done to document, arrays and files, a word of what is said)
RESULTS: dict[str, tuple[str, Callable[[Any, Any, Any], None], str]] = {
    "agreement 7": (INT8, _set("certificate", "overall", "label_agreement", 7.0), "label_agreement"),
    "agreement of no kind": (INT8, _set("certificate", "overall", "label_agreement", 0.125), "kinds"),
    "certificate of other records": (INT8, _set("certificate", "kinds", {}), "kinds"),
    "certificate of none": (INT8, _set("certificate", "overall", "n", 0), "n:"),
    "true for a count": (INT8, _set("certificate", "overall", "n", True), "n:"),
    "another digest": (INT8, _set("digest", "0" * 64), "digest"),
    "no model in the file": (INT8, _other_model, "UnsafeInput"),
    "a file too many": (INT8, lambda d, a, f: f.update({"evil.so": b"x"}), "files"),
    "no payload": (INT8, lambda d, a, f: f.pop("payload.bin"), "files"),
    "a class that there is not": (INT8, _to("evidence/predicted", lambda a: a + 2), "above"),
    "all correct": (INT8, _to("evidence/correct", np.ones_like), "correct"),
    "floats for truth": (INT8, _to("evidence/correct", lambda a: a.astype(np.float32)), "float32"),
    "fewer records": (INT8, _to("evidence/", lambda a: a[:-1]), "shape"),
    "no weights": (INT8, _without("0."), "InputError"),
    "layers of terabytes": (INT8, _large_layer, "size"),
    "a billion layers": (INT8, _many_layers, "layers"),
    "another footprint": (INT8, _set("footprint", "disk_bytes", 1), "footprint"),
    "a payload of less than nothing": (INT8, _set("footprint", "payload_bytes", -1), "payload_bytes"),
    "text for a count": (INT8, _set("kernels", "floating", "3"), "floating"),
    "an unknown key": (INT8, _set("verified", True), "verified"),
    "not applicable and measured": (INT8, _set("not_applicable", "too hard"), "has one"),
    "weights of another shape": ("train/dense", _to("0.weight", lambda a: a.T), "shape"),
    "weights of nobody": ("train/dense", lambda d, a, f: a.update(more=np.zeros(3)), "nobody reads"),
    "a weight missing": ("train/dense", _without("0.weight"), "no array"),
    "a promise that is a list": ("train/dense", _set("statement", []), "statement"),
    "negative passes": (EVIDENCE, _set("ledger", "queries", -1), "queries"),
    "more passes than numbers": (EVIDENCE, _set("ledger", "queries", 10**30), "queries"),
    "nothing fooled it": (EVIDENCE, _to("worst/", np.zeros_like), "worst/"),
    "a part that found nothing": (EVIDENCE, _without("fooled/pgd"), "no array"),
    "records of elsewhere": (EVIDENCE, _to("ids", lambda a: a + 10**6), "ids"),
    "half of the records": (EVIDENCE, _to("", lambda a: a[::2]), "shape"),
    "a smaller epsilon": (EVIDENCE, _set("summary", "gate_epsilon", 1e-9), "epsilon"),
    "other steps": (EVIDENCE, _set("summary", "settings", "pgd", "steps", 99), "settings"),
    "another access": (EVIDENCE, _set("summary", "part_access", "pgd", "labels"), "access"),
    "an unknown flag": (EVIDENCE, _set("summary", "union_flags", ["all-is-well"]), "union_flags"),
    "inputs that are not finite": (EVIDENCE, _to("adversarial", _nan), "finite"),
    "inputs that were not changed": (EVIDENCE, _to("change/linf", np.zeros_like), "changes"),
    "a certificate of nothing": (EVIDENCE, _set("certificate", None), "certificate"),
    "members and others changed": (MEMBERSHIP, _to("is_member", np.invert), "is_member"),
    "a score that there is not": (MEMBERSHIP, _set("summary", "headline", "luck"), "score"),
    "scores that are not finite": (MEMBERSHIP, _to("score/rmia", _nan), "finite"),
    "scores of other margins": (MEMBERSHIP, _to("phi", np.zeros_like), "phi"),
    "too many shadows": (MEMBERSHIP, _set("summary", "shadows", "own", 10**6), "too many"),
    "a mean beyond 1": (MEMBERSHIP, _set("summary", "pseudo_targets", "loss", "auc_mean", 2.0), "auc_mean"),
    "another fidelity": (EXTRACTION, _set("summary", "fidelity", "scores/10", 0.0078125), "agrees"),
    "fewer copies": (EXTRACTION, _set("summary", "copies", []), "array"),
    "copies of another shape": ("copies/", _to("1/copy/", lambda a: a[..., :1]), "shape"),
    "copies of nobody": ("copies/", _set("models", []), "nobody"),
    "a longer transfer": (EXTRACTION, _to("transfer/", lambda a: np.repeat(a, 2)), "shape"),
    "decisions of another": (CHURN, _to("predicted", lambda a: 1 - a), "correct"),
    "surer than sure": (CHURN, _to("margin", lambda a: -a - 1), "margin"),
    "a radius that was not probed": (RADIUS, _set("radius", "epsilon", 1e-6), "curve"),
    "keeps five times all": (RADIUS, _set("radius", "kept", 5.0), "kept"),
    "chosen by nobody": (RADIUS, _set("radius", "how", "guessed"), "how"),
    "no radius": (RADIUS, _set("radius", None), "no radius"),
    "crafted in doubles": ("transfer/", _to("", lambda a: a.astype(np.float64)), "float64"),
    "crafted at no epsilon": ("transfer/", lambda d, a, f: a.update({"0": a.popitem()[1]}), "no array"),
    "a replay of integers": ("replay/", _to("on_candidate", lambda a: a.astype(np.int64)), "int64"),
    "room that is text": ("room/", _set("radius", "enough"), "radius"),
    "a shadow missing": (SHADOWS, _without("3/"), "no array"),
    "others inside": (SIGNALS, _to("inside", np.invert), "inside"),
    "signals in a row": (SIGNALS, _to("phi", np.ravel), "shape"),
    "blind and not finite": ("blind", _to("scores", _nan), "finite"),
    "memory of less than nothing": ("memory/int8", _set("peak_bytes", -1), "peak_bytes"),
    "a model that nobody timed": ("latency", _set("latency", "ghost", []), "model"),
    "a negative time": ("latency", _set("latency", "int8", 0, "p50", -1.0), "p50"),
    "times not applicable": ("latency", lambda d, a, f: (d.clear(), d.update(not_applicable="no")), "has one"),
}


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Parts], None]:
    """Of the arrays' file: what it says of them, without touching their bytes."""

    def forge(parts: Parts) -> None:
        raw = parts[ARRAYS]
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        change(header)
        told = json.dumps(header).encode()
        parts[ARRAYS] = len(told).to_bytes(8, "little") + told + raw[8 + size :]

    return forge


def _every(**said: Any) -> Callable[[Parts], None]:
    return _header(lambda header: [one.update(said) for name, one in header.items() if name != "__metadata__"])


def _flip(parts: Parts) -> None:
    parts[ARRAYS] = parts[ARRAYS][:-1] + b"\x07"


def _say(raw: bytes) -> Callable[[Parts], None]:
    return lambda parts: parts.update({DOCUMENT: raw})


# of the replay, whose arrays are truth values: what is done to its bytes; the digests follow
BYTES: dict[str, Callable[[Parts], None]] = {
    "NaN literal": _say(b'{"a":NaN}'),
    "infinity by overflow": _say(b'{"a":1e999}'),
    "a key twice": _say(b'{"a":1,"a":2}'),
    "spaces": _say(b'{ "a": 1 }'),
    "deep": _say(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep and open": _say(b"[" * 200_000),
    "many digits": _say(b'{"a":' + b"9" * 5000 + b"}"),
    "beyond Unicode": _say(b'{"a":"\\ud800"}'),
    "no text": _say(b"\xff\xfe{"),
    "a list": _say(b"[]"),
    "nothing": _say(b""),
    "another type": _every(dtype="BF16"),
    "an unknown type": _every(dtype="PICKLE"),
    "a shape that lies": _every(shape=[2**40]),
    "a negative shape": _every(shape=[-1]),
    "bytes of elsewhere": _every(data_offsets=[0, 2**50]),
    "a truth value of 7": _flip,
    "a header without end": lambda parts: parts.update({ARRAYS: (2**62).to_bytes(8, "little") + parts[ARRAYS][8:]}),
    "no arrays": lambda parts: parts.update({ARRAYS: b""}),
}


def _manifest(raw: bytes | Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def forge(folder: Path, elsewhere: Path) -> None:
        path = folder / MANIFEST
        digests = json.loads(path.read_bytes())
        if callable(raw):
            raw(digests)
        path.write_bytes(json.dumps(digests, sort_keys=True, separators=(",", ":")).encode() if callable(raw) else raw)

    return forge


def _in_place(name: str, make: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def forge(folder: Path, elsewhere: Path) -> None:
        path = folder / name
        shutil.copytree(folder, elsewhere / folder.name, dirs_exist_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path, elsewhere / folder.name / name)

    return forge


def _sparse(path: Path, other: Path, size: int = 10 * 2**30) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


# what is done to the folder of a cell; the second argument is a folder outside the audit
FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    "a manifest of a million files": _manifest(b"[" + b'"a",' * 10**6 + b'"a"]'),
    "a manifest of 1000 names": _manifest(lambda d: d.update({f"files/{one}": "0" * 64 for one in range(1000)})),
    "a name with a null": _manifest(lambda d: d.update({"files/a\0b": "0" * 64})),
    "a name beyond Unicode": _manifest(lambda d: d.update({"files/\ud800": "0" * 64})),
    "a name above": _manifest(lambda d: d.update({"files/../../x": "0" * 64})),
    "a digest that is a number": _manifest(lambda d: d.update({DOCUMENT: 7})),
    "a deep manifest": _manifest(b"[" * 100_000),
    "a linked document": _in_place(DOCUMENT, lambda path, other: path.symlink_to(other)),
    "a linked device": _in_place(DOCUMENT, lambda path, other: path.symlink_to("/dev/zero")),
    "a linked manifest": _in_place(MANIFEST, lambda path, other: path.symlink_to(other)),
    "a pipe": _in_place(DOCUMENT, lambda path, other: os.mkfifo(path)),
    "a piped manifest": _in_place(MANIFEST, lambda path, other: os.mkfifo(path)),
    "a folder for a file": _in_place(ARRAYS, lambda path, other: path.mkdir()),
    "a document of 10 GB": _in_place(DOCUMENT, _sparse),
    "arrays of 10 GB": _in_place(ARRAYS, _sparse),
    "arrays of 8 GB": _in_place(ARRAYS, lambda path, other: _sparse(path, other, 2**33)),
    "a manifest of 10 GB": _in_place(MANIFEST, _sparse),
    "a linked cell": _in_place("", lambda path, other: path.symlink_to(other, target_is_directory=True)),
    "a link to nowhere": _in_place("", lambda path, other: path.symlink_to("/nowhere")),
    "a file for a cell": _in_place("", lambda path, other: path.write_bytes(b"x")),
    "a linked folder above": lambda folder, elsewhere: _in_place(
        "", lambda path, other: path.symlink_to(other, target_is_directory=True)
    )(folder.parent, elsewhere),
}
