"""Whoever can write into an output folder forges results with the right digests: each is thrown away and made anew.

What a form cannot tell from an honest result is one that is forged consistently, `not_applicable` in place of a whole
result among them: that takes computing it again, or the signature.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forged_cells import ARRAYS, BYTES, DOCUMENT, FOLDERS, MANIFEST, RESULTS, Parts

from crushproof.attacks.effort import Costs
from crushproof.attacks.membership import preparations
from crushproof.audit import resolved
from crushproof.audit.engine.cells import Cell, Result, cell_key, pack
from crushproof.audit.engine.driver import run
from crushproof.audit.engine.hearing import Hearing
from crushproof.audit.engine.progress import Silent
from crushproof.audit.engine.store import Store
from crushproof.audit.engine.work import forms_of
from crushproof.audit.findings.assemble import assemble
from crushproof.audit.plan.plan import Plan
from crushproof.audit.resolved import resolve_plan
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.environment import versions
from crushproof.audit.suite.suite import Suite
from crushproof.audit.verdict.policy import Policy
from crushproof.targets.errors import Incomplete, InputError
from crushproof.targets.form import Array
from crushproof.targets.serving.json_text import canonical_json
from crushproof.targets.steps import heard_by, kept

PLAN: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "npz", "path": "data.npz"},
    "model": {
        "architecture": "crushproof_tiny_net:net",
        "training": {"epochs": 20, "batch_size": 10, "learning_rate": 0.02},
    },
    "candidates": {"int8": "int8"},
    "attacks": [
        {"kind": "evasion", "epsilon": "auto", "records": 12, "parts": [{"kind": "pgd", "steps": 1}, "transfer"]},
        "membership",
        {"kind": "extraction", "budgets": [10], "least_steps": 1, "most_rounds": 1, "training": {"epochs": 1}},
        "churn",
    ],
    "shadows": {"training_free": 4, "trained": 2},
}
NET = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))\n"
TIMED = {"batch": 1, "threads": 1, "p50": 1.0, "p95": 2.0, "records_per_second": 1000.0}


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Finished:
    out: Path
    asked: Suite
    suite: Suite  # with what its probes decided
    findings: str

    @property
    def cells(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in (*self.asked.cells(), *self.suite.cells())}

    def key(self, name: str) -> str:
        """Of the cell of this name, or of the one whose name begins so, if that is open."""
        begun = [cell.key for cell in self.suite.cells() if name[-1] == "/" and cell.name.startswith(name)]
        (key,) = begun or [self.cells[name].key]
        return key

    def store(self) -> Store:
        """As another process has it, which has read nothing yet."""
        store = Store(self.out)
        store.expect(forms_of(self.cells.values()))
        return store


def audited(suite: Suite, store: Store, progress: Silent) -> tuple[list[str], str]:
    """Computes all but what measures this machine; what was computed, and the audit."""
    timing = ("memory/", "latency")
    cells = [cell for cell in suite.cells() if not cell.name.startswith(timing)]
    outcome = run(suite, store, cells=cells, progress=progress)
    assert not outcome.failed
    audit = assemble(suite, store, outcome, Policy(name="none"), "crushproof audit")
    return outcome.computed, audit.model_dump_json(exclude={"environment"})


@pytest.fixture(scope="module", autouse=True)
def _no_prices() -> Iterator[None]:
    """What a training costs decides nothing here, nor do the forests of the blind baseline: both take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparations, "blind_scores", lambda records, is_member, seed: np.linspace(0, 1, len(is_member)))
        patch.setattr(resolved, "preflight", lambda *_: SimpleNamespace(notes=(), costs=Costs()))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("forged")
    generator = np.random.default_rng(0)
    records: dict[str, np.ndarray] = {}
    for split, n in (("train", 24), ("test", 36)):
        y = np.arange(n) % 2
        x = np.where(y[:, None] == 1, 0.7, 0.3) + 0.15 * generator.standard_normal((n, 4))
        records |= {f"x_{split}": x.clip(0, 1).astype(np.float32), f"y_{split}": y}
    np.savez(folder / "data.npz", **records)
    (folder / "crushproof_tiny_net.py").write_text(NET)
    plan = Plan.model_validate(PLAN)
    with Store(folder / "out") as store:
        first = Suite(plan, resolve(plan, folder))
        suite = resolve_plan(first, store, workers=1, started=0.0, progress=Silent())
        _, findings = audited(suite, store, Silent())
        store.put(suite.cell("memory/int8").key, Result(document={"peak_bytes": 5}))
        store.put(suite.cell("latency").key, Result(document={"latency": {"int8": [TIMED]}}))
    return Finished(folder / "out", first, suite, findings)


@pytest.fixture
def honest(finished: Finished, tmp_path: Path) -> Finished:
    """A copy of the finished audit."""
    shutil.copytree(finished.out, tmp_path / "out")
    return replace(finished, out=tmp_path / "out")


def write(folder: Path, parts: Parts) -> None:
    """Puts these parts in place of a cell's, with their digests."""
    parts[MANIFEST] = canonical_json(
        {name: hashlib.sha256(raw).hexdigest() for name, raw in parts.items() if name != MANIFEST}
    )
    shutil.rmtree(folder)
    for name, raw in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


def forge(store: Store, key: str, change: Callable[[Any, Any, Any], None]) -> None:
    known = store.get(key)
    forged = Result(dict(known.arrays), deepcopy(known.document), dict(known.files))
    change(forged.document, forged.arrays, forged.files)
    write(store.path(key), pack(forged))


def test_every_forged_result_is_damage(honest: Finished) -> None:
    wrong, plain = {}, Store(honest.out)  # which knows no forms, and has each result at hand
    for name, (cell, change, word) in RESULTS.items():
        key = honest.key(cell)
        before = plain.parts(key)
        forge(plain, key, change)
        store = honest.store()
        if store.has(key) or word not in store.damaged[key] or store.path(key).exists():
            wrong[name] = store.damaged.get(key, "taken for honest")
        plain.drop(key)
        plain.receive(key, before)
    assert wrong == {}
    assert all(honest.store().has(honest.key(cell)) for cell, _, _ in RESULTS.values())
    assert len(RESULTS) > 40


def test_bytes_that_nobody_wrote(honest: Finished) -> None:
    key = honest.key("replay/")
    before = honest.store().parts(key)
    assert before.keys() == {DOCUMENT, ARRAYS, MANIFEST}
    for name, change in BYTES.items():
        parts = dict(before)
        change(parts)
        store = Store(honest.out)  # whatever its form
        write(store.path(key), parts)
        assert not store.has(key), name
        assert key in store.damaged, name
        store.receive(key, before)


def test_what_lies_where_a_cell_should(honest: Finished, tmp_path: Path) -> None:
    key = honest.key("replay/")
    before, folder = honest.store().parts(key), Store(honest.out).path(key)
    for name, change in FOLDERS.items():
        elsewhere = tmp_path / name
        elsewhere.mkdir()
        change(folder, elsewhere)
        there = sorted(elsewhere.rglob("*"))
        store = honest.store()
        assert not store.has(key), name
        assert key in store.damaged, name
        store.receive(key, before)
        assert honest.store().parts(key) == before, name
        assert sorted(elsewhere.rglob("*")) == there, name


def test_an_audit_of_forged_cells_gives_the_same_findings(honest: Finished) -> None:
    """Every sort of cell forged at once, and the run goes on as if they had never been there."""
    forged = {}
    for cell, change, _ in RESULTS.values():
        if (key := honest.key(cell)) not in forged and not cell.startswith(("memory", "latency", "blind")):
            forge(honest.store(), key, change)
            forged[key] = next(one.name for one in honest.cells.values() if one.key == key)
    heard = Heard()
    with honest.store() as store:
        suite = resolve_plan(honest.asked, store, workers=1, started=0.0, progress=heard)
        assert suite.plan == honest.suite.plan
        computed, findings = audited(suite, store, heard)
    probed = {"radius/linf", "train/dense", "candidate/dense"}
    assert {*computed} | probed == {*forged.values()} | probed
    assert findings == honest.findings
    for name in forged.values():
        assert any(note.startswith(f"the stored result of {name} was damaged (") for note in heard.notes), name
    with honest.store() as store:
        assert audited(honest.suite, store, heard) == ([], findings)


@pytest.mark.parametrize("twins", [3, {"int8": "long"}, {"int8": []}])
def test_forged_costs_are_decided_anew(honest: Finished, twins: object) -> None:
    subject = honest.asked.subject
    key = cell_key("resolved", honest.asked.plan.digest, subject.identity, subject.data.digest, versions())
    forge(honest.store(), key, lambda document, arrays, files: document["costs"].update(twins=twins))
    with honest.store() as store:
        suite = resolve_plan(honest.asked, store, workers=1, started=0.0, progress=Silent())
    assert suite.plan == honest.suite.plan
    assert suite.costs.twins == {}


PART = {"x": Array("float32", (3,), low=0.0)}


@pytest.mark.parametrize(
    "forged",
    [
        {"x": np.zeros(3)},
        {"x": np.zeros(4, np.float32)},
        {"x": np.array([0, 1, np.nan], np.float32)},
        {"x": -np.ones(3, np.float32)},
        {"y": np.zeros(3, np.float32)},
        {"x": np.zeros(3, np.float32), "y": np.zeros(3)},
        {},
    ],
)
def test_a_forged_part_is_computed_anew(tmp_path: Path, forged: dict[str, np.ndarray]) -> None:
    store, cell = Store(tmp_path), Cell("one", cell_key("one"))
    store.keep(cell.key, "a", forged)
    hearing = Hearing(cell, store, lambda step: None)
    with heard_by(hearing):
        found = kept("a", lambda: {"x": np.ones(3, np.float32)}, PART)
    assert found["x"].tolist() == [1, 1, 1]
    assert len(hearing.notes) == 1
    again = Hearing(cell, Store(tmp_path), lambda step: None)
    with heard_by(again):
        kept("a", pytest.fail, PART)
    assert again.notes == []


def test_a_part_under_the_name_of_another(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), Cell("one", cell_key("one"))
    store.keep(cell.key, "a", {"x": np.zeros(3, np.float32)})
    store._part(cell.key, "a").rename(store._part(cell.key, "b"))
    hearing = Hearing(cell, store, lambda step: None)
    with heard_by(hearing):
        assert kept("b", lambda: {"x": np.ones(3, np.float32)}, PART)["x"].sum() == 3
    assert len(hearing.notes) == 1


def _index(*lines: str) -> Callable[[Path], None]:
    def make(private: Path) -> None:
        with sqlite3.connect(private / "index.sqlite") as database:
            for line in lines:
                database.execute(line)

    return make


def _journal(**said: Any) -> Callable[[Path], None]:
    line = {"event": "finished", "key": cell_key("x"), "name": "a", "phase": "p", "seconds": 2.0, "at": "now"}
    return lambda private: _append(private, json.dumps(line | said).encode())


def _append(private: Path, line: bytes) -> None:
    with (private / "journal.jsonl").open("ab") as stream:
        stream.write(line + b"\n")


LEDGERS: dict[str, Callable[[Path], object]] = {
    "text for seconds": _index("UPDATE cells SET seconds = 'abc'"),
    "negative seconds": _index("UPDATE cells SET seconds = -1"),
    "endless seconds": _index("UPDATE cells SET seconds = 9e999"),
    "a phase of nothing": _index("UPDATE cells SET phase = NULL"),
    "other columns": _index("DROP TABLE cells", "CREATE TABLE cells (key TEXT)"),
    "a view without end": _index(
        "DROP TABLE cells",
        "CREATE VIEW cells AS WITH RECURSIVE n(key) AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT * FROM n",
    ),
    "a trigger": _index("CREATE TRIGGER t AFTER INSERT ON cells BEGIN DELETE FROM cells; END"),
    "a piped index": lambda private: (private / "index.sqlite").unlink() or os.mkfifo(private / "index.sqlite"),
    "a deep line": lambda private: _append(private, b"[" * 100_000),
    "a key that is a list": _journal(key=[]),
    "seconds that are text": _journal(seconds="2"),
    "no number": _journal(seconds=float("nan")),
    "a name beyond Unicode": _journal(name="\ud800"),
    "a piped journal": lambda private: (private / "journal.jsonl").unlink() or os.mkfifo(private / "journal.jsonl"),
    "a piped lock": lambda private: (private / "lock").unlink() or os.mkfifo(private / "lock"),
    "a link among half-written cells": lambda private: (private / "temporary" / "x").symlink_to(private.parent),
}


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_that_nobody_wrote(tmp_path: Path, name: str) -> None:
    cell = Cell("a", cell_key("x"), phase="p")
    (tmp_path / "mine").write_text("")
    with Store(tmp_path) as store:
        store.put(cell.key, Result())
        store.record(cell, 2.0)
        store.log("finished", cell, seconds=2.0)
    LEDGERS[name](store.private)
    with Store(tmp_path) as store:
        assert store.has(cell.key)
        assert store.usual_seconds() in ({"p": 2.0}, {})
        assert store.seconds([cell.key]) in ({"p": 2.0}, {})
        store.log("started", cell)
        store.keep_failure(cell, "trace")
        assert store.journal()[-1]["event"] == "started"
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["cells", "parts", "temporary", "lock", "journal.jsonl", "index.sqlite", "failures"])
@pytest.mark.parametrize("link", [True, False])
def test_a_link_in_the_store_and_a_folder_for_a_file(tmp_path: Path, name: str, link: bool) -> None:
    with Store(tmp_path / "out") as store:
        path = store.private / name
    folder = path.is_dir() or name == "failures"
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    if link:
        path.symlink_to(tmp_path, target_is_directory=folder)
    elif folder:
        path.write_text("x")
    else:
        path.mkdir()
    cell = Cell("a", cell_key("x"))
    if name == "failures" or (link and not folder):
        with Store(tmp_path / "out") as store:  # it is made anew for every run, in place of the link
            store.keep_failure(cell, "trace")
            assert not path.is_symlink()
        assert {entry.name for entry in tmp_path.iterdir()} == {"out"}
        return
    with pytest.raises((Incomplete, InputError), match=name), Store(tmp_path / "out") as store:
        store.log("started", cell)
