"""Where files lie on a machine, and whose it is, stays out of audit.json and the report."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from crushproof.audit.engine.schedule import Outcome
from crushproof.audit.engine.store import Store
from crushproof.audit.findings.assemble import results_of
from crushproof.audit.paths import shown, without_paths
from crushproof.audit.plan.command_line import plan_of_options, words_of_options
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("data/train.npz", "data/train.npz"),
        ("/home/alice/train.npz", "train.npz"),
        ("../alice/train.npz", "train.npz"),
        ("~/train.npz", "train.npz"),
        ("~alice/train.npz", "train.npz"),
        ("C:\\Users\\alice\\train.npz", "train.npz"),
        (Path("/srv/data/plan.yaml"), "plan.yaml"),
    ],
)
def test_a_path_outside_its_folder_is_the_files_name(path: str | Path, told: str) -> None:
    assert shown(path) == told


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("No such file: '/home/alice smith/x.csv'", "No such file: 'x.csv'"),
        ("cannot open /home/alice/my/x.csv, twice", "cannot open x.csv, twice"),
        ("its worker ended; see /tmp/a/workers.log, or", "its worker ended; see workers.log, or"),
        ("(/srv/x/y.so: undefined symbol)", "(y.so: undefined symbol)"),
        ("at ~/models/a.onnx and C:\\Users\\alice\\b.onnx.", "at a.onnx and b.onnx."),
        ('File "/usr/lib/python3/json.py", line 3', 'File "json.py", line 3'),
        ("see file:///home/alice/x.html", "see x.html"),
        ("1/n of 8/255, and/or https://example.org/a/b; int8/evasion; shapes [1/2/3]", None),
        ("figure int8/extraction/auc in s/m^2", None),
    ],
)
def test_a_sentence_keeps_all_but_where_files_lie(sentence: str, told: str | None) -> None:
    assert without_paths(sentence) == (sentence if told is None else told)


def test_a_plan_is_shown_without_them_and_digested_as_it_is_shown(tmp_path: Path) -> None:
    def plan(folder: str) -> Plan:
        raw: dict[str, Any] = {
            "data": {"kind": "npz", "path": f"{folder}d.npz"},
            "model": {"file": f"{folder}dense.onnx"},
            "candidates": {"a": {"file": f"{folder}a.onnx", "recipe": "int8"}},
            "policy": f"{folder}own.yaml",
        }
        return Plan.model_validate(raw)

    assert plan("/home/alice/").shown == plan("/srv/").shown == plan("").shown
    assert plan("/home/alice/").digest == plan("").digest
    assert plan("/home/alice/").data.path == "/home/alice/d.npz"  # type: ignore[union-attr]  # it is npz
    assert "alice" not in str(plan("/home/alice/").shown)


def test_the_line_that_reproduces_names_files_alone() -> None:
    given = {"--data": Path("/home/alice/d.npz"), "--dense": Path("/home/alice/dense.onnx"), "--bounds": (0.0, 1.0)}
    options: dict[str, Any] = defaultdict(lambda: None, given)
    artifact = Path("/home/alice/a.onnx")
    expected = "--artifact a.onnx --data d.npz --dense dense.onnx --bounds 0 1"
    assert " ".join(words_of_options(artifact, options)) == expected
    assert plan_of_options(artifact, options).candidates["a"].file == "/home/alice/a.onnx"


def test_why_something_is_missing_names_no_folder(tmp_path: Path) -> None:
    raw = {
        "data": {"kind": "digits"},
        "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 1}},
        "candidates": {"int8": "int8"},
        "attacks": ["membership"],
    }
    plan = Plan.model_validate(raw)
    suite = Suite(plan, resolve(plan, tmp_path))
    name, gone = suite.model_cell("int8"), suite.model_cell("dense")
    outcome = Outcome(
        failed={name: "OSError: '/home/alice/x' is gone"}, unavailable={gone: "no /opt/alice/lib.so here"}
    )
    with Store(tmp_path) as store:
        results = results_of(suite, store, outcome, "")
    assert results.why(name) == "failed: OSError: 'x' is gone"
    assert results.why(gone) == "no lib.so here"
