"""The search finds the flip that brute force finds, counts on the file alone, and says where it cannot."""

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

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.measurement import Mean, Measurement, Rate
from crushproof.attacks.tampering.bit_flips import ANY, NO_EXPONENT, BitFlips
from crushproof.attacks.tampering.evidence_form import flips_of
from crushproof.attacks.tampering.files import Files
from crushproof.attacks.tampering.goal import Goal
from crushproof.attacks.tampering.measure import CLASS, NOTICED
from crushproof.attacks.tampering.search import search
from crushproof.attacks.tampering.stored import CODES, Flip, flipped, parameters
from crushproof.attacks.tampering.surrogate import Surrogate
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import MisfitError
from crushproof.targets.interface.assumptions import Assumptions
from crushproof.targets.interface.finished_model import Deployed
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.untrusted.model_file import check_onnx
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

ATTACK = BitFlips(draws=2, own=24, records=100, budget=8, random=4)


@pytest.fixture(scope="module")
def small(digits: Data) -> nn.Module:
    assert digits.members is not None
    return train(Mlp(64, 10, (12,)), digits.members, Training(epochs=6, learning_rate=1e-2), seed=0)


@pytest.fixture(scope="module")
def case(digits: Data, small: nn.Module) -> Case:
    """int8 weights, as they ship."""
    quantized = Quantize(weight_bits=8).apply(small, digits.members, digits.bounds, seed=0)  # type: ignore[arg-type]  # there are members
    data = to_onnx(quantized, digits.shape)
    return replace(case_of(digits, small), deployed=OnnxTarget(data), shipped=data)


@pytest.fixture(scope="module")
def evidence(case: Case) -> Evidence:
    return ATTACK.run(case, seed=0)


def measured(digits: Data, found: dict[str, Evidence], *baselines: str) -> dict[str, Measurement]:
    results: Any = Known(SimpleNamespace(data=digits), SimpleNamespace(name="int8", baselines=baselines), found)
    return {one.detail: one for one in ATTACK.measure(results)}


def test_one_flip_is_the_best_of_all(digits: Data) -> None:
    """Every flip of an upper bit of a linear int8 model is made in the file: none does more harm than the search's."""
    assert digits.members is not None
    some = digits.members.take(torch.nonzero(digits.members.y < 3)[:, 0])
    pooled = Records(nn.functional.avg_pool2d(some.x, 4), some.y)  # 4 pixels
    model = train(Mlp(4, 3, ()), pooled, Training(epochs=30, learning_rate=5e-2), seed=0)
    data = to_onnx(Quantize(weight_bits=8).apply(model, pooled, Bounds.of(0, 1), seed=0), (1, 2, 2))
    checked = check_onnx(data)
    tensors, own = parameters(checked), pooled.take(torch.arange(64))
    files = Files(checked, tensors, None, own)
    goal = Goal(own, torch.ones(64), lambda right: False, enough=-1.0)
    surrogate = Surrogate(checked, tensors, None)
    found = search(surrogate, files, goal, 1, lambda one, bit: one.role == CODES, set(), Ledger())
    assert len(found.flips) == 1
    assert not found.reached, "nothing is ever enough for this goal"
    every = [
        Flip(number, element, bit)
        for number, one in enumerate(tensors)
        if one.role == CODES
        for element in range(len(one.raw))
        for bit in range(5, one.width)  # a lower bit moves a weight by an eighth of its range at most
    ]
    assert len(every) == 36
    values = {}
    for flip in every:
        told = files.answers([flip], own.x)
        assert told is not None
        values[flip] = goal.value(told[0])
    assert values[found.flips[0]] == pytest.approx(min(values.values()), abs=0.02)
    assert [one.raw.tolist() for one in tensors] == [raw.tolist() for raw in surrogate.raw], "all is put back"


def test_one_flip_that_misses_a_class_is_preferred_to_more_harm() -> None:
    """Half of the others lost and the class missed is there; the class nearly missed, and no other lost, is not."""
    y = torch.tensor([0] * 4 + [1] * 8)
    goal = Goal(Records(torch.zeros(12, 1), y), torch.where(y == 0, 1.0, -1.0), lambda right: False, enough=-0.6)
    there, nearly = torch.zeros(12, 2), torch.zeros(12, 2)
    there[:, 1] = torch.tensor([1.0] * 8 + [-1.0] * 4)
    nearly[:, 1] = torch.tensor([-0.1] + [9.0] * 11)
    assert goal.value(nearly) < goal.value(there)
    aim = goal.away()
    assert aim.there(there)
    assert not aim.there(nearly)
    useless = Goal(goal.records, torch.ones(12), lambda right: False, enough=0.0)
    assert not useless.away().there(torch.zeros(12, 2)), "where nothing is to stay right the value says it"


def test_flips_count_on_the_file_and_can_be_made_again(digits: Data, case: Case, evidence: Evidence) -> None:
    scope: Any = SimpleNamespace(data=digits)
    model: Any = None  # it looks at none
    form = ATTACK.form(model, scope)
    form.check(json.dumps(evidence.summary).encode(), evidence.summary, evidence.arrays, {})
    searches, chance = evidence.summary["searches"], evidence.summary["chance"]
    assert {one["part"] for one in searches} >= {ANY, NO_EXPONENT, "codes alone", "scales alone", "zero points alone"}
    tensors = parameters(check_onnx(case.shipped))
    x, y = digits.evaluation.x[:100], digits.evaluation.y[:100]
    for number, one in enumerate(searches):
        if one["goal"] == "chance" and one["part"] == ANY:
            assert one["reached"]
            target = OnnxTarget(flipped(check_onnx(case.shipped), tensors, flips_of(evidence.arrays, number)))
            logits = target.logits(x)
            right = (logits.argmax(1) == y) & logits.isfinite().all(1)
            assert float(right.float().mean()) <= chance < 0.25
    assert evidence.arrays["random"].mean() > 0.5, "as many flips by chance leave most of it"
    assert ATTACK.asked_again(evidence, case) == []
    for forged, word in (("after", "does not follow"), ("flips", "beyond its tensor")):
        arrays = {
            **evidence.arrays,
            forged: evidence.arrays[forged] + 1 if forged == "flips" else ~evidence.arrays["after"],
        }
        if forged == "flips":
            arrays["flips"] = evidence.arrays["flips"] + np.array([0, 0, 10**6, 0])
        with pytest.raises(MisfitError, match=word):
            form.check(json.dumps(evidence.summary).encode(), evidence.summary, arrays, {})
    other = replace(evidence, arrays={**evidence.arrays, "after": ~evidence.arrays["after"]})
    assert "the file answers otherwise" in ATTACK.asked_again(other, case)[0]


def test_what_is_said_of_them(digits: Data, evidence: Evidence) -> None:
    told = measured(digits, {"int8": evidence, "dense": evidence}, "dense")
    assert set(told) == {"", CLASS, NOTICED}
    outcome = told[""].outcome
    assert isinstance(outcome, Mean)
    assert len(outcome.values) == 2
    alone = {part.name: part.outcome for part in told[""].parts}
    for part in alone.values():
        assert isinstance(part, Mean)
        assert (outcome.values <= part.values).all(), "who may flip any bit needs no more than who may flip some"
    (compared,) = told[""].comparisons
    assert compared.baseline == "dense"
    assert np.array_equal(compared.own.values, compared.theirs.values)  # type: ignore[union-attr]  # both are means
    noticed = {part.name: part.outcome for part in told[NOTICED].parts}
    digest = noticed["a digest of all"]
    assert isinstance(digest, Rate)
    assert digest.successes.all()
    assert [one.reason for one in measured(digits, {}).values()] == ["int8 failed"]


def test_a_stranger_s_file_is_attacked_as_it_is_read(digits: Data, small: nn.Module) -> None:
    """Its input is 0..255 and flat: the records go through what was assumed of it, before the file and its twin."""
    scaled = nn.Sequential(nn.Flatten(), _Divided(), small)
    data = to_onnx(scaled, (64,))
    assumed = Assumptions(record=(64,), layout="flat", units="0..255")
    target = Deployed(OnnxTarget(data), assumed)
    case = replace(case_of(digits, small), deployed=target, shipped=data, assumptions=assumed)
    attack = BitFlips(draws=2, own=32, records=100, parts="any", random=0)
    found, again = (attack.run(case, seed=0) for _ in range(2))
    assert again.summary == found.summary
    assert all(np.array_equal(again.arrays[name], array) for name, array in found.arrays.items())
    assert all(one["reached"] for one in found.summary["searches"] if one["goal"] == "chance")
    assert found.arrays["clean_correct"].mean() > 0.8
    assert found.arrays["random"].shape == (0, 100)


class _Divided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 255


def test_where_there_is_nothing_to_flip_it_says_so(digits: Data, case: Case, small: nn.Module) -> None:
    untrained = to_onnx(Mlp(64, 10, (4,)), digits.shape)
    for changes, word in (
        ({"shipped": b""}, "not at hand"),
        ({"shipped": b"TFL3" * 9}, "ONNX files"),
        ({"attacker": digits.attacker.take(torch.arange(3))}, "too few"),
        ({"shipped": untrained, "deployed": OnnxTarget(untrained)}, "no better than guessing"),
        ({"shipped": to_onnx(nn.Flatten(), digits.shape)}, "no parameters"),
    ):
        with pytest.raises(NotApplicable, match=word):
            ATTACK.run(replace(case, **changes), seed=0)  # type: ignore[arg-type]  # of several types
