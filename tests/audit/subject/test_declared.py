"""From a plan or a call to data whose columns are known: what is declared arrives, and a mistake is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.categories import seen_unfit
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.audit.api import audit_model
from crushproof.audit.plan.plan import Plan, validated
from crushproof.audit.plan.yaml_text import Source
from crushproof.audit.subject.preflight import preflight
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite
from crushproof.targets.errors import InputError
from crushproof.targets.model import TorchTarget
from crushproof.training.loop import Training

NETS = """
from torch import nn

def build(features):
    return nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, 2))
"""


def plan_of(folder: Path, features: int, **data: Any) -> Plan:
    stream = np.random.default_rng(0)
    for part, n in (("train", 80), ("test", 60)):
        rows = [
            f"{stream.integers(18, 70)},{stream.random():.6f},{('red', 'green', 'blue')[stream.integers(3)]},{i % 2}"
            for i in range(n)
        ]
        (folder / f"{part}.csv").write_text("age,rate,colour,y\n" + "\n".join(rows) + "\n")
    (folder / "declared_nets.py").write_text(NETS)
    raw = {
        "name": "people",
        "data": {"kind": "csv", "train_path": "train.csv", "test_path": "test.csv", "label": "y", **data},
        "model": {"architecture": "declared_nets:build", "parameters": {"features": features}},
        "candidates": {"int8": "int8"},
        "attacks": ["evasion"],
    }
    return validated(Plan, raw, Source("plan"))


def test_a_plan_for_a_table_with_text_is_understood(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 5, immutable=["colour"], integer=["age"], bounds={"age": [18, 70]})
    subject = resolve(plan, tmp_path)
    structure = subject.data.structure
    assert (structure.immutable, structure.one_hot, structure.integer) == ((2, 3, 4), ((2, 3, 4),), (0,))
    assert seen_unfit(Suite(plan, subject).scope("evasion")) is None, (
        "what is declared is no reason to leave evasion out"
    )
    narrow = plan_of(tmp_path, 3)
    with pytest.raises(InputError, match=r"5 features are the 2 columns of numbers.*'colour' \(3\)"):
        preflight(narrow, resolve(narrow, tmp_path), torch.device("cpu"))


def test_a_call_declares_it_and_mistakes_are_sentences() -> None:
    ids = torch.arange(24 * 40).view(40, 24) % 17
    split = (ids[:20], torch.arange(20) % 2), (ids[20:] + 1, torch.arange(20) % 2)
    for x_plus, structure, words in (
        (0.0, {"tokns": True}, "did you mean 'tokens'"),
        (0.5, {"tokens": True}, "are ids"),
        (0.0, {"immutable": [24]}, "0 to 23"),
        (0.0, {"one_hot": [[0, 1, 2]]}, "holds 0 and 1 only"),
        (0.0, {"immutable": ["sex"]}, "'sex'"),
        (0.0, ["tokens"], "a mapping with the keys immutable"),
    ):
        (train, y), (test, y_test) = split
        with pytest.raises(InputError, match=words):
            audit_model(nn.Linear(24, 2), (train + x_plus, y), (test + x_plus, y_test), "int8", structure=structure)


class Counting(nn.Module):
    """Knows a class by the share of ids below 8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = (x.long() < 8).float().mean(1)
        return torch.stack([low, 1 - low], 1) * 8


def test_a_copy_of_a_model_of_tokens_is_one_of_tokens(tmp_path: Path) -> None:
    """Without the architecture, from answers alone; no adversarial example is made of ids."""
    stream = np.random.default_rng(0)
    x = np.where(stream.random((300, 12)) < stream.random((300, 1)), 0, 8) + stream.integers(0, 8, (300, 12))
    np.savez(tmp_path / "d.npz", x_test=x, y_test=((x < 8).mean(1) < 0.5).astype(int))
    raw = {
        "name": "ids",
        "data": {"kind": "npz", "path": "d.npz", "tokens": True},
        "model": {"architecture": "torch.nn:Identity"},
        "candidates": {"int8": "int8"},
    }
    plan = validated(Plan, raw, Source("plan"))
    data = resolve(plan, tmp_path).data
    case = Case(
        TorchTarget(Counting()),
        None,
        None,
        None,
        data.evaluation,
        data.evaluation_ids.numpy(),
        data.attacker,
        data.bounds,
        2,
        structure=data.structure,
    )
    training = Training(epochs=8, batch_size=32, learning_rate=1e-2)
    evidence = Extraction(budgets=(150,), answers=("scores",), training=training, least_steps=40).run(case, seed=0)
    assert evidence.summary["fidelity"]["scores/150"] > 0.85
    assert not [name for name in evidence.arrays if name.startswith("transfer/")]
