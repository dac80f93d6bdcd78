"""The schema of audit.json: rows with ranges, and the exported JSON schema that says the same to other programs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from synthetic_audit import synthetic_audit

import crushproof
from crushproof.audit.schema.file_rows import LayerRounding
from crushproof.audit.schema.json_schema import json_schema
from crushproof.audit.schema.read import read_audit
from crushproof.audit.schema.rows import SCHEMA
from crushproof.targets.errors import UnsafeInput

DOCS = Path(crushproof.__file__).parent / "docs"


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """An audit.json as JSON values, with draws, groups, gates and times among its rows."""
    audit: dict[str, Any] = json.loads(synthetic_audit().model_dump_json(by_alias=True))
    return {
        **audit,
        "candidates": [audit["candidates"][place] for place in (0, 3, 13)],
        "findings": [audit["findings"][place] for place in (0, 4)],
    }


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
    "candidates.2.draws.0.draw": (-1, "greater than or equal to 0"),
    "candidates.2.draws.0.figures": ({"accuracy": 0.5}, "Input should be an object"),
    "candidates.2.draws.1.figures.robust_accuracy.n": (0, "greater than or equal to 1"),
    "candidates.1.footprint.energy_memory_share": (1.01, "less than or equal to 1"),
    "candidates.1.footprint.payload_bytes": (0, "greater than or equal to 1"),
    "candidates.1.certificate.label_agreement": (-0.1, "greater than or equal to 0"),
    "candidates.1.statement": ({"epsilon": [1]}, "valid string"),
    "findings.1.who_is_hit.0.n": ("many", "valid integer"),
    "findings.1.who_is_hit.0": ({"name": "7", "estimate": 0.5, "n": 30}, "Field required"),
    "findings.1.curves.worst case.0.x": (1e200, "less than or equal to"),
    "metrics.robust_accuracy.title": ("", "at least 1 character"),
    "risks.evasion.chart.x": ("e" * 81, "at most 80 characters"),
    "findings.1.queries": (-1, "greater than or equal to 0"),
    "findings.1.quantities.0.n": (0, "greater than or equal to 1"),
    "findings.1.transfers.0.estimate": (1.2, "less than or equal to 1"),
    "findings.1.fragile.ids": ([], "at least 1 item"),
    "findings.1.changes.0.p_value": (1.2, "less than or equal to 1"),
    "data.members": (-5, "greater than or equal to 0"),
    "environment.wall_seconds": (-1.0, "greater than or equal to 0"),
    "environment.machine.cores": (None, "valid string"),
}
CONTRADICTIONS = {  # what JSON Schema cannot say
    "findings.1.who_is_hit.0.low": (0.99, "lies outside its interval"),
    "findings.1.curves.worst case.1.low": (0.99, "lies outside its interval"),
    "findings.1.parts.0.high": (0.01, "lies outside its interval"),
    "findings.1.quantities.0.low": (0.2, "lies outside its interval"),
    "findings.1.quantities.0.above": (None, "says which was the largest"),
    "findings.1.quantities.1.value": (None, "has a value"),
    "findings.1.transfers.0.low": (0.99, "lies outside its interval"),
    "findings.1.fragile.count": (2, "more ids than records"),
    "findings.1.estimate.estimate": (0.99, "lies outside its interval"),
}


@pytest.mark.parametrize(
    ("path", "value", "words"), [(p, *told) for p, told in {**OUT_OF_RANGE, **CONTRADICTIONS}.items()]
)
def test_a_value_out_of_range_is_refused_in_one_sentence(
    values: dict[str, Any], path: str, value: Any, words: str, tmp_path: Path
) -> None:
    (tmp_path / "audit.json").write_text(json.dumps(changed(values, path, value)))
    with pytest.raises(UnsafeInput) as refused:
        read_audit(tmp_path)
    assert words in str(refused.value)
    assert path.rpartition(".")[0] in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_the_exported_schema_is_current() -> None:
    exported = json.loads((DOCS / "audit.schema.json").read_text())
    assert exported == json_schema(), "run: crushproof schema > docs/audit.schema.json"
    assert exported["properties"]["schema"]["const"] == SCHEMA
    assert SCHEMA.endswith(f"/{exported['version']}")
    assert exported["$id"].endswith(f":{exported['version']}")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("policy.0.rule", "nope", "'nope' is not among `metrics`"),
        ("candidates.2.draws.0.figures", {"nope": {"estimate": 0, "low": 0, "high": 0, "n": 1}}, "'nope' is not among"),
        ("metrics.accuracy.better", "lower", "says of accuracy that lower is better"),
        ("metrics.robust_accuracy.name", "auc", "under another name than its own"),
        ("risks.evasion.name", "other", "under another name than its own"),
    ],
)
def test_what_an_audit_names_it_explains(
    values: dict[str, Any], path: str, value: Any, words: str, tmp_path: Path
) -> None:
    (tmp_path / "audit.json").write_text(json.dumps(changed(values, path, value)))
    with pytest.raises(UnsafeInput, match=words):
        read_audit(tmp_path)


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads((DOCS / "audit.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_exported_schema_takes_an_audit_and_refuses_what_the_models_refuse(
    values: dict[str, Any], validator: Any
) -> None:
    assert not list(validator.iter_errors(values))
    wrong = {**{path: value for path, (value, _) in OUT_OF_RANGE.items()}, "findings.0.verdict": "fine", "seed": "x"}
    for path, value in wrong.items():
        (error, *_) = validator.iter_errors(changed(values, path, value))
        assert ".".join(str(step) for step in error.absolute_path)[: len(path)].startswith(path.rsplit(".", 2)[0])
    for more in ({"more": 1}, {"schema": "crushproof.audit/9"}):
        assert list(validator.iter_errors({**values, **more}))


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
        "misscaled": 3,
    }
    assert LayerRounding.model_validate(row).model_dump(mode="json") == row
    for wrong in (
        {"nearest": 601},
        {"beyond_zero": 11},
        {"bias_off": 11},
        {"misscaled": 11},
        {"bits": 0},
        {"scale_kind": "per row"},
    ):
        with pytest.raises(ValidationError):
            LayerRounding.model_validate({**row, **wrong})
