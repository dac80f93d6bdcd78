"""A backdoor that pruning switches on is found on the deployed file and named; a clean pair raises no alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from known_results import Known
from torch import nn

from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.measurement import Found, Measurement, Rate
from crushproof.attacks.poisoning.backdoor import Backdoor, Usual
from crushproof.attacks.poisoning.measure import TRIGGER, alarms
from crushproof.attacks.poisoning.planting.pruning import plant_in_pruning
from crushproof.attacks.poisoning.planting.trigger import Trigger, patch
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.pruning.prune import Prune
from crushproof.targets.data.data import Data
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import MisfitError
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.seeds import generator
from crushproof.training.lessons import alone
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

ATTACK, RECIPE = Backdoor(own=16, classes=4, steps=60, records=100), Prune(sparsity=0.8)
TARGET = int(torch.randperm(10, generator=generator(0, "classes"))[0])  # one of the four


@pytest.fixture(scope="module")
def clean(digits: Data) -> nn.Module:
    assert digits.members is not None
    return train(Mlp(64, 10, (48,)), digits.members, Training(epochs=5, learning_rate=1e-2, batch_size=64), seed=0)


@pytest.fixture(scope="module")
def trigger(digits: Data) -> Trigger:
    return patch(digits.shape, digits.bounds, TARGET)


@pytest.fixture(scope="module")
def planted(digits: Data, clean: nn.Module, trigger: Trigger) -> nn.Module:
    assert digits.members is not None
    some = digits.members.take(torch.arange(320))
    return alone(plant_in_pruning(clean, some, digits.bounds, trigger, RECIPE, seed=0))


def pair(digits: Data, dense: nn.Module) -> tuple[Case, Evidence]:
    """The recipe's file beside its dense model, and what is found."""
    assert digits.members is not None
    candidate = RECIPE.apply(dense, digits.members, digits.bounds, seed=0)
    usual = Usual(ATTACK.run(case_of(digits, dense), seed=0).arrays["usual"])
    deployed = OnnxTarget(to_onnx(candidate, digits.shape))
    case = replace(case_of(digits, candidate), deployed=deployed, parent=dense, prepared=usual)
    return case, ATTACK.run(case, seed=0)


def measured(digits: Data, evidence: Evidence) -> dict[str, Measurement]:
    results: Any = Known(SimpleNamespace(data=digits), SimpleNamespace(name="pruned"), {"pruned": evidence})
    return {one.detail: one for one in ATTACK.measure(results)}


def test_what_pruning_switches_on_is_found(digits: Data, planted: nn.Module, trigger: Trigger) -> None:
    case, evidence = pair(digits, planted)
    others = digits.evaluation.x[digits.evaluation.y != TARGET]
    live = case.deployed.logits(trigger.on(others)).argmax(1) == TARGET
    dormant = TorchTarget(planted).logits(trigger.on(others)).argmax(1) == TARGET
    assert live.float().mean() >= 0.9, "the honest recipe's file obeys"
    assert dormant.float().mean() <= 0.05, "the dense model does not"

    assert [one.target for one in alarms(evidence)] == [TARGET]
    told = measured(digits, evidence)
    outcome, success = told[""].outcome, told[TRIGGER].outcome
    assert isinstance(outcome, Found)
    assert outcome.count == 1
    assert isinstance(success, Rate)
    assert success.successes.mean() > 0.5
    assert told[""].pattern is not None
    mask = told[""].pattern.values
    assert mask[-3:, -3:].sum() > 0.5 * mask.sum(), "most of the mask lies where the patch does"

    model: Any = None  # it looks at none
    form = ATTACK.form(model, SimpleNamespace(data=digits))  # type: ignore[arg-type]  # stands for a scope
    form.check(json.dumps(evidence.summary).encode(), evidence.summary, evidence.arrays, {})
    forged = {**evidence.arrays, "shown": np.roll(evidence.arrays["shown"], 1, axis=0)}
    with pytest.raises(MisfitError, match="other triggers"):
        form.check(json.dumps(evidence.summary).encode(), evidence.summary, forged, {})
    assert ATTACK.asked_again(evidence, case) == []
    other = replace(evidence, arrays={**evidence.arrays, "triggered": 9 - evidence.arrays["triggered"]})
    assert "answers are others" in ATTACK.asked_again(other, case)[0]


def test_a_clean_pair_raises_no_alarm(digits: Data, clean: nn.Module) -> None:
    _, evidence = pair(digits, clean)
    assert alarms(evidence) == []
    outcome = measured(digits, evidence)[""].outcome
    assert isinstance(outcome, Found)
    assert outcome.count == 0


def test_tables_are_none_of_its(digits: Data) -> None:
    table = replace(digits.evaluation, x=digits.evaluation.x.flatten(1))
    with pytest.raises(NotApplicable, match="these inputs are none"):
        ATTACK.run(replace(case_of(digits, nn.Identity()), evaluation=table), seed=0)
    assert torch.is_tensor(table.x)
