"""Which classes and groups lost robustness through compression: a planted one is named, chance is not."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.case import Evidence
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.measurement import Measurement
from crushproof.attacks.preparation import Scope
from crushproof.attacks.statistics.groups import got_worse
from crushproof.targets.data.data import Data

ATTACK = Evasion(epsilons=(0.05,), records=300, parts=(Pgd(steps=4),))


def test_chance_in_many_classes_names_none() -> None:
    """One class in 200 with 7 lost of 7: p = .016 alone, and none that is left of it among so many tests."""
    masks = {str(place): np.arange(1400) // 7 == place for place in range(200)}
    lost = masks["3"].copy()
    assert got_worse(lost, np.zeros_like(lost), masks)[0] == ()
    assert got_worse(lost, np.zeros_like(lost), {"3": masks["3"]})[0] == ("3",)


def test_equal_losses_and_gains_are_seldom_called_worse() -> None:
    """Of 300 comparisons in which a fifth of the decisions changed by chance, at most one in twenty names anybody."""
    stream = np.random.default_rng(0)
    labels, group = np.arange(300) % 10, np.arange(300) % 7 < 2
    masks = {str(one): labels == one for one in range(10)} | {"group a": group, "group b": ~group}
    alarms = {0.95: 0, 0.98: 0}
    for _ in range(300):
        changed, better = stream.random(300) < 0.2, stream.random(300) < 0.5
        for level in alarms:
            alarms[level] += bool(got_worse(changed & ~better, changed & better, masks, level)[0])
    assert alarms[0.95] <= 0.05 * 300
    assert alarms[0.98] <= 0.02 * 300, "of several looks each one has less to spend"


@pytest.fixture(scope="module")
def found(digits: Data, dense: nn.Module) -> dict[str, Evidence]:
    """A dense model, its copy, and one that takes threes for something else more easily."""
    biased = copy.deepcopy(dense)
    last = [layer for layer in biased.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[3] -= 6
    models = {"dense": dense, "same": copy.deepcopy(dense), "biased": biased}
    return {name: ATTACK.run(case_of(digits, one), seed=0) for name, one in models.items()}


def measured(digits: Data, found: dict[str, Evidence], name: str, level: float = 0.95) -> Measurement:
    def model(name: str) -> Any:
        baselines = () if name == "dense" else ("dense",)
        return SimpleNamespace(name=name, baselines=baselines, is_dense=not baselines, draws=(), parent=None)

    models = {one: model(one) for one in found}
    results: Any = SimpleNamespace(
        scope=Scope("evasion", digits, 0, 0, 0, models),
        model=models[name],
        level=level,
        evidence=lambda ran: found.get(ran.model),
        prepared=lambda preparation: None,
        why=lambda ran: "unknown",
        flags=lambda name: set(),
        without_twin=lambda name: None,
    )
    return ATTACK.measure(results)[0]


def test_a_class_that_alone_lost_robustness_is_named(digits: Data, found: dict[str, Evidence]) -> None:
    told = measured(digits, found, "biased")
    assert told.worse == ("3",)
    assert any(note.startswith("Against dense, by what both sides faced: got worse: 3 (") for note in told.notes)
    assert set(told.worse) <= set(told.groups)
    never = measured(digits, found, "biased", level=1 - 1e-15)
    assert never.worse == (), "the level of the round decides"


def test_a_copy_lost_nothing(digits: Data, found: dict[str, Evidence]) -> None:
    told = measured(digits, found, "same")
    assert told.worse == ()
    assert any("no class or group got significantly worse" in note for note in told.notes)
    assert measured(digits, found, "dense").worse == (), "it has nothing to be compared with"
