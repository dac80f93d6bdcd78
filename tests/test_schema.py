"""The schema of audit.json: rows with ranges, and the exported JSON schema that says the same to other programs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crushproof.audit.findings import LayerRounding
from crushproof.audit.plan import Plan
from crushproof.audit.reading import read_audit
from crushproof.audit.run import run_audit
from crushproof.targets.errors import InputError

PLAN: dict[str, Any] = {
    "name": "one of each row",
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 1}},
    "candidates": {"random": {"recipe": "int4", "defense": {"kind": "stochastic-rounding", "draws": 2}}},
    "attacks": [{"kind": "evasion", "epsilon": 0.1, "records": 40, "parts": [{"kind": "pgd", "steps": 1}]}],
    "policy": "robustness",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real audit.json as JSON values: draws, groups, curves, gates and times among its rows."""
    out = tmp_path_factory.mktemp("schema")
    run_audit(Plan.model_validate(PLAN), Path(), out, workers=0)
    values: dict[str, Any] = json.loads((out / "audit.json").read_text())
    assert len(values["candidates"][1]["draws"]) == 2
    assert len(values["findings"][1]["who_is_hit"]) > 5
    return values


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which one value is another."""
    result: Any = copy.deepcopy(values)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    inner = result
    for step in steps:
        inner = inner[step]
    assert last in inner or isinstance(last, int), path
    inner[last] = value
    return result  # type: ignore[no-any-return]  # JSON


OUT_OF_RANGE = {
    "candidates.0.accuracy.high": (1.5, "a share of records lies in [0, 1]"),
    "candidates.1.draws.0.draw": (-1, "greater than or equal to 0"),
    "candidates.1.draws.0.figures": ({"accuracy": 0.5}, "valid dictionary or instance of Estimate"),
    "candidates.1.draws.1.figures.robust_accuracy.n": (0, "greater than or equal to 1"),
    "candidates.1.footprint.energy_memory_share": (1.01, "less than or equal to 1"),
    "candidates.1.footprint.payload_bytes": (0, "greater than or equal to 1"),
    "candidates.1.certificate.label_agreement": (-0.1, "greater than or equal to 0"),
    "candidates.1.statement": ({"epsilon": [1]}, "valid string"),
    "findings.1.who_is_hit.0.n": ("many", "valid integer"),
    "findings.1.who_is_hit.0.low": (0.99, "lies outside its interval"),
    "findings.1.queries": (-1, "greater than or equal to 0"),
    "findings.1.changes.0.p_value": (1.2, "less than or equal to 1"),
    "data.members": (-5, "greater than or equal to 0"),
    "environment.wall_seconds": (-1.0, "greater than or equal to 0"),
    "environment.machine.cores": (None, "valid string"),
}


@pytest.mark.parametrize("path", OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_in_one_sentence(written: dict[str, Any], path: str, tmp_path: Path) -> None:
    value, words = OUT_OF_RANGE[path]
    (tmp_path / "audit.json").write_text(json.dumps(changed(written, path, value)))
    with pytest.raises(InputError) as refused:
        read_audit(tmp_path)
    assert words in str(refused.value)
    assert path.rpartition(".")[0] in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_the_rows_of_a_lineage_add_up() -> None:
    row = {
        "name": "head",
        "dense_name": "head.weight",
        "shape": [10, 64],
        "weights": 640,
        "bits": 8,
        "levels": "255 integers",
        "scale_kind": "per channel",
        "scale_words": "largest magnitude / 127",
        "nearest": 600,
        "other_neighbour": 30,
        "beyond": 10,
        "beyond_zero": 1,
        "worst_steps": 2.5,
        "biases": 10,
        "bias_off": 0,
    }
    assert LayerRounding.model_validate(row).model_dump(mode="json") == row
    for wrong in ({"nearest": 601}, {"beyond_zero": 11}, {"bias_off": 11}, {"bits": 0}, {"scale_kind": "per row"}):
        with pytest.raises(ValidationError):
            LayerRounding.model_validate({**row, **wrong})
