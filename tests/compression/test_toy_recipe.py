"""A recipe that another package brings is made, attacked, judged and reported as ours are, and is one short file."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from crushproof.audit.plan.plan import Plan
from crushproof.audit.run import run_audit
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.layers.edit import REBUILDABLE
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError
from crushproof.training.networks import digits_mlp

TOY = Path(__file__).with_name("toy_recipe.py")
PLAN: dict[str, Any] = {
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 1}},
    "candidates": {"two": {"kind": "chain", "steps": ["share", "three-values"]}},
    "attacks": [
        {"kind": "evasion", "epsilons": [0.05], "records": 30, "parts": [{"kind": "pgd", "steps": 4}]},
    ],
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy's module, as a package installed beside ours brings it."""
    for name, value in (("_classes", dict(RECIPES.kinds())), ("_folded", {}), ("_complete", False)):
        monkeypatch.setattr(RECIPES, name, value)
    folder = tmp_path / "site"
    metadata = folder / "toy-1.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(TOY, folder)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[crushproof.recipes]\nthree = toy_recipe:Three\n")
    monkeypatch.syspath_prepend(str(folder))
    known = set(REBUILDABLE)
    importlib.invalidate_caches()
    RECIPES.kinds()
    yield sys.modules["toy_recipe"]
    for layer in set(REBUILDABLE) - known:
        del REBUILDABLE[layer]
    del sys.modules["toy_recipe"]


def test_it_is_one_short_file() -> None:
    assert len(TOY.read_text().splitlines()) <= 60


def test_its_layer_is_stored_and_rebuilt_without_a_pickle(installed: Any, digits: Data) -> None:
    assert digits.members is not None
    dense = digits_mlp().eval()
    made = installed.Three().apply(dense, digits.members, digits.bounds, seed=0)
    description, arrays = save_module(made)
    assert {"toy_recipe.ThreeValued"} <= {entry["type"] for entry in description}, "no name of ours hides another's"
    x = digits.non_members.x[:20]
    assert load_module(digits_mlp(), description, arrays)(x).equal(made(x))
    assert all(type(layer) is not nn.Linear for layer in made.modules())
    assert any(type(layer) is nn.Linear for layer in dense.modules()), "the model it was given is left as it is"


def test_it_is_audited_without_an_edit_in_ours(installed: Any, tmp_path: Path) -> None:
    audit = run_audit(Plan.model_validate(PLAN), tmp_path, tmp_path / "out", workers=0)
    rows = {row.name: row for row in audit.candidates}
    assert rows.keys() == {"dense", "two"}, audit.not_measured
    assert 0 < rows["two"].footprint.payload_bytes < rows["dense"].footprint.payload_bytes / 10
    assert rows["two"].certificate is not None
    assert rows["two"].verdict in ("pass", "fail", "inconclusive")
    found, _ = (finding for finding in audit.findings if finding.candidate == "two")  # the second: who fools it alone
    assert found.estimate is not None
    assert found.changes
    assert found.id in {gate.finding for gate in audit.policy}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "16 shared values per layer; then weights of three values" in report


def test_it_says_what_a_chain_must_know(installed: Any) -> None:
    with pytest.raises(InputError, match="three-values must be the last step"):
        RECIPES.parse({"kind": "chain", "steps": ["three-values", "share"]})
    with pytest.raises(InputError, match="three-values cannot follow dynamic-sparsity"):
        RECIPES.parse({"kind": "chain", "steps": ["dynamic-sparsity", "three-values"]})


def test_a_kind_gives_the_family_where_a_recipe_names_none(installed: Any) -> None:
    assert installed.Three.family == "Three values"
    families = {kind: recipe.family for kind, recipe in RECIPES.kinds().items()}
    assert families == {
        "chain": "Chains",
        "distill": "Distillation",
        "dynamic-sparsity": "Dynamic sparsity",
        "factorize": "Factorization",
        "limit-answers": "Limit answers",
        "mixed-precision": "Mixed precision",
        "noise-inputs": "Noise inputs",
        "prune": "Pruning",
        "quantize": "Quantization",
        "share": "Weight sharing",
        "three-values": "Three values",
        "transform-inputs": "Transform inputs",
        "vote-under-noise": "Vote under noise",
    }
    assert type("Finer", (RECIPES.kinds()["quantize"],), {}).family == "Quantization", "as its parent says"
