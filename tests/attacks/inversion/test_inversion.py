"""Model inversion: a member that a model memorised is rebuilt, whom it does not know is not; inputs are valid ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from known_results import Known
from torch import nn

from crushproof.attacks.access import Flag, Ledger
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.inversion.inversion import Inversion
from crushproof.attacks.inversion.judged import judged
from crushproof.attacks.inversion.measure import WHITE_BOX
from crushproof.attacks.inversion.preparations import Independent
from crushproof.attacks.inversion.rebuild import by_gradients, by_scores, margins
from crushproof.attacks.inversion.space import Space
from crushproof.attacks.preparation import Basis
from crushproof.audit.findings.estimates import estimate
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.networks import Mlp

ATTACK = Inversion(starts=2, steps=40)
CLASSES = 10


@pytest.fixture(scope="module")
def data(digits: Data) -> Data:
    """Two members of each class, and all the others as they are."""
    assert digits.members is not None
    chosen = torch.cat([(digits.members.y == one).nonzero().flatten()[:2] for one in range(CLASSES)])
    return Data("two each", digits.members.take(chosen), digits.non_members, digits.bounds, digits.class_names)


@pytest.fixture(scope="module")
def prepared(data: Data) -> Iterator[Any]:
    inputs: Any = SimpleNamespace(scope=SimpleNamespace(data=data, seed=0), device=torch.device("cpu"))
    small = Architecture("mlp", lambda: Mlp(64, CLASSES, (32,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crushproof.attacks.inversion.preparations.architecture_of", lambda data: small)
        own = Independent(ATTACK.classes, ATTACK.starts, ATTACK.steps, ATTACK.prior).compute(inputs)
        inputs.prepared = lambda need: own
        (run,) = ATTACK.runs(SimpleNamespace(name="m", baselines=()), inputs.scope)  # type: ignore[arg-type]  # enough of one
        assert run.prepare is not None
        yield run.prepare(inputs)


@pytest.fixture(scope="module")
def memorised(data: Data, prepared: Any) -> tuple[Evidence, Case]:
    assert data.members is not None
    return found(data, prepared, softmax_regression(data.members))


def softmax_regression(records: Records) -> nn.Module:
    """The weights are what a class's members have and others do not: a few steps of training."""
    x = records.x.flatten(1) - records.x.flatten(1).mean(0)
    layer = nn.Linear(x.shape[1], CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([x[records.y == one].mean(0) for one in range(CLASSES)]))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def found(data: Data, prepared: Any, module: nn.Module, **changes: Any) -> tuple[Evidence, Case]:
    case = case_of(data, module, prepared=prepared, **changes)
    evidence = ATTACK.run(case, seed=0)
    model: Any = SimpleNamespace(name="m", baselines=("m",))
    scope: Any = SimpleNamespace(data=data, seed=0)
    told = json.dumps(evidence.summary).encode()
    ATTACK.form(model, scope).check(told, evidence.summary, evidence.arrays, {})
    return evidence, case


def measured(data: Data, evidence: Evidence) -> Any:
    model: Any = SimpleNamespace(name="m", baselines=("m",))
    return ATTACK.measure(Known(SimpleNamespace(data=data, seed=0), model, {"m": evidence}))  # type: ignore[arg-type]  # enough of one


def test_memorised_members_are_rebuilt_and_others_are_not(
    data: Data, prepared: Any, memorised: tuple[Evidence, Case]
) -> None:
    evidence, case = copy.copy(memorised[0]), memorised[1]
    near, nearest, _ = measured(data, evidence)
    assert estimate(near.outcome).low > 0.6, "by gradients"
    assert estimate(near.parts[1].outcome).low > 0.6, "by scores alone"
    assert estimate(nearest.outcome).low > 0.5
    assert not near.flags
    assert [one.headline for one in near.parts] == [True, False, False, False]
    assert near.comparisons[0].own == near.comparisons[0].theirs
    basis = Basis(lambda: prepared, True)
    assert ATTACK.asked_again(evidence, case) == ATTACK.follows(evidence, basis) == []
    other = {f"nearest/{WHITE_BOX}": ~evidence.arrays[f"nearest/{WHITE_BOX}"]}
    evidence.arrays = {**evidence.arrays, **other, "near/scores": -evidence.arrays["near/scores"]}
    assert len(ATTACK.follows(evidence, basis)) == 2
    assert ATTACK.asked_again(evidence, case)

    stranger = softmax_regression(data.attacker)
    near, nearest, recognised = measured(data, found(data, prepared, stranger, twin=None)[0])
    for figure in (estimate(near.outcome), estimate(nearest.outcome)):
        assert figure.low <= 0.5 <= figure.high
    assert Flag.NO_WHITE_BOX.value in near.flags
    assert float(np.mean(recognised.outcome.successes)) >= 0.8, "a likeness of the class is no leak"


def test_what_is_nearer_without_the_model_is_not_put_down_to_it(data: Data, memorised: tuple[Evidence, Case]) -> None:
    evidence = copy.copy(memorised[0])
    evidence.arrays = {**evidence.arrays, "near/another network": evidence.arrays[f"near/{WHITE_BOX}"]}
    near = measured(data, evidence)[0]
    assert Flag.DISTRIBUTION_SHIFT.value in near.flags
    assert any("Not attributable" in one for one in near.notes)


def test_pictures_are_of_the_nearest_member(data: Data, memorised: tuple[Evidence, Case]) -> None:
    assert data.members is not None
    results: Any = Known(SimpleNamespace(data=data, seed=0), SimpleNamespace(name="m"), {"m": memorised[0]})
    shown = ATTACK.pictures(results)
    assert {one.words for one in shown} == {("nearest member", "rebuilt")}
    for one in shown:
        assert data.class_names[int(data.members.y[one.record])] == one.label
        assert np.array_equal(one.clean[:, :, 0], np.rint(255 * data.members.x[one.record, 0].numpy()))


def test_inputs_of_tables_are_such_as_somebody_could_send() -> None:
    torch.manual_seed(0)
    numbers, codes = 10 * torch.rand(80, 3), torch.randint(0, 5, (80, 1)).float()
    block = torch.eye(4)[torch.randint(0, 4, (80,))]
    x = torch.cat([numbers, codes, block], 1)
    x[:, 2] = x[:, 2].round()
    bounds = Bounds(torch.tensor([0.0] * 8), torch.tensor([10.0, 10, 10, 5, 1, 1, 1, 1]))
    structure = Structure(codes=(3,), integer=(2,), one_hot=((4, 5, 6, 7),))
    space, net = Space(x, bounds, structure, structure.one_hot), nn.Linear(8, 2)
    with torch.no_grad():
        net.weight[1, 4:] = torch.tensor([0.0, 0, 30, 0])
    y, classes = net(x).argmax(1), torch.tensor([0, 1])
    by_gradient = by_gradients(net, space, y, classes, starts=2, steps=40, weight=0.1, seed=0, ledger=Ledger())
    asked = TorchTarget(net)
    by_score = by_scores(asked, space, y, classes, steps=40, pairs=10, weight=0.1, seed=0, ledger=Ledger())
    for rebuilt in (by_gradient, by_score):
        assert net(rebuilt).argmax(1).tolist() == [0, 1]
        assert set(rebuilt[:, 4:].unique().tolist()) == {0.0, 1.0}
        assert rebuilt[:, 4:].sum(1).tolist() == [1, 1]
        assert rebuilt[1, 6] == 1 != rebuilt[0, 6]
        assert torch.equal(rebuilt[:, 2], rebuilt[:, 2].round())
        assert bool((rebuilt[:, 3] == codes.mode(0).values).all())
        assert bool(((rebuilt >= bounds.low) & (rebuilt <= bounds.high)).all())
    assert asked.queries == 80 + 40 * 2 * 2 * 10
    odds = margins(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0]))
    assert odds.tolist() == pytest.approx([2.0, -2.0])


def test_where_there_is_nothing_to_rebuild(data: Data) -> None:
    about = judged(data, 3, 0)
    assert len(about.classes) == 3
    for one in about.classes:
        of = about.equal & (about.label == one)
        assert int((of & about.is_member).sum()) == int((of & ~about.is_member).sum()) == 2
    alone = Data("test set", None, data.non_members, data.bounds, data.class_names)
    scope: Any = SimpleNamespace(data=alone, seed=0)
    assert ATTACK.unfit(scope) == "no training records"
    assert (ATTACK.usual(alone), ATTACK.usual(data)) == (False, True)
    results: Any = Known(scope, SimpleNamespace(name="m", baselines=()), {})
    assert [one.reason for one in ATTACK.measure(results)] == ["not applicable: no training records"] * 3
    with pytest.raises(NotApplicable, match="no tokens"):
        ATTACK.run(case_of(data, nn.Flatten()), seed=0)
