"""What stands where a file is expected: nothing, a folder, a pipe, a device, a link to nowhere, nothing in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from hostile_case import USAGE, Case

from crushproof.targets.data.csv import load_csv
from crushproof.targets.data.npz import load_npz
from crushproof.targets.untrusted.model_file import read_model_file
from crushproof.targets.untrusted.weights import load_weights

Make = Callable[[Path], object]
Use = Callable[[Path], "list[str] | Callable[[], object]"]


def nothing(path: Path) -> None:
    """Is not there."""


def odd_files() -> dict[str, Make]:
    """How each is made at a path."""
    return {
        "nothing": nothing,
        "empty": lambda path: path.write_bytes(b""),
        "a folder": lambda path: path.mkdir(),
        "a pipe": lambda path: os.mkfifo(path),
        "a broken link": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to a folder": lambda path: path.symlink_to("."),
        "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
        "a link to its own memory": lambda path: path.symlink_to("/proc/self/mem"),
    }


def odd_paths() -> dict[str, str]:
    return {
        "a name too long": "x" * 300,
        "NUL in it": "a\0b",
        "half a surrogate pair": "\udcff",
        "below a file": "/etc/passwd/x",
        "a tilde": "~nobody/x",
        "an escape": "\x1b[31mred",
    }


def users() -> dict[str, tuple[str, Use]]:
    """Who reads a file: the suffix it has there, and how it is asked."""
    plan = "{{data: {{kind: npz, path: {0}}}, model: {{architecture: my:net}}, candidates: {{a: int8}}}}"

    def in_plan(path: Path) -> list[str]:
        (path.parent / "p.yaml").write_text(plan.format(path.name))
        return ["audit", str(path.parent / "p.yaml")]

    return {
        "a plan": (".yaml", lambda path: ["audit", str(path)]),
        "data of a plan": (".npz", in_plan),
        "data": (".npz", lambda path: lambda: load_npz(path)),
        "a table": (".csv", lambda path: lambda: load_csv(None, path, label="y")),
        "weights": (".safetensors", lambda path: lambda: load_weights(torch.nn.Linear(2, 2), path)),
        "a model": (".onnx", lambda path: lambda: read_model_file(path)),
        "a report": ("/audit.json", lambda path: ["report", str(path)]),
        "a gate": ("/audit.json", lambda path: ["gate", str(path)]),
    }


def cases() -> Iterator[Case]:
    for who, (suffix, use) in users().items():
        for what, make in odd_files().items():

            def call(folder: Path, make: Make = make, use: Use = use, suffix: str = suffix) -> object:
                path = folder / f"input{suffix}"
                path.parent.mkdir(exist_ok=True)
                make(path)
                return use(path)

            yield Case(f"{who}: {what}", call, USAGE)  # type: ignore[arg-type]  # `object` is what a reader gives
        for what, name in odd_paths().items():
            if who != "data of a plan":
                yield Case(
                    f"{who}: {what}",
                    lambda folder, use=use, name=name, suffix=suffix: use(folder / (name + suffix)),
                    USAGE,
                )
