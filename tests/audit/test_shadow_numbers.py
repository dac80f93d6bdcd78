"""A leak in place of numbers of shadow models: the fewest that show it, or what the time allows, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from crushproof.attacks.membership import measure
from crushproof.attacks.membership.measure import leak_seen
from crushproof.audit import shadow_numbers
from crushproof.audit.plan.shadow_plan import ShadowPlan
from crushproof.audit.shadow_numbers import could_be, needed, settled


def of(count: int) -> ShadowPlan:
    return ShadowPlan(training_free=count, trained=count)


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 records of each sort a leak of 6 % is seen by any number, of 200 none; a shadow model takes 12 CPU s."""

    def detectable(members: int, others: int, fpr: float) -> float:
        if others < 300:
            raise ValueError("no rate is told from it")
        return 0.06

    monkeypatch.setattr(measure.statistical_power, "detectable_tpr", detectable)
    monkeypatch.setattr(shadow_numbers, "_clock", lambda suite, count: 100.0 + 12.0 * count)


def suite(half: int = 600, budget: str | None = None, **shadows: Any) -> Any:
    attack: Any = SimpleNamespace(leak_seen=lambda scope, count: leak_seen(half, count), tasks={"here"})
    silent: Any = SimpleNamespace(leak_seen=lambda scope, count: None, tasks={"here"})
    return SimpleNamespace(
        plan=SimpleNamespace(shadows=ShadowPlan(**shadows), budget=budget),
        lineup=SimpleNamespace(attacks=[(silent, "pgd"), (attack, "membership")]),
        task="here",
        scope=lambda label: None,
    )


def test_the_fewest_that_show_the_leak() -> None:
    for leak in (0.061, 0.064, 0.07, 0.09, 0.5):
        asked = suite(leak=leak)
        count = needed(asked)
        assert count is not None
        seen, before = leak_seen(600, count), leak_seen(600, count - 2)
        assert seen is not None
        assert before is not None
        assert seen <= leak
        assert count == 4 or before > leak
        found, (told,) = settled(asked, 2)
        assert found == of(count)
        assert could_be(found, asked)
        assert not could_be(of(count + 2), asked)
        assert not could_be(of(count - 2), asked)
        assert f"{count} show a leak of" in told
        assert ("carry a flag" in told) == (count < 16)


def test_time_that_is_too_short_gets_what_it_has_room_for() -> None:
    asked = suite(leak=0.064, within="1 min")
    found, (told,) = settled(asked, 2)
    assert found == of(10), "60 s on 2 cores at 12 s each"
    assert "10 show a leak of 6.7 % or more" in told
    assert "one of 6.4 % takes 16 and about 2 min, more than 1 min" in told.replace("96 s", "2 min")
    assert could_be(found, asked)
    assert not could_be(of(18), asked)
    assert not could_be(of(2), asked)
    assert settled(suite(leak=0.064, within="1 s"), 2)[0] == of(4)
    assert settled(suite(leak=0.064, within="9 h"), 2)[0] == of(16)
    assert could_be(of(8), suite(leak=0.064, budget="1 h")), "a budget halves them"


def test_what_the_records_cannot_show_is_said() -> None:
    found, (told,) = settled(suite(leak=0.05), 2)
    assert found == of(16)
    assert "one of 5.0 % takes more records" in told
    few = suite(half=200, leak=0.05)
    assert settled(few, 2)[0] == ShadowPlan()
    assert "too few" in settled(few, 2)[1][0]
    assert could_be(ShadowPlan(), few)
    assert not could_be(of(8), few)


def test_numbers_that_a_plan_names_stay() -> None:
    asked = suite(training_free=6, trained=4)
    assert settled(asked, 2) == (asked.plan.shadows, [])
