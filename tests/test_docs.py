"""The files that the documentation shows: installed as it says, they run, and are what their pages say."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from evasion_cases import case_of, survivors
from torch import nn

import crushproof
from crushproof.attacks.access import Ledger
from crushproof.attacks.attack import ATTACKS
from crushproof.attacks.evasion.engine import PERTURBERS, Search
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.audit.catalogue import PLUG_IN, catalogue
from crushproof.audit.cli import app
from crushproof.audit.doctor import examine
from crushproof.audit.exit_codes import EXIT_CODES
from crushproof.audit.plan.plan import Plan, check_techniques
from crushproof.audit.run import run_audit
from crushproof.compression.recipe import RECIPES
from crushproof.defenses.defense import DEFENSES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.runtimes.runtime import RUNTIMES
from crushproof.targets.technique import Registry
from crushproof.training.ball import Ball

ROOT = Path(crushproof.__file__).parent
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES = {"momentum.py": 60, "powers_of_two.py": 60}  # the rest: 100
REGISTRIES: dict[str, Registry[Any]] = {
    "crushproof.attacks": ATTACKS,
    "crushproof.perturbers": PERTURBERS,
    "crushproof.recipes": RECIPES,
    "crushproof.defenses": DEFENSES,
    "crushproof.runtimes": RUNTIMES,
}
PLAN: dict[str, Any] = {
    "name": "one of each",
    "data": {"kind": "digits"},
    "model": {
        "architecture": "crushproof.training.networks:digits_mlp",
        "training": {"epochs": 2, "batch_size": 128, "learning_rate": 1e-2},
    },
    "candidates": {"shifts": {"recipe": {"kind": "powers-of-two", "exponents": 1}, "defense": "early-stopping"}},
    "attacks": [
        "gaussian-noise",
        {"kind": "evasion", "epsilon": 0.1, "records": 20, "parts": [{"kind": "ni-fgsm", "steps": 5}]},
    ],
    "runtimes": ["onnx-reference"],
    "policy": {"changes": {"noisy_accuracy": -0.02}},
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """docs/examples as an installed package; gives its kinds by entry point group."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    about = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line for group, kinds in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in kinds.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    assert groups.keys() == REGISTRIES.keys()
    for registry in REGISTRIES.values():
        known = dict(registry.kinds())
        monkeypatch.setattr(registry, "_classes", known)
        monkeypatch.setattr(registry, "_folded", dict(known))
        monkeypatch.setattr(registry, "_complete", False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return {group: list(kinds) for group, kinds in groups.items()}


def test_every_example_is_short_and_in_catalogue_and_doctor(installed: dict[str, list[str]]) -> None:
    entries = {entry.kind: entry for entry in catalogue() if entry.sort != PLUG_IN}
    for group, kinds in installed.items():
        for kind in kinds:
            cls = REGISTRIES[group].kinds()[kind]
            assert [one.name for one in entries[kind].figures] == ["noisy_accuracy"] * (kind == "gaussian-noise")
            assert entries[kind].summary == (cls.__doc__ or "").partition("\n")[0]
            assert all(parameter.description for parameter in entries[kind].parameters), kind
    rows = [(check.state, check.what, check.words) for check in examine(EXAMPLES)]
    brought = {(what, words.rpartition(" ")[2].strip("()")) for state, what, words in rows if state == "ok"}
    assert {(kind, group) for group, kinds in installed.items() for kind in kinds} <= brought
    assert sum(what == "onnx-reference" for _, what, _ in rows) == 2, "a runtime has a row of its own too"
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text().splitlines()) <= LINES.get(file.name, 100), file.name


def test_an_audit_with_nothing_but_examples(installed: Any, tmp_path: Path) -> None:
    """Cells, findings, gates, a section and a chart of the report: all of it without an edit in ours."""
    audit = run_audit(Plan.model_validate(PLAN), Path(), tmp_path / "out", workers=0)
    findings = {finding.id: finding for finding in audit.findings}
    shifts = findings["shifts/gaussian-noise"]
    assert (shifts.metric, shifts.risk, shifts.verdict) == ("noisy_accuracy", "noise", "fail"), (
        "one exponent is too few"
    )
    assert shifts.estimate is not None
    assert shifts.estimate.n == audit.data.evaluation
    assert [point.x for point in shifts.curves["accuracy"]] == [0.1, 0.2, 0.4]
    assert audit.verdict == "fail"
    assert "accuracy under noise" in audit.deciding[0]
    assert findings["shifts/evasion"].parts[0].name == "ni-fgsm"
    rows = {candidate.name: candidate for candidate in audit.candidates}
    assert rows["shifts"].recipe_words == "weights rounded to powers of two, 1 per layer"
    assert rows["shifts"].footprint.payload_bytes < rows["dense"].footprint.payload_bytes / 7
    assert rows["shifts"].defense_words == "early stopping after 50% of the epochs"
    (runtime,) = rows["shifts"].runtimes
    assert runtime.label_agreement == 1
    assert 0 < runtime.max_logit_difference < 1e-3, "another implementation"
    text = (tmp_path / "out" / "report.html").read_text()
    for words in (
        "Does a bad sensor break the model?",
        "Accuracy under noise",
        "standard deviation",
        "powers of two, 1 per layer",
    ):
        assert words in text


def test_readme_knows_every_command_and_every_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = [one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None]
    assert len(commands) > 7
    assert [one for one in commands if f"`crushproof {one}" not in readme] == []
    table = readme.partition("### Exit codes")[2].split("##")[0]
    codes = {int(code) for code in re.findall(r"\d+", table.splitlines()[2])}
    assert codes == EXIT_CODES.keys()


def test_no_link_leads_nowhere() -> None:
    """Of the pages that are read in the repository; mkdocs checks its own, those made while it builds included."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_plan_on_a_page_is_one(installed: Any, page: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks or page.parent.name != "adding" or page.name == "index.md"
    for block in blocks:
        plan = Plan.model_validate({**PLAN, **yaml.safe_load(block)})
        check_techniques(plan)


def test_every_example_is_shown_on_a_page() -> None:
    """By the line that mkdocs knows: another spelling stays on the page as it is, and nothing complains."""
    pages = "\n".join(page.read_text() for page in PAGES)
    shown = re.findall(r'^--8<-- "([^"]+)"$', pages, re.MULTILINE)
    assert sorted(shown) == sorted(file.name for file in EXAMPLES.iterdir() if file.is_file())


def test_the_picture_of_the_parts_is_current() -> None:
    spec = importlib.util.spec_from_file_location("draw_parts", ROOT / "docs" / "draw_parts.py")
    assert spec is not None
    assert spec.loader is not None
    draw_parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_parts)
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert (ROOT / "docs" / "parts.svg").read_text() == draw_parts.picture(pyproject), "run: python docs/draw_parts.py"
    inside = 'type = "layers"\ncontainers = ["crushproof.new"]\nlayers = ["top", "(left) | middle : right"]'
    rooms = draw_parts.contracts(f"{pyproject}\n[[tool.importlinter.contracts]]\n{inside}")
    assert rooms["crushproof"][0] == ["audit"]
    assert rooms["crushproof.new"] == [["top"], ["left", "middle", "right"]]


def search_of(data: Data, module: nn.Module, part: Any, n: int = 60) -> Search:
    case = case_of(data, module, evaluation=data.evaluation.take(torch.arange(n)), ids=np.arange(n))
    search = Search(
        case.deployed, case.evaluation, case.ids, Ball("linf", 0.1, case.evaluation.x, case.bounds),
        among=torch.ones(n, dtype=torch.bool), seed=0, ledger=Ledger(),
    )  # fmt: skip
    part.perturb(search, case)
    search.close()
    return search


def test_momentum(installed: Any, digits: Data, dense: nn.Module) -> None:
    """Without momentum it is PGD, step for step; with it, it fools no fewer records of a model that PGD fools."""
    kind = PERTURBERS.kinds()["ni-fgsm"]
    pgd, without = (search_of(digits, dense, part) for part in (Pgd(steps=10), kind(steps=10, decay=0)))
    assert torch.equal(pgd.fooled, without.fooled)
    torch.testing.assert_close(pgd.best[pgd.fooled], without.best[pgd.fooled], rtol=0, atol=0)
    assert 10 < pgd.fooled.sum() < 60
    case = case_of(digits, dense)
    assert survivors(case, kind(steps=10), "linf", 0.1) <= survivors(case, Pgd(steps=10), "linf", 0.1) + 5
    assert survivors(case, kind(steps=10), "l2", 0.6) < survivors(case, kind(steps=1), "l2", 0.6)
    one = search_of(digits, nn.Sequential(nn.Flatten(), ConstantHead()), kind(steps=3))
    assert one.flat.all(), "no gradient anywhere is told, not hidden"


class ConstantHead(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * x[:, :10].round() + torch.arange(10.0)


def test_powers_of_two(installed: Any) -> None:
    recipe = RECIPES.parse({"kind": "powers-of-two", "exponents": 4})
    layer = nn.Linear(6, 2)
    layer.weight.data = torch.tensor([[1.0, 0.72, 0.70, -0.3, 0.12, 0.0], [-1.4, 0.25, 0.06, 0.09, -0.5, 1e-9]])
    records = Records(torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64))
    before = layer.weight.clone()
    rounded = recipe.apply(nn.Sequential(layer), records, Bounds.of(0, 1), seed=0)[0]
    assert rounded.weight.tolist() == [[1, 1, 0.5, -0.25, 0.125, 0], [-1, 0.25, 0, 0.125, -0.5, 0]]
    assert torch.equal(layer.weight, before), "the module itself is left as it is"
    assert torch.equal(rounded.bias, layer.bias)
    assert not recipe.touches_records
    assert recipe.phrase == "weights rounded to powers of two, 4 per layer"
