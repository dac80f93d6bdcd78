"""Changes compare like with like: one that is its parent never fails, and a parent on the floor says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import Pooled, case_of
from torch import Tensor, nn

import crushproof
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.audit.plan.plan import Plan
from crushproof.audit.report.html import to_html
from crushproof.audit.run import run_audit
from crushproof.audit.schema.rows import Audit, Finding
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Records
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

PARTS: list[Any] = [
    {"kind": "pgd", "steps": 8, "loss": "margin"},
    {"kind": "pgd", "steps": 8, "gradients": "native"},
    {"kind": "transfer"},
    {"kind": "square", "queries": 20},
]


def evasion(**fields: Any) -> dict[str, Any]:
    return {"kind": "evasion", "records": 80, "parts": PARTS, **fields}


def audit_of(files: dict[str, Path], data: Path, folder: Path, bounds: list[float], **fields: Any) -> Audit:
    """The audit of a finished file against the dense file."""
    plan = Plan.model_validate(
        {
            "name": "same",
            "data": {"kind": "npz", "path": str(data), "bounds": bounds},
            "model": {"file": str(files["dense"])},
            "candidates": {name: {"file": str(path)} for name, path in files.items() if name != "dense"},
            "attacks": [evasion(**fields)],
            "policy": "robustness",
        }
    )
    return run_audit(plan, folder, folder / "out", workers=0)


def row(audit: Audit, candidate: str) -> Finding:
    return next(one for one in audit.findings if one.candidate == candidate and one.risk == "evasion")


@pytest.fixture(scope="module")
def mlp(digits: Data) -> nn.Module:
    assert digits.members is not None
    return train(Mlp(64, 10, (32,)), digits.members, Training(epochs=8), seed=0)


class Series(nn.Module):
    """A GRU over the rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.gru(x.flatten(1).view(-1, 8, 8))[0][:, -1])
        return answers


def test_a_candidate_that_is_its_parent(digits: Data, tmp_path: Path) -> None:
    assert digits.members is not None
    module = train(Series(), digits.members, Training(epochs=4), seed=0)
    for name in ("dense", "same"):
        (tmp_path / f"{name}.onnx").write_bytes(to_onnx(module.eval(), digits.shape))
    np.savez(tmp_path / "data.npz", x_test=digits.non_members.x[:150], y_test=digits.non_members.y[:150])
    files = {name: tmp_path / f"{name}.onnx" for name in ("dense", "same")}
    audit = audit_of(files, tmp_path / "data.npz", tmp_path, [0, 1], epsilon="auto", records=15)
    found, dense = row(audit, "same"), row(audit, "dense")
    change = found.changes[0]
    assert found.verdict != "fail"
    assert change.low <= 0 <= change.high
    assert change.difference == 0  # the same bytes, the same attacks, the same starts
    assert "bounds-doubtful" not in found.flags
    assert "transfer both ways" in change.counted
    assert "was chosen by a quick probe" in (found.chosen or "")
    assert dense.estimate is not None
    assert next(part for part in dense.parts if part.name == "transfer from its candidates").estimate is not None
    alone = {one.candidate: one for one in audit.findings if one.metric == "evade_only"}
    assert alone.keys() == {"same"}, "a dense model has none beside it that could stay right"
    assert alone["same"].estimate is not None
    assert (alone["same"].estimate.estimate, alone["same"].estimate.n) == (0, 15)
    assert [part.name for part in alone["same"].parts] == ["inputs of the worst case", "diva"]


FLOAT16 = {"half": {"kind": "quantize", "number": "float16", "activations": "float"}}


def test_a_parent_on_the_floor_is_no_measure(digits: Data, mlp: nn.Module) -> None:
    records = digits.non_members.x[:400], digits.non_members.y[:400]
    result = crushproof.audit_model(mlp, None, records, FLOAT16, attacks=[evasion(epsilons=[0.6])], policy="robustness")
    found = row(result.audit, "half")
    assert result.verdict == "inconclusive"
    assert found.estimate is not None
    assert found.estimate.estimate < 0.02
    assert "on the floor" in (found.reason or "")
    proposed = float((found.reason or "").partition("at epsilon ")[2].split()[0])
    attack = Evasion(epsilon=proposed, records=80, parts=(Pgd(steps=20),))
    outcomes = attack.run(case_of(digits, mlp), seed=0).arrays
    kept = 1 - outcomes[f"worst/{proposed!r}"].mean()
    assert 0.2 < kept / outcomes["clean_correct"].mean() < 0.75


def test_threat_models_say_what_ran(digits: Data, mlp: nn.Module) -> None:
    records = digits.non_members.x[:200], digits.non_members.y[:200]
    attacks: list[Any] = [
        {"kind": "evasion", "epsilons": [0.1], "records": 30, "parts": parts}
        for parts in ([{"kind": "square", "queries": 5}], ["transfer"])
    ]
    result = crushproof.audit_model(mlp, None, records, FLOAT16, attacks=[*attacks, "membership"], policy="robustness")
    found = [one for one in result.audit.findings if one.candidate == "half" and one.risk == "evasion"]
    square, transfer = (one for one in found if one.metric == "robust_accuracy")
    for alone in (one for one in found if one.metric == "evade_only"):
        assert (alone.threat_model.access, alone.verdict, alone.gated) == ("white-box", "not-gated", False)
        assert "dense, and so gradients of both" in alone.threat_model.knowledge
    assert (square.threat_model.access, transfer.threat_model.access) == ("scores", "labels")
    assert "the dense model it came from" not in square.threat_model.knowledge
    assert "and the dense model it came from" in transfer.threat_model.knowledge
    assert square.flags == transfer.flags == ["no-gradient"]  # no white-box part: no gradients to trust
    membership = [one for one in result.audit.findings if one.risk == "membership"]
    assert {one.threat_model.access for one in membership} == {"none"}
    attackers = to_html(result.audit).partition("The attackers")[2].partition("</table>")[0]
    assert "Evasion" in attackers
    assert "Membership" not in attackers


def test_token_ids_leave_the_verdict_open(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    x = stream.integers(0, 50, (300, 12)).astype(np.float32)
    y = (np.isin(x, [1, 2, 3, 4, 5, 6, 7]).sum(1) > 1).astype(np.int64)
    learnt = Records(torch.from_numpy(x), torch.from_numpy(y))
    model = train(Pooled(), learnt, Training(epochs=30, learning_rate=2e-2), seed=0)
    result = crushproof.audit_model(
        model, None, (x, y), FLOAT16, bounds=(0, 49), attacks=[evasion(epsilon="auto")], policy="robustness"
    )
    assert result.verdict == "inconclusive"
    assert "token ids" in (row(result.audit, "half").reason or "")
    assert row(result.audit, "half").changes == []
    assert result.to_html(tmp_path / "report.html").is_file()
