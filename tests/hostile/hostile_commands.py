"""Options of the command line: missing, strange, contradicting each other, and commands that are none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hostile_case import USAGE, Case

FILE = ["--artifact", "model.onnx", "--data", "data.npz"]
# Words that no number, list of numbers or choice may be.
NO_NUMBERS = ["x", "0.5,x", "1/0", "--", "\x1b[31m", "½", "٣x", "1;2", "0x1p3z", "$(id)"]
WORDS: dict[str, list[str]] = {
    "no such command": ["audti"],
    "no such option": ["audit", "--fast"],
    "two plans": ["audit", "a.yaml", "b.yaml"],
    "a plan and a file": ["audit", "a.yaml", *FILE],
    "a file without data": ["audit", "--artifact", "model.onnx"],
    "data without a file": ["audit", "--data", "data.npz"],
    "data that is no npz": ["audit", "--artifact", "model.onnx", "--data", "data.csv"],
    "data that is not there": ["audit", "--artifact", "model.onnx", "--data", "no.npz"],
    "a file that is not there": ["audit", "--artifact", "no.onnx", "--data", "data.npz"],
    "an empty name": ["audit", "--artifact", "", "--data", "data.npz"],
    "a name of dots": ["audit", "--artifact", "..", "--data", "data.npz"],
    "a name of NUL": ["audit", "--artifact", "a\0b.onnx", "--data", "data.npz"],
    "a name too long": ["audit", "--artifact", f"{'x' * 5000}.onnx", "--data", "data.npz"],
    "a plan for a file": ["audit", "--artifact", "p.yaml", "--data", "data.npz"],
    "weights for a file": ["audit", "--artifact", "w.safetensors", "--data", "data.npz"],
    "a recipe without its model": ["audit", *FILE, "--recipe", "int8"],
    "a plan that is a model": ["audit", "model.onnx"],
    "a plan that is data": ["audit", "data.npz"],
    "a plan that is not there": ["audit", "nope.yaml"],
    "results in a file": ["audit", "p.yaml", "--out", "data.npz"],
    "results below a file": ["audit", "p.yaml", "--out", "data.npz/x"],
    "results in a device": ["audit", "p.yaml", "--out", "/dev/null"],
    "results at a name too long": ["audit", "p.yaml", "--out", "x" * 5000],
    "results at NUL": ["audit", "p.yaml", "--out", "a\0b"],
    "results where nobody may write": ["audit", "p.yaml", "--out", "/proc/x"],
    "results in a link to nowhere": ["audit", "p.yaml", "--out", "loop"],
    "results over another audit": ["audit", "p.yaml", "--out", "other"],
    "a finding that is none": ["audit", "p.yaml", "--only", "no/such"],
    "a finding of nothing": ["audit", "p.yaml", "--only", ""],
    "a finding of NUL": ["audit", "p.yaml", "--only", "a\0b"],
    "no workers": ["audit", "p.yaml", "--workers", "-1"],
    "many workers": ["audit", "p.yaml", "--workers", "1000000"],
    "workers in words": ["audit", "p.yaml", "--workers", "all"],
    "half a worker": ["audit", "p.yaml", "--workers", "0.5"],
    "a verdict that is none": ["audit", "p.yaml", "--fail-on", "never"],
    "one bound": ["audit", *FILE, "--bounds", "0"],
    "bounds in words": ["audit", *FILE, "--bounds", "low", "high"],
    "bounds turned round": ["audit", *FILE, "--bounds", "1", "0"],
    "bounds of nothing": ["audit", *FILE, "--bounds", "0", "0"],
    "bounds that are none": ["audit", *FILE, "--bounds", "nan", "1"],
    "bounds without end": ["audit", *FILE, "--bounds", "0", "inf"],
    "bounds beyond float32": ["audit", *FILE, "--bounds", "0", "1e300"],
    "a layout that is none": ["audit", *FILE, "--layout", "sideways"],
    "colours that are none": ["audit", *FILE, "--channels", "cmyk"],
    "units that are none": ["audit", *FILE, "--units", "volts"],
    "outputs that are none": ["audit", *FILE, "--outputs", "votes"],
    "a mean without its deviation": ["audit", *FILE, "--mean", "0.5"],
    "a deviation without its mean": ["audit", *FILE, "--std", "0.5"],
    "a policy that is none": ["audit", *FILE, "--policy", "relaese"],
    "a policy that is not there": ["audit", *FILE, "--policy", "no.yaml"],
    "labels that are fractions": ["audit", *FILE, "--labels", "0.5,1,2"],
    "a recipe that is none": ["audit", *FILE, "--dense", "dense.onnx", "--recipe", "int99"],
    "a dense model that is not there": ["audit", *FILE, "--dense", "no.onnx"],
    "a report of nothing": ["report", "nowhere"],
    "a report of a folder without one": ["report", "."],
    "a report without a folder": ["report"],
    "a gate of nothing": ["gate", "nowhere"],
    "a gate by nothing": ["gate", ".", "--policy", ""],
    "a gate of two": ["gate", "a", "b"],
    "a catalogue of nothing": ["catalogue", "qantize"],
    "a catalogue of an escape": ["catalogue", "\x1b[31m"],
    "an empty word": ["audit", "p.yaml", "--out", ""],
    "an empty folder name": ["report", ""],
    "an option twice": ["audit", "p.yaml", "--policy", "release", "--policy=robustness"],
    "results where a report is a pipe": ["audit", "p.yaml", "--out", "pipe"],
    "results where an audit is a folder": ["audit", "p.yaml", "--out", "folder"],
    "results where an audit is a pipe": ["audit", "p.yaml", "--out", "piped"],
    "results where an audit is one hole": ["audit", "p.yaml", "--out", "holes"],
    "results where a report is a link to nowhere": ["audit", "p.yaml", "--out", "dangling"],
    "a search into a pipe": ["search", "p.yaml", "--out", "tube.yaml"],
    "a search into a device": ["search", "p.yaml", "--out", "zero.yaml"],
    "a start on a file": ["init", "data.npz"],
    "a start below a file": ["init", "data.npz/x"],
    "a start at a name too long": ["init", "x" * 5000],
    "a start at NUL": ["init", "a\0b"],
    "a start at a device": ["init", "/dev/null"],
    "a search of nothing": ["search", "nope.yaml"],
    "a search without trials": ["search", "p.yaml", "--trials", "0"],
    "a search for nothing": ["search", "p.yaml", "--objectives", "beauty"],
    "a search below nothing": ["search", "p.yaml", "--max-payload", "-1"],
    "a search in no time": ["search", "p.yaml", "--max-latency", "-1"],
    "a search without an end": ["search", "p.yaml", "--max-latency", "nan"],
    "a search of a loss that is none": ["search", "p.yaml", "--max-loss", "nan"],
    "a search of no records": ["search", "p.yaml", "--batch", "0"],
    "a search of no epochs": ["search", "p.yaml", "--epochs", "-1"],
    "trials in words": ["search", "p.yaml", "--trials", "many"],
    "trials beyond all numbers": ["search", "p.yaml", "--trials", "9" * 30],
}
PLAN = """
data: {kind: npz, path: data.npz, bounds: [0, 1]}
model: {architecture: "crushproof.training.networks:Mlp", parameters: {features: 4, classes: 3}}
candidates: {a: int8}
"""


def start(folder: Path, words: list[str]) -> list[str]:
    records = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    classes = np.arange(30) % 3
    np.savez(folder / "data.npz", x_train=1 - records, y_train=classes, x_test=records, y_test=classes)
    for name in ("data.csv", "model.onnx", "dense.onnx", "w.safetensors", "b.yaml"):
        (folder / name).write_text("x")
    for name in ("p.yaml", "a.yaml"):
        (folder / name).write_text(PLAN)
    (folder / "loop").symlink_to("loop")
    for name in ("other", "pipe", "piped", "holes", "dangling"):
        (folder / name).mkdir()
    (folder / "folder" / "audit.json").mkdir(parents=True)
    for name in ("tube.yaml", "pipe/report.html", "piped/audit.json"):
        os.mkfifo(folder / name)
    (folder / "zero.yaml").symlink_to("/dev/zero")
    (folder / "dangling" / "report.html").symlink_to("nowhere")
    (folder / "holes" / "audit.json").touch()
    os.truncate(folder / "holes" / "audit.json", 2**33)
    (folder / "other" / "audit.json").write_text("{}")
    return words


def cases() -> Iterator[Case]:
    every = dict(WORDS)
    for option in ("--mean", "--std", "--labels"):
        every |= {f"{option}: {text!r}": ["audit", *FILE, option, text] for text in NO_NUMBERS}
    for option in ("--layout", "--channels", "--units", "--outputs", "--recipe"):
        every |= {f"{option}: {text!r}": ["audit", *FILE, option, text] for text in ("", "\x1b[2J", "../x" * 50)}
    for name, words in every.items():
        yield Case(name, lambda folder, words=words: start(folder, words), USAGE)
