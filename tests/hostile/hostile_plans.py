"""Plans: YAML that is none or does more than it should, and a strange value for every key."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hostile_case import UNSAFE, USAGE, Case
from hostile_data import archive, saved

PLAN: dict[str, Any] = {
    "name": "x",
    "seed": 0,
    "data": {"kind": "npz", "path": "data.npz", "bounds": [0, 1]},
    "model": {
        "architecture": "crushproof.training.networks:Mlp",
        "parameters": {"features": 4, "classes": 3},
        "training": {"epochs": 2},
    },
    "candidates": {
        "a": {"recipe": {"kind": "prune", "sparsity": 0.5}, "control": False},
        "b": {"recipe": {"kind": "quantize", "weight_bits": 4}, "defense": {"kind": "adversarial-training"}},
    },
    "attacks": [
        {"kind": "evasion", "epsilons": [0.1], "records": 50, "parts": [{"kind": "pgd", "steps": 8}]},
        {"kind": "membership"},
        {"kind": "extraction", "budgets": [30]},
    ],
    "shadows": {"training_free": 16, "trained": 4},
    "budget": "5 min",
    "policy": {"changes": {"accuracy": -0.02}, "absolutes": {"robust_accuracy": 0.4}},
    "release": ["a"],
    "runtimes": [{"kind": "openvino"}],
    "engine": {"kind": "local", "workers": 0},
    "device": "cpu",
    "declared": {"tee": "none"},
}
NOTHING_ELSE = [[], [[]], {"a": 1}, ["x"]]  # where a number or a word is due
NUMBER = ["", "many", "nan", True, [], {"a": 1}]
COUNT = [-1, 0.5, 1e300, *NUMBER]
# Values that no plan may have there, by the path of the key.
STRANGE: dict[str, list[Any]] = {
    "name": ["", 7, "n" * 201, None, *NOTHING_ELSE],
    "seed": [-1, 0.5, 1e300, "0", True, None, *NOTHING_ELSE],
    "data": [None, 3, "digits", "data.npz", [], {}, {"kind": "memory", "name": "m"}, {"kind": "pickle"}],
    "data.kind": [None, 1, "NPZ", "memory", []],
    "data.path": [None, 1, "", "nowhere.npz", "../../../etc/passwd", "/dev/zero", "/proc/self/mem", ".", "p.yaml"],
    "data.bounds": [1, "0..1", [1, 0], [0, 0], [0], [0, 1, 2], ["0", "1"], [True, False], {"a": 1}, [0, 1e300]],
    "data.task": [None, 1, "regress", []],
    "data.class_names": [3, "ab", [1, 2], ["a", "a", "b"], [[]], {"a": "b"}],
    "data.immutable": [{"a": 1}, [[]], [None], [True], ["no such column"], [99], ["9" * 5000], [-1], ["0-999999"]],
    "data.categorical": [1, "a", {"0": "warm"}, {"0": [[1]]}, {"no": "codes"}, {"9" * 5000: "codes"}],
    "data.one_hot": [1, "a", [[True]], [[99, 98]], [[0]], [[0, 1], [1, 2]]],
    "data.integer": [[None], [0.5], ["x"], [99]],
    "data.tokens": ["yes", 1.5, []],
    "data.extra": [1],
    "model": [None, 1, "mlp", [], {}, {"file": "no.onnx"}, {"architecture": "a:b", "file": "c.onnx"}],
    "model.architecture": [None, 1, "mlp", "os", "a.b", "os.path:", ":x", "a:b:c", "../x:y", "no_such_module:f"],
    "model.weights": [1, [], "nowhere.safetensors", "p.yaml", "/dev/zero", "."],
    "model.parameters": [1, [], "x", {"no_such": 1}, {"features": "x", "classes": 3}, {"features": -5, "classes": 3}],
    "model.training_function": [1, "train", "a:b:c"],
    "model.training": [1, [], "x", {"epochs": -1}, {"epochs": "x"}, {"learning_rate": "fast"}, {"no": 1}],
    "model.training.epochs": COUNT,
    "model.interface": [1, {"layout": "sideways"}, {"mean": [0.5]}, {"units": "volts"}, {"labels": ["a"]}],
    "candidates": [None, [], {}, "int8", {"": "int8"}, {"dense": "int8"}, {"../x": "int8"}, {"a" * 65: "int8"}],
    "candidates.a": [None, 1, [], {}, "int9", "no", {"kind": 1}, {"sparsity": 0.5}, {"file": 1}, {"file": "nope.onnx"}],
    "candidates.a.recipe": [None, 1, "int7", "prun", [], {"kind": "prun"}, {"kind": None}, {"kind": []}],
    "candidates.a.recipe.sparsity": [-0.5, 1.5, 1e300, *NUMBER],
    "candidates.a.control": ["maybe", 7, []],
    "candidates.b.recipe.weight_bits": [0, 1, 99, *COUNT],
    "candidates.b.defense": [1, [], "armour", {"kind": 1}, {"kind": "adversarial-training", "epsilon": "big"}],
    "attacks": [None, 1, [], "brutal", {}, ["no such"], [1], [{}], [{"kind": "evasion", "typo": 1}]],
    "attacks.0.epsilons": [1, [True], [0], [-0.1], [8], ["x"], [[]], [0.1] * 500],
    "attacks.0.records": [0, *COUNT],
    "attacks.0.parts": [1, "none such", [1], [{"kind": "art", "name": "os.system"}], [{"kind": "pgd", "steps": 0}]],
    "attacks.0.parts.0.steps": [0, *COUNT],
    "attacks.2.budgets": [1, [True], [0], [-5], ["x"], [1e300]],
    "shadows": [1, [], "many"],
    "shadows.training_free": [0, 1, 5000, *COUNT],  # 0 and 1 beside 4 that train
    "shadows.trained": [5000, *COUNT],
    "budget": [5, "5", "min", "-5 min", "0 min", "1e9 h", "5 years", [], {"min": 5}],
    "policy": [1, [], {}, "releas", "no.yaml", "/etc/passwd", "./p.yaml", {"changes": {}}, {"limits": 1}],
    "policy.changes": [1, "x", {"accuracy": 0.5}, {"accuracy": False}, {"no_such": -0.1}, {"auc": 50}],
    "policy.absolutes": [1, [], {"accuracy": -1}, {"accuracy": 95}, {"robust_accuracy": None}],
    "release": [1, "a", [], ["c"], [1], [["a"]], {"a": 1}],
    "runtimes": [1, "openvino", ["no such"], [1], {"kind": "openvino"}, [{"kind": "openvino", "typo": 1}]],
    "engine": [1, [], "cluster", {"kind": "slurm"}, {"kind": "ray", "address": "; rm -rf /"}],
    "engine.workers": [-1, 257, 1.5, "all", True, []],
    "device": [1, "gpu", "cuda:x", "cpu; ls", [], None],
    "declared": [1, "x", [], {"a": 1}, {"a": []}],
    "no_such_key": [1],
}
HEAD = "name: x\ndata: {kind: digits}\n"
TEXTS: dict[str, tuple[str | bytes, int]] = {
    "nothing but a comment": ("# nothing\n", USAGE),
    "a list": ("- a\n", USAGE),
    "a word": ("audit\n", USAGE),
    "null": ("~\n", USAGE),
    "two documents": (f"{HEAD}---\nname: y\n", USAGE),
    "a tab for an indent": ("name: x\ndata:\n\tkind: digits\n", USAGE),
    "a bracket never closed": ("candidates: {a: [1, 2\n", USAGE),
    "a quote never closed": ('name: "x\n', USAGE),
    "a key twice": ("name: x\nname: y\n", USAGE),
    "an alias bomb": ("a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n", USAGE),
    "an alias of itself": ("a: &a [*a]\n", USAGE),
    "a merge key": ("<<: {name: x}\n", USAGE),
    "an object of Python": ("name: !!python/object/apply:os.mkdir [canary]\n", UNSAFE),
    "a new object of Python": ("name: !!python/object/new:os.mkdir [canary]\n", UNSAFE),
    "a module of Python": ("name: !!python/module:antigravity\n", UNSAFE),
    "a name of Python": ("name: !!python/name:os.system\n", UNSAFE),
    "a tuple of Python": ("name: !!python/tuple [1]\n", UNSAFE),
    "a tag for a key": ("!!python/name:os.system : x\n", UNSAFE),
    "a verbatim tag": ("name: !<tag:yaml.org,2002:python/object/apply:os.mkdir> [canary]\n", UNSAFE),
    "a tag under another prefix": (
        "%TAG ! tag:yaml.org,2002:python/\n---\nname: !object/apply:os.mkdir [canary]\n",
        UNSAFE,
    ),
    "a binary": ("name: !!binary aGVsbG8=\n", USAGE),
    "a set": ("name: !!set {a}\n", USAGE),
    "a list for a key": ("? [a, b]\n: 1\n", USAGE),
    "nested 200 deep": ("a: " + "[" * 200 + "]" * 200, USAGE),
    "nested 50,000 deep": ("a: " + "[" * 50_000, USAGE),
    "mappings nested 2,000 deep": ("{a: " * 2000 + "1" + "}" * 2000, USAGE),
    "a number of 5,000 digits": (f"seed: {'9' * 5000}\n", USAGE),
    "a fraction of 5,000 digits": (f"seed: 1/{'9' * 5000}\n", USAGE),
    "a hexadecimal of 5,000 digits": (f"seed: 0x{'f' * 5000}\n", USAGE),
    "not a number": ("seed: .nan\n", USAGE),
    "infinity": ("seed: -.inf\n", USAGE),
    "beyond the largest number": ("seed: 1e999\n", USAGE),
    "division by zero": ("seed: 8/0\n", USAGE),
    "NUL": ("name: a\0b\n", USAGE),
    "an escape": ("name: \x1b[31mred\n", USAGE),
    "an escaped NUL": ('name: "a\\0b"\n', USAGE),
    "half a surrogate pair": ('name: "\\ud800"\n', USAGE),
    "beyond Unicode": ('name: "\\UFFFFFFFF"\n', USAGE),
    "Latin-1": ("name: é\n".encode("latin-1"), USAGE),
    "UTF-16": ("name: x\n".encode("utf-16"), USAGE),
    "UTF-32": ("name: x\n".encode("utf-32"), USAGE),
    "a pickle": (b"\x80\x04cos\nmkdir\n(S'canary'\ntR.", USAGE),
    "more than 256 KiB": ("# " + "x" * 300_000, USAGE),
    "300 keys": ("".join(f"k{number}: 1\n" for number in range(300)), USAGE),
    "3,000 keys": ("".join(f"k{number}: 1\n" for number in range(3_000)), USAGE),
    "a key of 100,000 characters": (f"{'k' * 100_000}: 1\n", USAGE),
    "a template": ("name: '{{ 7 * 7 }}'\ndata: '{{ config }}'\n", USAGE),
    "a directive": ("%YAML 9.9\n---\nname: x\n", USAGE),
    "a carriage return alone": ("name: x\rname: y\r", USAGE),
}


NEEDED = ("data", "model", "candidates")


def changed(path: str, value: Any) -> dict[str, Any]:
    """What a plan needs, and the section of a key with another value under it; the key need not be there."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    plan: Any = {key: copy.deepcopy(one) for key, one in PLAN.items() if key in (*NEEDED, *steps)}
    inner = plan
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return plan  # type: ignore[no-any-return]  # as YAML gives it


@cache
def _records() -> bytes:
    return archive(saved())


def audit(folder: Path, text: str | bytes) -> list[str]:
    (folder / "data.npz").write_bytes(_records())
    (folder / "p.yaml").write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return ["audit", "p.yaml", "--out", "out"]


def cases() -> Iterator[Case]:
    for name, (text, code) in TEXTS.items():
        dear = name in ("3,000 keys", "nested 50,000 deep")
        yield Case(name, lambda folder, text=text: audit(folder, text), code, dear=dear)
    for path, values in STRANGE.items():
        for value in values:

            def call(folder: Path, path: str = path, value: Any = value) -> list[str]:
                return audit(folder, yaml.safe_dump(changed(path, value), sort_keys=False))

            yield Case(f"{path}: {str(value)[:40]}", call, USAGE, dear="'art'" in str(value))  # it imports ART
