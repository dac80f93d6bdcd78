"""Compressed shadows: made once, piece by piece; who looks at them again has the same to the bit and trains none."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.attacks.inference.probing import SensitivitiesOfShadows
from crushproof.attacks.membership import replayed
from crushproof.attacks.membership.population import plan_population
from crushproof.attacks.membership.preparations import ShadowModels
from crushproof.attacks.membership.replayed import SignalsOfShadows, replays_of
from crushproof.attacks.membership.signals import settled, shadow_signals
from crushproof.attacks.preparation import Prepared, Scope
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.recipe import RECIPES, Recipe
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.training import lessons
from crushproof.training.architecture import Architecture

CPU = torch.device("cpu")
NET = Architecture("net", lambda: nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)))
TUNE = {"epochs": 1, "batch_size": 8}
TWICE = [{"kind": "prune", "sparsity": 0.6, "steps": 2, "fine_tune": TUNE}, {"kind": "quantize", "weight_bits": 8}]
SHADOWS = 4


@pytest.fixture(scope="module")
def data() -> Data:
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 6, generator=draws), torch.arange(60) % 3
    parts = [Records(x[at], y[at]) for at in (slice(0, 25), slice(25, 60))]
    return Data("d", *parts, Bounds.of(0, 1), ("a", "b", "c"))


class Prepares:
    """Computes whatever is asked for, and what that needs, once; `done` says what, in order."""

    def __init__(self, data: Data) -> None:
        self.scope, self.device = Scope("membership", data, 0, SHADOWS, SHADOWS, {}), CPU
        self.done: dict[str, Prepared] = {}

    def prepared(self, need: Any) -> Prepared:
        if need.name not in self.done:
            known = {one.name for one in need.needs}
            for one in need.needs:
                self.prepared(one)
            seen = SimpleNamespace(scope=self.scope, device=CPU, prepared=self._of(known))
            self.done[need.name] = need.compute(seen)
            need.form(self.scope).check(b"{}", {}, self.done[need.name].arrays, {})
        return self.done[need.name]

    def _of(self, known: set[str]) -> Any:
        return lambda need: self.done[need.name] if need.name in known else pytest.fail(f"{need.name} is no need")


class Trained:
    """As a parent whose shadows are as they were initialised."""

    name, architecture, hardened, trainer = (
        "dense",
        NET,
        None,
        SimpleNamespace(
            identity="none", passes=None, fit=lambda job: [job.architecture.fresh(seed).eval() for seed in job.seeds]
        ),
    )

    def __init__(self, stack: int) -> None:
        self.stacks = lambda device: (stack, stack)
        self.chunks = tuple(ShadowModels(self, at, at + stack) for at in range(0, SHADOWS, stack))  # type: ignore[arg-type]  # all that is looked at

    def signals(self, recipe: Recipe, kind: Any = SignalsOfShadows) -> Any:
        return kind(self, recipe, replays_of(self, recipe, self.chunks, SHADOWS, CPU), SHADOWS)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("stack", [1, SHADOWS])
def test_compressed_shadows_are_trained_once_and_looked_at_again_to_the_bit(
    data: Data, stack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that trains twice and rounds behind it, so that work around the trainings is done anew."""
    recipe, parent, inputs = RECIPES.parse({"kind": "chain", "steps": TWICE}), Trained(stack), Prepares(data)
    phi = inputs.prepared(parent.signals(recipe)).arrays["phi"]
    plan = plan_population(data, SHADOWS, seed=0)
    modules = [NET.fresh(seed).eval().requires_grad_(False) for seed in plan.seeds]
    chosen = settled(plan, modules[0], recipe, data.bounds)
    monkeypatch.setattr(lessons, "train_stack", lambda *_, **__: pytest.fail("trained again"))
    again = inputs.prepared(parent.signals(recipe, SensitivitiesOfShadows)).arrays["features"]
    assert np.array_equal(again[:, :, 0], phi)
    monkeypatch.undo()
    if stack == SHADOWS:
        assert np.array_equal(phi, shadow_signals(plan, modules, recipe=chosen, bounds=data.bounds).phi)


def test_a_piece_waits_for_its_own_shadows_and_the_first(data: Data) -> None:
    parent, inputs = Trained(1), Prepares(data)
    recipe = Prune(sparsity=0.5, fine_tune=TUNE)
    inputs.prepared(parent.signals(recipe).replays[2])
    assert [name.split("/")[0] for name in inputs.done] == ["shadows", "shadows", "replays"]
    assert [one.name for one in parent.signals(recipe).replays[0].needs] == ["shadows/dense/0"]
    assert len(parent.signals(Prune(sparsity=0.5)).replays) == 1, "what trains nothing is one piece"


def test_trainings_that_take_too_much_room_are_done_again(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, parent, inputs = Prune(sparsity=0.5, fine_tune=TUNE), Trained(SHADOWS), Prepares(data)
    monkeypatch.setattr(replayed, "KEPT", 10)
    (piece,) = parent.signals(recipe).replays
    assert inputs.prepared(piece).arrays.keys() == {"phi"}
    again = inputs.prepared(parent.signals(recipe, SensitivitiesOfShadows)).arrays["features"]
    assert np.array_equal(again[:, :, 0], inputs.prepared(piece).arrays["phi"])


class Foreign(Recipe):
    """A recipe of another package that trains in its own way."""

    kind: str = "foreign-for-test"

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        return copy.deepcopy(module)

    @property
    def touches_records(self) -> bool:
        return True

    @property
    def trains(self) -> bool:
        return True

    @property
    def phrase(self) -> str:
        return "as it is"


def test_a_recipe_that_trains_in_its_own_way_is_a_piece_for_each_shadow(data: Data) -> None:
    parent, inputs = Trained(SHADOWS), Prepares(data)
    own, dense = parent.signals(Foreign()), parent.signals(None)  # type: ignore[arg-type]  # uncompressed
    assert len(own.replays) == SHADOWS
    assert np.array_equal(inputs.prepared(own).arrays["phi"], inputs.prepared(dense).arrays["phi"])
