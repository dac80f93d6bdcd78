"""Candidates that are deployed as TFLite: attacked, weighed and verified as the file that was made of them."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert")

import crushproof
from crushproof.audit.plan.plan import DENSE, Plan, parse_plan
from crushproof.audit.subject.audited import DenseModel
from crushproof.audit.subject.preflight import preflight
from crushproof.audit.subject.resolve import Subject
from crushproof.audit.verification.checks import verify
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.seeds import global_seed
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

PHONE = {"recipe": "int8", "deploy": "tflite"}
EVASION = {"kind": "evasion", "records": 30, "epsilons": [0.2], "parts": [{"kind": "pgd", "steps": 3}, "transfer"]}


def blobs(n: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return (random.random((n, 6)) / 2 + y[:, None] / 4).astype(np.float32), y


def test_an_audit_of_the_file(tmp_path: Path) -> None:
    members = blobs(200, 0)
    with global_seed(0, "phone"):
        start = Mlp(6, 2, (8,))
    records = Records(*map(torch.from_numpy, members))
    module = train(start, records, Training(epochs=30, learning_rate=1e-2), seed=0)
    result = crushproof.audit_model(
        module,
        members,
        blobs(200, 1),
        {"int8": "int8", "phone": PHONE},
        attacks=[EVASION, "membership", "churn"],
        shadows={"training_free": 2, "trained": 2},
        out=tmp_path,
    )
    rows = {row.name: row for row in result.audit.candidates}
    phone, plain = rows["phone"], rows["int8"]
    (file,) = tmp_path.rglob("model.tflite")
    assert phone.footprint.disk_bytes == file.stat().st_size
    assert phone.kernels is None
    assert phone.certificate is not None
    assert phone.certificate.label_agreement >= 0.99
    assert phone.accuracy is not None
    assert plain.accuracy is not None
    assert abs(phone.accuracy.estimate - plain.accuracy.estimate) <= 0.02
    assert LiteRtTarget(file.read_bytes()).logits(torch.rand(3, 6)).shape == (3, 2)
    for risk in ("evasion", "membership", "churn"):
        found = [one for one in result.audit.findings if one.risk == risk and one.candidate == "phone"]
        assert found
        assert all(one.estimate is not None for one in found)
    assert [one for one in verify(tmp_path, None) if one.state == "bad"] == []


def test_what_the_plan_says_wrongly() -> None:
    data = "data: {kind: digits}\nmodel: {architecture: nets:build}\n"
    with pytest.raises(InputError, match=r"line 3: candidates\.a\.deploy: .*onnx.*tflite"):
        parse_plan(data + "candidates: {a: {recipe: int8, deploy: tfllite}}\n")
    with pytest.raises(InputError, match=r"candidates\.a\.deploy: a finished file is deployed as it is"):
        parse_plan(data + "candidates: {a: {file: a.tflite, deploy: tflite}}\n")


def tried(build: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    x, y = torch.rand(120, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
    data = Data("made", Records(x[:60], y), Records(x[60:], y), Bounds.of(0, 1), ("a", "b"))
    dense = DenseModel(DENSE, Architecture("small", build), BuiltinTrainer(Training(epochs=1)))
    raw = {
        "data": {"kind": "memory", "name": "made"},
        "model": {"architecture": "memory:model"},
        "candidates": {"int8": "int8", "phone": PHONE},
    }
    return preflight(Plan.model_validate(raw), Subject(data, dense, ""), torch.device("cpu")).notes


def test_what_cannot_be_written_is_said_before_anything_is_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def series() -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))

    (said,) = tried(series, (1, 6))
    assert said.startswith("phone cannot be made")
    assert "slides over series" in said
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "ai_edge_litert" else find(name))
    with pytest.raises(InputError, match=r"candidates\.phone\.deploy: .*pip install crushproof\[litert\]"):
        tried(series, (1, 6))
