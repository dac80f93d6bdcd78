"""Candidates that are deployed as TFLite: attacked, weighed and verified as the file that was made of them."""

from __future__ import annotations

from dataclasses import replace
from importlib import util
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert")

from crushproof.audit.plan.plan import DENSE, Plan, parse_plan
from crushproof.audit.subject.audited import Candidate, DenseModel
from crushproof.audit.subject.preflight import preflight
from crushproof.audit.subject.resolve import Subject
from crushproof.audit.suite.model_cells import make_candidate
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, UnsafeInput
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.seeds import global_seed
from crushproof.targets.twin.module import Twin
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

PHONE = {"recipe": "int8", "deploy": "tflite"}


def test_what_is_made_is_the_file_that_runs(digits: Data) -> None:
    with global_seed(0, "phone"):
        module = Mlp(64, 10, (8,)).eval()
    dense = DenseModel(DENSE, Architecture("small", lambda: Mlp(64, 10, (8,))), BuiltinTrainer(Training()))
    recipe = RECIPES.parse({"kind": "quantize", "weight_bits": 8})
    candidate = Candidate("phone", dense, recipe, kind="tflite")
    stored = make_candidate(candidate, recipe, module, digits, 0)
    content = stored.files["model.tflite"]
    assert stored.document["footprint"]["disk_bytes"] == len(content)
    assert stored.document["certificate"]["overall"]["label_agreement"] >= 0.99
    assert stored.document["kernels"] is None
    opened = candidate.opened(stored, digits)
    x = digits.non_members.x[:20].clone().requires_grad_()
    twin = opened.twin()
    assert isinstance(twin, Twin), "from the bytes, not the module it was made of"
    torch.testing.assert_close(twin(x), LiteRtTarget(content).logits(x), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(twin(x).sum(), x)
    assert bool(gradient.any())
    other = {**stored.files, "model.tflite": stored.files["payload.bin"]}
    with pytest.raises(UnsafeInput):  # what lies in an output folder is read with suspicion
        candidate.opened(replace(stored, files=other), digits)


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
