"""Records in rounds until the gates are decided, and the plan that was resolved before the first attack."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from crushproof.audit.engine.cells import Cell
from crushproof.audit.engine.progress import Silent
from crushproof.audit.engine.store import Store
from crushproof.audit.findings.finding_rows import cells_of
from crushproof.audit.forecast import clock, duration, forecast
from crushproof.audit.plan.plan import Plan, load_plan, parse_plan
from crushproof.audit.resolved import FILE, resolve_plan, resolved_text
from crushproof.audit.run import run_audit
from crushproof.audit.schema.rows import Audit, Finding
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite
from crushproof.targets.errors import InputError

pytestmark = pytest.mark.usefixtures("undrawn")
RAW: dict[str, Any] = {
    "name": "rounds",
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 3}},
    "candidates": {
        "int8": "int8",
        "prune80": {"kind": "prune", "sparsity": 0.8},
        "prune50": {"kind": "prune", "sparsity": 0.5},
    },
    "attacks": [{"kind": "evasion", "parts": [{"kind": "pgd", "steps": 4}]}],
    "policy": {"changes": {"robust_accuracy": -0.05}},
    "budget": "10 min",
}


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.names: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, cell: Cell, seconds: float) -> None:
        self.names.append(cell.name)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Heard, Path]:
    out = tmp_path_factory.mktemp("rounds")
    heard = Heard()
    return run_audit(Plan.model_validate(RAW), Path(), out, workers=0, progress=heard), heard, out


def by_id(audit: Audit) -> dict[str, Finding]:
    return {row.id: row for row in audit.findings}


def test_rounds_end_where_the_gates_are_decided(done: tuple[Audit, Heard, Path]) -> None:
    audit, heard, _ = done
    found = by_id(audit)
    assert [found[f"{name}/evasion"].verdict for name in ("int8", "prune80")] == ["pass", "fail"]
    for name in ("int8", "prune80"):
        row = found[f"{name}/evasion"]
        assert row.estimate is not None
        assert row.estimate.n == 200
        assert [cell for cell in heard.names if cell.endswith(f"/{name}") and cell.startswith("attack/")] == [
            f"attack/evasion@200/{name}"
        ]
    gate = next(gate for gate in audit.policy if gate.candidate == "prune50")
    row = found["prune50/evasion"]
    assert row.estimate is not None
    assert gate.verdict != "inconclusive" or row.estimate.n == 600  # all there are
    assert "rounds (of 200, 400, 600)" in " ".join(row.notes)


def test_what_fools_one_model_is_asked_of_others_in_whatever_round(done: tuple[Audit, Heard, Path]) -> None:
    audit, heard, _ = done
    names = [row.name for row in audit.candidates]
    for name in names:
        row = by_id(audit)[f"{name}/evasion"]
        assert [one.model for one in row.transfers] == [other for other in names if other != name]
        assert f"asked-of-others/evasion@200/{name}" in heard.names
    assert "asked-of-others/evasion@400/int8" not in heard.names, "no model is drawn into another's round"


def test_the_resolved_plan_gives_the_same_findings(done: tuple[Audit, Heard, Path], tmp_path: Path) -> None:
    audit, heard, out = done
    assert sum(note.startswith("forecast: about") for note in heard.notes) == 1
    plan = load_plan(out / FILE)
    assert plan.budget is None
    assert plan.digest == audit.plan_digest
    again = Heard()
    shutil.copytree(out / "evidence", tmp_path / "evidence")
    other = run_audit(plan, Path(), tmp_path, workers=0, progress=again)
    assert again.names == [], "the very same cells, whose keys follow from all that they are made of"
    assert other.model_dump(exclude={"environment"}) == audit.model_dump(exclude={"environment"})


def test_a_second_run_takes_what_the_first_decided(done: tuple[Audit, Heard, Path]) -> None:
    audit, _, out = done
    again = Heard()
    repeated = run_audit(Plan.model_validate(RAW), Path(), out, workers=0, progress=again)
    assert again.names == []
    assert repeated.model_dump(exclude={"environment"}) == audit.model_dump(exclude={"environment"})


def test_one_finding_alone_goes_through_its_rounds(done: tuple[Audit, Heard, Path]) -> None:
    audit, _, out = done
    alone = run_audit(Plan.model_validate(RAW), Path(), out, workers=0, only="prune50/evasion")
    assert alone.findings[0].estimate == by_id(audit)["prune50/evasion"].estimate


@pytest.mark.parametrize(("budget", "shadows", "most"), [("20 h", 16, 1600), ("1 s", 8, 200)])
def test_sizes_follow_from_the_budget(budget: str, shadows: int, most: int, tmp_path: Path) -> None:
    raw = RAW | {"budget": budget, "attacks": [RAW["attacks"][0] | {"epsilon": 0.1}, "membership"]}
    raw["model"] = RAW["model"] | {"training": {"epochs": 1}}
    plan = Plan.model_validate(raw)
    heard = Heard()
    with Store(tmp_path) as store:
        began = time.monotonic()
        suite = resolve_plan(Suite(plan, resolve(plan, Path())), store, workers=2, started=began, progress=heard)
    assert suite.plan.shadows.training_free == shadows
    assert suite.plan.attacks[0]["most_records"] == most
    assert any("longer than its budget" in note for note in heard.notes) == (budget == "1 s")
    assert parse_plan(resolved_text(suite.plan)).digest == suite.plan.digest


def test_a_forecast_hands_out_the_cells_as_the_schedule_does() -> None:
    cells = [Cell("a", "a", (), "", 4.0), Cell("b", "b", ("a",), "", 4.0), Cell("c", "c", (), "", 2.0)]
    assert clock(cells, 1) == 10
    assert clock(cells, 2) == 8
    assert clock([*cells, Cell("d", "c", (), "", 2.0)], 1) == 10  # of one key: done once
    third = [Cell(name, name, ("a",), "", 4.0) for name in ("d", "e")]
    assert clock([*cells, *third], 2) == 12  # three equal pieces on two workers, though half of the sum is 9
    assert clock([*cells, Cell("f", "f", ("c",), "", 3.0, alone=True)], 3) == 8 + 3  # after all others
    assert [duration(seconds) for seconds in (0.2, 80, 200, 7200)] == ["1 s", "80 s", "3 min", "2.0 h"]


def test_later_rounds_cost_what_they_add() -> None:
    suite = Suite(Plan.model_validate(RAW), resolve(Plan.model_validate(RAW), Path()))
    weight = {cell.name: cell.weight for cell in suite.cells()}
    assert 0 < weight["attack/evasion@400/int8"] <= weight["attack/evasion@200/int8"]
    alone = {cell.name for cell in suite.closure(cells_of(suite, "int8/evasion", {}))}
    assert {"candidate/int8", "candidate/dense"} <= alone
    assert "candidate/prune80" not in alone, "whom else it fools is no matter of one finding"
    told = forecast(suite, (), 2)
    assert told.likely < told.most
    assert told.trainings == 1


@pytest.mark.parametrize("budget", ["0 min", "10", "ten minutes", 10, "-1 s", "1 day"])
def test_a_budget_is_a_time(budget: Any) -> None:
    with pytest.raises((InputError, ValueError), match="15 min"):
        Plan.model_validate(RAW | {"budget": budget})
