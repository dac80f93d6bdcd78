"""Hostile inputs of whoever reads finished models, weights, audits and signatures; see test_corpus.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hostile_audits
import hostile_models
import hostile_signatures
import hostile_weights
import pytest
from hostile_case import faults_of_all, thinned
from hostile_child import shared

import crushproof
from crushproof.audit.schema.read import read_audit
from crushproof.targets.untrusted import model_file

SURFACES = {  # how many of them are tried, and how many that is, at least
    "audits": (hostile_audits.cases, 0.2, 100),
    "weights": (hostile_weights.cases, 0.5, 50),
    "models": (hostile_models.cases, 0.4, 40),
    "signatures": (hostile_signatures.cases, 0.5, 30),
}


@pytest.fixture(scope="module", autouse=True)
def _quick_sandbox() -> Iterator[None]:
    """One process reads all models, a fork for each, in place of one that starts anew for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "run_limited", shared(Path(crushproof.__file__).parent))
        yield


@pytest.mark.parametrize("surface", SURFACES)
def test_every_input_ends_as_it_must(surface: str, tmp_path: Path) -> None:
    make, share, least = SURFACES[surface]
    cases = thinned(make(), share)
    assert faults_of_all(cases, tmp_path) == []
    assert len(cases) >= least


def test_what_was_changed_was_good(tmp_path: Path) -> None:
    """Else any reader would refuse anything that is made of it."""
    (tmp_path / "audit.json").write_text(json.dumps(hostile_audits.audit()))
    read_audit(tmp_path)
    hostile_weights.weights(hostile_weights.written(hostile_weights.good()[0]))(tmp_path)()
    for model in (hostile_models.good(), hostile_models.quantised()):
        hostile_models.finished(model.SerializeToString(), ".onnx")(tmp_path)()
