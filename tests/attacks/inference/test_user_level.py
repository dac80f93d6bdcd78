"""User level: who is attacked and inside which shadow, a planted leak that adds up over a person, a null, bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from crushproof.attacks.access import Ledger
from crushproof.attacks.inference.user_level import PersonCase, UserLevel, per_person
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.persons import masks_by_person, pairs_of
from crushproof.attacks.membership.population import PopulationPlan, plan_population
from crushproof.attacks.membership.scoring.scores import lira
from crushproof.attacks.statistics.ranking import auc
from crushproof.targets.data.data import Data
from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.outline import data_of, outline
from crushproof.targets.data.records import Persons
from crushproof.targets.errors import InputError


@pytest.fixture(scope="module")
def shared(digits: Data) -> Data:
    """Digits of persons with 1 to 5 records each; some have records on both sides."""
    assert digits.members is not None
    stream = np.random.default_rng(0)
    trained = np.repeat(np.arange(400), stream.integers(1, 6, 400))[: len(digits.members)]
    test = 390 + np.repeat(np.arange(500), stream.integers(1, 6, 500))[: len(digits.non_members)]
    numbers = (torch.from_numpy(stream.permutation(one)) for one in (trained, test))
    return dataclasses.replace(digits, persons=Persons(*numbers))


def test_persons_are_attacked_whole_in_pairs_of_equal_size_and_never_split(shared: Data) -> None:
    plan, persons = plan_population(shared, 6, seed=0), shared.persons
    assert persons is not None
    assert plan.person is not None
    half = plan.attacked // 2
    sizes = np.bincount(plan.person)
    assert (sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]).all(), "the number of records tells nothing"
    trained = persons.members.numpy()
    assert not set(persons.non_members[plan.ids[half:]].tolist()) & set(trained.tolist())
    for ids, numbers, person in (
        (plan.ids[:half], persons.members, plan.person[:half]),
        (plan.ids[half:], persons.non_members, plan.person[half:]),
    ):
        assert len(set(zip(numbers[ids].tolist(), person.tolist(), strict=True))) == len(set(person.tolist()))
    rest = pairs_of(shared, 0).rest
    assert not set(trained[rest]) & set(trained[plan.ids[:half]]), "nobody attacked is in every shadow"
    assert len(plan.records) == plan.attacked + len(rest)
    for row in plan.inside:
        assert len(set(zip(plan.person.tolist(), row.tolist(), strict=True))) == len(sizes), "all of a person or none"
    assert len({len(plan.subset(shadow)) for shadow in range(6)}) == 1
    assert (plan.inside[0] != plan.inside[1]).all()
    assert np.array_equal(masks_by_person(plan.person, 4, 0), plan.inside[:4])
    assert np.array_equal(plan_population(shared, 2, seed=0).ids, plan.ids)


def planted(plan: PopulationPlan, gap: float, seed: int) -> tuple[np.ndarray, PersonCase]:
    """Margins of a target, float32 [n], and of 16 shadows: a record's difficulty, a person's own, and the gap."""
    assert plan.person is not None
    stream, inside = np.random.default_rng(seed), masks_by_person(plan.person, 16, seed)
    hard = stream.normal(2, 3, plan.attacked)

    def margins(side: np.ndarray) -> np.ndarray:
        common = 0.3 * stream.normal(size=(len(side), int(plan.person.max()) + 1))[:, plan.person]
        return (hard + gap * side + common + stream.normal(size=side.shape)).astype(np.float32)

    return margins(plan.is_member[None])[0], PersonCase(plan, ShadowSignals(inside, margins(inside)))


def area(phi: np.ndarray, given: PersonCase) -> float:
    assert given.population.person is not None
    found = UserLevel()._evidence(phi, given, given.population.person, Ledger())
    return auc(found.arrays[f"score/{found.summary['headline']}"], found.arrays["is_member"]).estimate


def test_what_the_records_of_a_person_give_away_adds_up_and_nothing_comes_of_nothing(shared: Data) -> None:
    plan = plan_population(shared, 2, seed=0)
    phi, given = planted(plan, 0.7, 0)
    assert given.shadows is not None
    record = auc(lira(phi[None].astype(float), given.shadows)[0], plan.is_member).estimate
    assert area(phi, given) > record + 0.04
    assert abs(area(*planted(plan, 0.0, 1)) - 0.5) < 0.06


@pytest.mark.parametrize("count", [2, 3])
def test_with_two_or_three_shadows_the_way_of_adding_up_is_named_beforehand(shared: Data, count: int) -> None:
    plan = plan_population(shared, 2, seed=0)
    phi, given = planted(plan, 1.0, 2)
    assert given.shadows is not None
    assert plan.person is not None
    few = PersonCase(plan, ShadowSignals(given.shadows.inside[:count], given.shadows.phi[:count]))
    found = UserLevel()._evidence(phi, few, plan.person, Ledger())
    assert found.summary["headline"] == found.summary["headline_auc"] == "mean of rmia"
    assert found.summary["figures"] == {}
    assert area(phi, few) > 0.6


def test_means_are_of_each_persons_records() -> None:
    assert per_person(np.array([[1.0, 2, 6], [0, 4, 4]]), np.array([0, 1, 1])).tolist() == [[1, 4], [0, 4]]


def test_names_of_persons_are_not_kept_and_what_does_not_fit_is_said(
    shared: Data, tmp_path: Path, refused: Callable[..., str]
) -> None:
    kept, arrays = outline(shared)
    again = data_of(kept, arrays)
    assert again.persons is not None
    assert shared.persons is not None
    assert torch.equal(again.persons.members, shared.persons.members)
    x, y = np.random.default_rng(0).random((60, 3)).astype(np.float32), np.arange(60) % 2
    names = np.array([f"patient {at // 2}" for at in range(60)])
    own = {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:], "y_test": y[30:]}
    file = tmp_path / "data.npz"
    np.savez(file, **own, persons_train=names[:30], persons_test=names[30:])
    found = load_npz(file, bounds=None)
    assert found.persons is not None
    assert found.persons.members.tolist() == (np.unique(names, return_inverse=True)[1][:30]).tolist()
    assert "patient" not in repr(outline(found)[0])
    np.savez(file, **own, persons_train=names[:30])
    refused(lambda: load_npz(file), InputError, "persons_test", "Give both")
    np.savez(file, **own, persons_train=names[:30], persons_test=names[:30])
    refused(lambda: load_npz(file), InputError, "0 who are none of them", "At least 10")
    np.savez(file, **own, persons_train=names[:29], persons_test=names[30:])
    refused(lambda: load_npz(file), InputError, "29 entries in persons_train", "30 records")
