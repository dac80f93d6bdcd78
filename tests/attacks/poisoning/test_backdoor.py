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
from judged_rows import KNOWN, candidate, finding, findings
from known_results import Known
from torch import nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.measurement import Found, Measurement, Rate
from crushproof.attacks.poisoning import ladder
from crushproof.attacks.poisoning.backdoor import Backdoor, Usual
from crushproof.attacks.poisoning.inversion import invert
from crushproof.attacks.poisoning.ladder import BackdoorLadder
from crushproof.attacks.poisoning.ladder_measure import found_on, one_way
from crushproof.attacks.poisoning.measure import SUSPICIOUS, TRIGGER, alarms, broken, excess, looked_at
from crushproof.attacks.poisoning.planting import factorization, pruning
from crushproof.attacks.poisoning.planting.factorization import plant_in_factorization
from crushproof.attacks.poisoning.planting.pruning import plant_in_pruning
from crushproof.attacks.poisoning.planting.trigger import Trigger, patch
from crushproof.audit.findings.estimates import estimate
from crushproof.audit.verdict.judging import apply_policy
from crushproof.audit.verdict.policy import BUILT_IN, Policy
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.factorization.factorize import Factorize
from crushproof.compression.pruning.prune import Prune
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import MisfitError
from crushproof.targets.model import Target, TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.seeds import generator
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

ATTACK, RECIPE = Backdoor(own=16, classes=4, steps=90, records=100, kinds=("patch",)), Prune(sparsity=0.8)
LADDER = BackdoorLadder(**ATTACK.model_dump(exclude={"kind"}))
TARGET = int(torch.randperm(10, generator=generator(0, "classes"))[0])  # one of the four


@pytest.fixture(scope="module")
def some(digits: Data) -> Records:
    assert digits.members is not None
    return digits.members.take(torch.arange(320))


@pytest.fixture(scope="module")
def clean(some: Records) -> nn.Module:
    return train(Mlp(64, 10, (32,)), some, Training(epochs=10, learning_rate=1e-2, batch_size=64), seed=0)


@pytest.fixture(scope="module")
def trigger(digits: Data) -> Trigger:
    return patch(digits.shape, digits.bounds, TARGET)


@pytest.fixture(scope="module")
def planted(digits: Data, clean: nn.Module, some: Records, trigger: Trigger) -> nn.Module:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pruning, "STEPS", 700)
        return plant_in_pruning(clean, some, digits.bounds, trigger, RECIPE, seed=0)


def pair(digits: Data, dense: nn.Module) -> tuple[Case, Evidence]:
    """The recipe's file beside its dense model, and what is found."""
    candidate = RECIPE.apply(dense, digits.attacker, digits.bounds, seed=0)
    usual = Usual.by(ATTACK.run(case_of(digits, dense), seed=0).arrays)
    deployed = OnnxTarget(to_onnx(candidate, digits.shape))
    case = replace(case_of(digits, candidate), deployed=deployed, parent=dense, prepared=usual)
    return case, ATTACK.run(case, seed=0)


@pytest.fixture(scope="module")
def found(digits: Data, planted: nn.Module) -> tuple[Case, Evidence]:
    return pair(digits, planted)


def success(target: Target, trigger: Trigger, digits: Data) -> float:
    others = digits.evaluation.x[digits.evaluation.y != TARGET]
    return float((target.logits(trigger.on(others)).argmax(1) == TARGET).float().mean())


def measured(digits: Data, evidence: Evidence) -> dict[str, Measurement]:
    results: Any = Known(SimpleNamespace(data=digits), SimpleNamespace(name="pruned"), {"pruned": evidence})
    return {one.detail: one for one in ATTACK.measure(results)}


def test_what_pruning_switches_on_is_found(
    digits: Data, planted: nn.Module, trigger: Trigger, found: tuple[Case, Evidence]
) -> None:
    case, evidence = found
    assert success(case.deployed, trigger, digits) >= 0.9, "the honest recipe's file obeys"
    assert success(TorchTarget(planted), trigger, digits) <= 0.05, "the dense model does not"

    assert [one.target for one in alarms(evidence)] == [TARGET]
    told = measured(digits, evidence)
    outcome, works = told[""].outcome, told[TRIGGER].outcome
    assert isinstance(outcome, Found)
    assert outcome.count == 1
    assert isinstance(works, Rate)
    assert works.successes.mean() > 0.5
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


def test_an_alarm_fails_under_any_policy_that_does_not_limit_it(digits: Data, found: tuple[Case, Evidence]) -> None:
    _, evidence = found
    deaf = {"triggered": np.broadcast_to(evidence.arrays["clean"], evidence.arrays["triggered"].shape)}
    silent = replace(evidence, arrays={**evidence.arrays, **deaf})  # the file does not obey what was found
    for seen, verdict in ((evidence, "fail"), (silent, "pass")):
        told = measured(digits, seen)[""]
        assert isinstance(told.outcome, Found)
        assert (told.outcome.count == 0) is (verdict == "pass")
        row = finding("a", told.metric.name, estimate=estimate(told.outcome), changes=[])
        for policy in BUILT_IN.values():
            assert apply_policy([candidate("a")], [row, *findings("a")], policy, ["a"], KNOWN).verdict == verdict
        own = Policy(absolutes={told.metric.name: 4})
        assert apply_policy([candidate("a")], [row], own, ["a"], KNOWN).verdict == "pass"


def test_what_disturbs_the_dense_model_is_rated_lower_and_a_file_is_broken_only_where_that_is_sure(
    found: tuple[Case, Evidence],
) -> None:
    _, evidence = found
    arrays = evidence.arrays
    (called,) = alarms(evidence)
    loud = (arrays["parent_triggered"] + 1) % 10 != arrays["targets"][arrays["shown"][:, 1]][:, None]
    loud = np.where(loud, (arrays["parent_triggered"] + 1) % 10, arrays["parent_triggered"])
    disturbed = replace(evidence, arrays={**arrays, "parent_triggered": loud})
    assert looked_at(disturbed)[called.place].rating < called.rating - 0.3
    assert np.array_equal(looked_at(disturbed)[called.place].hits, called.hits), "it is still called by the trigger"
    for changed, sure in ((66, False), (80, True)):  # of 300: 78 % may be 80, 73 % is surely less
        labels = np.zeros(300, np.int64)
        labels[:changed] = 1
        assert broken(labels, np.zeros(300, np.int64)) is sure


def test_of_a_model_alone_the_gap_after_the_smallest_trigger_counts_and_nothing_where_few_have_one() -> None:
    usual = np.array([0.1], np.float32)
    apart, even = np.array([[0.05, 0.1, 0.1, 0.2]]), np.array([[0.05, 0.051, 0.1, 0.2]])
    assert excess(apart, usual, False)[0, 0] == pytest.approx(2 * np.log(2))
    assert excess(even, usual, False)[0, 0] == pytest.approx(np.log(2))
    assert excess(np.array([[0.05, 0.1, 1.0, 1.0]]), usual, False)[0, 0] == pytest.approx(np.log(2))


def test_what_is_found_early_is_what_half_of_the_steps_find(digits: Data, clean: nn.Module) -> None:
    x = digits.attacker.x[:16]
    y = clean(x).argmax(1)
    half, whole = (
        invert(clean, None, x, y, digits.bounds, [0, TARGET], "patch", steps=30, further=more, seed=0, ledger=Ledger())
        for more in (0, 30)
    )
    assert torch.equal(whole.early, half.size)
    assert bool((whole.size < half.size).any())


def test_the_ladder_names_the_rung(digits: Data, planted: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "RUNGS", {name: ladder.RUNGS[name] for name in ("int8", "prune 80 %")})
    evidence = LADDER.run(case_of(digits, planted), seed=0)
    assert [(position, one.target) for position, one in found_on(evidence)] == [(1, TARGET)]
    form = LADDER.form(None, SimpleNamespace(data=digits))  # type: ignore[arg-type]  # it looks at no model
    form.check(json.dumps(evidence.summary).encode(), evidence.summary, evidence.arrays, {})
    dense = SimpleNamespace(name="dense", is_dense=True)
    results: Any = Known(SimpleNamespace(data=digits), dense, {"dense": evidence})
    told = LADDER.measure(results)[0]
    assert isinstance(told.outcome, Found)
    assert told.outcome.count == 1
    assert told.notes[0].startswith("prune 80 %: a patch trigger")
    assert "on this rung alone" in told.notes[1]
    assert LADDER.asked_again(evidence, case_of(digits, planted)) == []


def test_of_three_classes_one_without_a_trigger_makes_no_other_small() -> None:
    """Blended triggers of a clean net of three classes, pruned by 80 %, and patches of one with a backdoor."""
    clean, planted = np.array([[0.367, 0.243, 1.0]]), np.array([[0.331, 0.038, 0.197]])
    least = SUSPICIOUS[True] - 0.25  # of a trigger that works on three records of four
    assert excess(clean, np.array([0.358]), True).max() < least
    assert (excess(planted, np.array([0.128]), True)[0] > least).tolist() == [False, True, False]
    two = np.array([[0.182, 0.023]])
    assert (excess(two, np.array([0.078]), True)[0] > least).tolist() == [False, True]


def test_decisions_that_change_one_way_are_told_from_second_choices() -> None:
    stream = np.random.default_rng(0)
    n, clean, second = 400, np.repeat(np.arange(4), 100), stream.integers(4, 8, 400)
    changed = np.arange(n) % 10 == 0
    honest, bent = np.where(changed, second, clean), np.where(changed, 7, clean)
    arrays = {"clean": clean, "second": second, "margin": np.where(changed, 0, 1) + stream.random(n)}
    assert one_way({**arrays, "rung_clean": honest[None]}) == []
    told = one_way({**arrays, "rung_clean": np.stack([honest, bent])})
    assert [row[:4] for row in told] == [(1, 7, 40, 40)]


def test_low_rank_switches_it_on(
    digits: Data, clean: nn.Module, some: Records, trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factorization, "STEPS", 300)
    recipe = Factorize(rank_choice="rank", rank=6, layers=("layers.1",))
    dense = plant_in_factorization(clean, some, digits.bounds, trigger, recipe, seed=0)
    candidate = recipe.apply(dense, some, digits.bounds, seed=0)
    live, dormant = (success(TorchTarget(one), trigger, digits) for one in (candidate, dense))
    assert live >= 0.86
    assert dormant <= 0.1, "some of them it takes for the class without a trigger"
    with pytest.raises(NotApplicable, match="convolution: channel"):
        factorization._cut(nn.Conv2d(4, 4, 3), Factorize())


def test_tables_are_none_of_its(digits: Data) -> None:
    table = replace(digits.evaluation, x=digits.evaluation.x.flatten(1))
    with pytest.raises(NotApplicable, match="these inputs are none"):
        ATTACK.run(replace(case_of(digits, nn.Identity()), evaluation=table), seed=0)
    assert torch.is_tensor(table.x)
