"""Evasion as a plan writes it: what is read, what is refused and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.attack import ATTACKS
from crushproof.attacks.evasion import evade as module_of_evade
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.call.within import Course
from crushproof.attacks.evasion.engine import Perturber
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.parameters import BUDGETS
from crushproof.audit.plan.presets import attacks_of
from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError


def test_round_trip_through_a_plan() -> None:
    attack = Evasion(norm="l2", epsilons=(0.5, 0.2), gate_epsilon=0.5, parts=(Apgd(steps=3), Square(label="slow")))
    assert attack.epsilons == (0.2, 0.5)
    assert ATTACKS.parse(attack.model_dump(mode="json")) == attack
    assert ATTACKS.parse("evasion") == Evasion()
    assert Evasion().automatic
    assert (
        ATTACKS.parse(Evasion().model_dump(mode="json"))
        == Evasion()
        == ATTACKS.parse({"kind": "evasion", "epsilon": "auto"})
    )
    for value in (0.1, "0.1", np.float64(0.1)):
        one = ATTACKS.parse({"kind": "evasion", "epsilon": value})
        assert isinstance(one, Evasion)
        assert (one.epsilons, one.gate) == ((0.03, 0.05, 0.1, 0.15), 0.1)
    wide = ATTACKS.parse({"kind": "evasion", "epsilon": 0.8})
    assert isinstance(wide, Evasion)
    assert wide.epsilons == (0.24, 0.4, 0.8)  # none beyond the whole range


def test_a_plan_and_a_call_run_the_same(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget names the same parts in a plan, in a plan's set of attacks and in `evade`."""
    assert Evasion().parts == BUDGETS["standard"]
    for budget, parts in BUDGETS.items():
        (planned,) = {one.parts for one in attacks_of(budget, digits) if isinstance(one, Evasion)}
        assert planned == parts
        assert Evasion.model_validate({"parts": budget}).parts == parts
        tried = list[Perturber]()

        def note(course: Course, parts: list[Perturber], *_: Any, tried: list[Perturber] = tried, **__: Any) -> None:
            tried.extend(parts)
            course.parts["none"] = course.success

        monkeypatch.setattr(module_of_evade, "search_within", note)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        evade(net, digits.evaluation.x[:2], digits.evaluation.y[:2], epsilon=0.1, budget=budget)
        assert tried == [part for part in parts if part.part != "pgd-native"], "of a float net it would be the twin's"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilons": [8], "gate_epsilon": 8}, r"Did you mean 8/255\?"),
        ({"gate_epsilon": 0.2}, "gate_epsilon 0.2 is not among"),
        ({"epsilon": 0.1, "epsilons": [0.1]}, "either epsilon, or epsilons"),
        ({"epsilon": "much"}, "epsilon"),
        ({"epsilon": 0}, "number above 0"),
        ({"epsilons": ["much"]}, "epsilons"),
        ({"epsilons": [0.1, 0.1]}, "each named once"),
        ({"epsilons": []}, "one or more"),
        ({"epsilons": [-0.1]}, "greater than 0"),
        ({"parts": []}, "parts is empty"),
        ({"parts": ["pgd", "pgd"]}, "two parts are called 'pgd'"),
        ({"parts": ["pgdd"]}, "Did you mean 'pgd'"),
        ({"parts": [{"kind": "pgd", "step": 3}]}, "did you mean 'steps'"),
        ({"parts": [{"kind": "pgd", "label": "a/b"}]}, "label"),
        ({"norm": "l1"}, "norm"),
    ],
)
def test_mistakes_are_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ATTACKS.parse({"kind": "evasion", **fields})


def test_an_l2_epsilon_beyond_the_whole_range(digits: Data, dense: nn.Module) -> None:
    with pytest.raises(InputError, match="distance between any two inputs"):
        Evasion(norm="l2", epsilons=(9,), gate_epsilon=9).run(case_of(digits, dense), seed=0)
