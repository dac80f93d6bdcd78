"""Copies of several models side by side: each is what it is by itself, and one model's trouble is its own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.attacks.case import Case
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.attacks.extraction.preparations import Copies, copies_with
from crushproof.attacks.preparation import Audited, Inputs, Prepared, Scope
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import MisfitError
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training

NAMES = ("dense", "one", "broken", "two")
ATTACK = Extraction(budgets=(16, 40), least_steps=12, training=Training(epochs=1, learning_rate=1e-2), transfer_steps=1)


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 3), torch.nan)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )


def table() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3))


@dataclass
class Audit:
    """What a preparation is handed, of models that are modules."""

    scope: Scope
    modules: dict[str, nn.Module]
    made: dict[str, Prepared] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def case(self, model: str) -> Case:
        data, module = self.scope.data, self.modules[model]
        ids = np.arange(len(data.evaluation))
        own = self.modules["dense"]
        return Case(
            TorchTarget(module), module, module, own, data.evaluation, ids, data.attacker, Bounds.of(0, 1), data.classes
        )  # fmt: skip

    def prepared(self, preparation: Copies) -> Prepared:
        return self.made[preparation.name]


def audit_of(build: Any, together: int = 16, names: tuple[str, ...] = NAMES) -> Audit:
    torch.manual_seed(0)
    modules = {name: Broken() if name == "broken" else build().eval().requires_grad_(False) for name in names}
    stream = torch.Generator().manual_seed(1)
    x, y = torch.rand(60, 1, 4, 4, generator=stream), torch.randint(3, (60,), generator=stream)
    records = Records(x, y)
    data = SimpleNamespace(
        evaluation=records.take(torch.arange(30)), attacker=records.take(torch.arange(30, 60)), classes=3,
        evaluation_ids=torch.arange(30),
    )  # fmt: skip
    parent = SimpleNamespace(
        name="dense", architecture=Architecture("own", build), side_by_side=lambda device: together
    )
    models = {name: SimpleNamespace(name=name, parent=parent) for name in names}
    return Audit(cast(Scope, SimpleNamespace(data=data, models=models, seed=3, device="cpu")), modules)


def shared(audit: Audit, model: str) -> Copies:
    found = copies_with(ATTACK.attacker, cast(Audited, audit.scope.models[model]), audit.scope)
    assert found is not None
    return found


@pytest.mark.parametrize("build", [conv, table], ids=["wide", "batched"])
def test_a_copy_is_the_same_whoever_is_beside_it(build: Any) -> None:
    audit = audit_of(build)
    everyone = shared(audit, "two")
    assert everyone.models == NAMES
    made = everyone.compute(cast(Inputs, audit))
    alone = replace(everyone, models=("two",)).compute(cast(Inputs, audit))
    assert alone.document["models"] == made.document["models"][3:]
    for name, array in alone.arrays.items():
        assert np.array_equal(array, made.arrays[f"3{name[1:]}"]), name


def test_a_run_takes_its_own_copies_and_trouble_stays_where_it_is() -> None:
    audit = audit_of(conv)
    (run,) = ATTACK.runs(cast(Audited, audit.scope.models["one"]), audit.scope)
    (preparation,) = run.needs
    assert isinstance(preparation, Copies)
    assert run.prepare is not None
    made = preparation.compute(cast(Inputs, audit))
    audit.made[preparation.name] = made
    with pytest.raises(NotApplicable, match="NaN"):
        preparation.taught("broken", cast(Inputs, audit))
    case = audit.case("one")
    evidence = ATTACK.run(replace(case, prepared=run.prepare(cast(Inputs, audit))), seed=9)
    assert list(evidence.summary["copies"]) == list(ATTACK.attacker.queries)
    by_itself = ATTACK.run(case, seed=9)
    assert evidence.summary.keys() == by_itself.summary.keys()
    assert evidence.arrays.keys() == by_itself.arrays.keys()
    assert evidence.ledger.queries == by_itself.ledger.queries == 40

    form, raw = preparation.form(audit.scope), b'{"models": []}'
    text = json.dumps(made.document).encode()
    form.check(text, made.document, made.arrays, {})
    for name in ("0/copy/scores/40/0.weight", "1/distances/labels"):
        with pytest.raises(MisfitError, match=name):
            form.check(text, made.document, {**made.arrays, name: np.zeros((1, 1, 1), "float32")}, {})
    with pytest.raises(MisfitError, match="models"):
        form.check(raw, {"models": []}, {}, {})


def test_models_are_put_together_in_the_order_of_the_plan() -> None:
    audit = audit_of(conv, names=tuple("abcdefg"))
    assert len(ATTACK.attacker.queries) == 4
    groups = [shared(audit, name).models for name in "abcdefg"]
    assert groups == [tuple("abcd")] * 4 + [tuple("efg")] * 3, "the last group alone is another with one model more"
    assert copies_with(ATTACK.attacker, cast(Audited, SimpleNamespace(parent=None)), audit.scope) is None
    large = audit_of(conv, together=1)
    assert copies_with(ATTACK.attacker, cast(Audited, large.scope.models["one"]), large.scope) is None
