"""Membership inference as calls."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crushproof.attacks.membership.infer as module_of_calls
from crushproof import InputError, NotApplicable, Training, infer_membership, train_shadows
from crushproof.attacks.membership.infer import Population
from crushproof.attacks.membership.scoring.scores import bavaria
from crushproof.targets.data.records import Bounds
from crushproof.training.networks import Mlp

QUICK = Training(epochs=1, batch_size=16)
N = 120


def records(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels without a pattern: what a model knows of them it has memorised."""
    draws = torch.Generator().manual_seed(0)
    return torch.rand(n, 12, generator=draws), torch.randint(0, 3, (n,), generator=draws)


def build() -> nn.Module:
    return Mlp(12, 3, (32,))


@pytest.fixture(scope="module")
def population() -> Population:
    training = Training(epochs=30, batch_size=16, learning_rate=2e-2, weight_decay=0)
    return train_shadows(build, *records(), shadows=16, training=training)


def test_the_example() -> None:
    assert doctest.testmod(module_of_calls) == doctest.TestResults(failed=0, attempted=5)


def test_calls_and_recipes_by_their_short_names(population: Population) -> None:
    from crushproof.attacks import membership

    assert membership.train_shadows is train_shadows
    assert membership.infer_membership is infer_membership
    some = replace(population, modules=population.modules[:2])
    word, spelled = some.replay("int8"), some.replay({"kind": "quantize", "weight_bits": 8})
    assert np.array_equal(word.signals.phi, spelled.signals.phi)
    with pytest.raises(InputError, match="'int99'"):
        some.replay("int99")


def test_a_shadow_is_found_out_by_the_others(population: Population) -> None:
    """Memorised records of the first, attacked by a population without it and its complement."""
    others = Population(
        population.modules[2:],
        module_of_calls.ShadowSignals(population.signals.inside[2:], population.signals.phi[2:]),
        population.plan,
        population.bounds,
    )
    truth = population.signals.inside[0]
    found = infer_membership(population.modules[0], others)
    estimate, low, high = found.auc(truth)
    assert 0.7 < low < estimate < high
    false, true = found.roc(truth)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert found.tpr(truth, 0.1)[0] > 0.2
    assert found.headline in ("bavaria", "rmia")
    assert np.median(found.odds[truth]) > 1 > np.median(found.odds[~truth])


def test_some_of_the_records_are_asked_about_alone(population: Population) -> None:
    (x, y), chosen, target = records(), torch.tensor([7, 3, 100]), population.modules[0]
    some, every = (infer_membership(target, population, one) for one in ((x[chosen], y[chosen]), None))
    for name, score in every.parts.items():
        assert np.allclose(some.parts[name], score[chosen.numpy()], rtol=1e-3, atol=1e-4), name
    with pytest.raises(InputError, match="1 of 2 records are none of the 120"):
        infer_membership(target, population, (torch.stack([x[0], x[1] + 0.01]), y[:2]))
    with pytest.raises(InputError, match="records are none"):
        infer_membership(target, population, (x[:0], y[:0]))
    with pytest.raises(InputError, match="records is Tensor"):
        infer_membership(target, population, x)  # type: ignore[arg-type]  # a mistake


def test_one_shadow_is_a_ratio_to_it() -> None:
    alone = train_shadows(build, *records(), shadows=1, training=QUICK)
    found = infer_membership(alone.modules[0], alone)
    assert found.headline == "rmia"
    assert found.parts.keys() == {"loss", "rmia"}
    inside = alone.signals.inside[0]
    assert found.scores[inside].mean() > found.scores[~inside].mean(), "it knows its own, like the shadow that it is"
    assert np.allclose(found.odds, 1), "one shadow tells no odds"


def test_a_compressed_target_is_judged_by_shadows_compressed_alike(population: Population) -> None:
    recipe = {"kind": "prune", "sparsity": 0.5}
    small = population.replay(recipe)
    assert [
        (one == 0).any().item() for one in (small.modules[0].layers[1].weight, population.modules[0].layers[1].weight)
    ] == [True, False]
    assert len(small) == 16
    found = infer_membership(small.modules[0], small)
    assert np.array_equal(found.scores, found.parts[found.headline])
    expected = bavaria(small.signals.phi[:1], small.signals)[0]
    assert np.allclose(found.parts["bavaria"], expected, atol=1e-2)


def test_equal_seeds_give_equal_shadows_and_known_records_are_in_all() -> None:
    x, y = records(40)
    known = x[:7] / 2, y[:7]
    one, two = (train_shadows(build, x, y, shadows=2, training=QUICK, known=known, seed=3) for _ in range(2))
    assert np.array_equal(one.signals.phi, two.signals.phi)
    assert [len(one.plan.subset(shadow)) for shadow in range(2)] == [27, 27]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y": torch.zeros(3, dtype=torch.int64)}, "float32"),
        ({"y": torch.rand(40)}, "whole numbers"),
        ({"y": torch.full((40,), 9)}, "goes up to 9"),
        ({"x": torch.full((40, 12), torch.nan)}, "not finite"),
        ({"x": torch.rand(40, 5)}, "none for records"),
        ({"shadows": 0}, "At least 1 shadow"),
        ({"shadows": "16"}, "whole number"),
        ({"memory": "4 GB"}, "in bytes"),
        ({"lower": torch.zeros(12)}, "are numbers"),
        ({"architecture": None}, "gives no module"),
        ({"architecture": lambda: 3}, "gives int"),
        ({"architecture": lambda: nn.Linear(12, 1)}, "let the model give two"),
        ({"known": torch.rand(2, 12)}, "a pair"),
        ({"memory": 1000}, "GB"),
        ({"known": tuple(one[:3] for one in records(40))}, "3 of the known records are among x"),
        ({"known": (torch.rand(2, 3), torch.zeros(2, dtype=torch.int64))}, "known"),
    ],
)
def test_mistakes_are_told_in_a_sentence(changed: dict[str, Any], said: str) -> None:
    x, y = records(40)
    with pytest.raises(InputError, match=said):
        train_shadows(**{"architecture": build, "x": x, "y": y, "training": QUICK, **changed})


def test_targets_and_truths_that_do_not_fit(population: Population) -> None:
    with pytest.raises(InputError, match="cannot be asked"):
        infer_membership(nn.Linear(3, 3), population)
    for outputs, said in ((2, "3 values"), (5, "no models like it"), (1, "let the model give two")):
        with pytest.raises(NotApplicable, match=said):
            infer_membership(nn.Linear(12, outputs), population)
    with pytest.raises(InputError, match="what train_shadows"):
        infer_membership(build(), population.modules)  # type: ignore[arg-type]  # as somebody may
    beyond = replace(population, bounds=Bounds.of(0.0, 0.5))
    with pytest.raises(InputError, match="lower= and upper="):
        beyond.replay({"kind": "prune", "sparsity": 0.5})
    found = infer_membership(build(), population)
    with pytest.raises(InputError, match="both sorts"):
        found.auc(np.ones(N, dtype=bool))
    with pytest.raises(InputError, match="false positive rate"):
        found.tpr(np.arange(N) < 60, 0.001)


def test_shadows_are_trained_by_a_function_of_ones_own() -> None:
    asked: list[int] = []

    def train(module: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
        asked.append(len(y))
        nn.init.constant_(list(module.parameters())[-1], 7.0)
        return module

    population = train_shadows(build, *records(40), shadows=2, training=train)
    assert asked == [20, 20]
    assert repr(population) == "Population(2 shadows, 40 records)"
    assert "shadows" not in repr(infer_membership(build(), population))
    with pytest.raises(InputError, match="or your own function"):
        train_shadows(build, *records(40), shadows=2, training={"epochs": 1})
