"""Models and margins for `membership.py`: trained once, kept in a folder so that a run that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from verdict_targets import adult as adult_arrays
from verdict_targets import mnist as mnist_arrays
from verdict_targets import tokens as token_arrays

from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import PopulationPlan, masks
from crushproof.attacks.membership.signals import margin, replay, settled
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget, frozen_copy
from crushproof.targets.seeds import derive
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp, TokenGru
from crushproof.training.trainer import BuiltinTrainer

SHADOWS, TARGETS = 64, 12
CHUNK = 16  # models that are trained, replayed and kept at a time
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Kept:
    """A folder of arrays by what made them; None: nothing is kept."""

    folder: Path | None

    def get(self, name: str, key: Any, make: Callable[[], Arrays]) -> Arrays:
        """`make`'s arrays and the CPU seconds it took, as `seconds`; made once."""
        digest = hashlib.sha256(json.dumps([name, key], sort_keys=True).encode()).hexdigest()[:16]
        path = None if self.folder is None else self.folder / f"{name}-{digest}.npz"
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        before = time.process_time()
        arrays = make()
        arrays["seconds"] = np.array(time.process_time() - before)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)
            os.replace(partial, path)
        return arrays


@dataclass(frozen=True, eq=False)
class World:
    """Attacked records, shadow models and targets, each trained on a random half of them.

    The first `SHADOWS` of the models are shadows in complementary pairs, the others targets, each of a half of its own.

    Args:
        records: n attacked records.
        own: records of the attacker's, which no model is trained on.
    """

    name: str
    records: Records
    own: Records
    architecture: Architecture
    training: Training
    kept: Kept

    @cached_property
    def plan(self) -> PopulationPlan:
        n = len(self.records)
        inside = np.concatenate([masks(n, SHADOWS, 1), masks(n, 2 * TARGETS, 2)[::2]])
        seeds = tuple(derive(0, self.name, model) for model in range(len(inside)))
        return PopulationPlan(self.records, n, np.zeros(n, dtype=bool), np.arange(n), inside, seeds)

    @property
    def truths(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """bool [targets, n]."""
        return self.plan.inside[SHADOWS:]

    @cached_property
    def models(self) -> list[nn.Module]:
        return [module for chunk in self._chunks for module in chunk[0]]

    @property
    def training_seconds(self) -> float:
        """CPU, of one model."""
        return sum(seconds for _, seconds in self._chunks) / len(self.models)

    @cached_property
    def _chunks(self) -> list[tuple[list[nn.Module], float]]:
        return [self._trained(first, last) for first, last in parts(len(self.plan.inside))]

    def _trained(self, first: int, last: int) -> tuple[list[nn.Module], float]:
        def make() -> Arrays:
            trainer = BuiltinTrainer(self.training)
            fitted = self.plan.fit(trainer, self.architecture, first=first, last=last, device=torch.device("cpu"))
            state = [module.state_dict().items() for module in fitted]
            return {f"{at}/{name}": value.numpy() for at, one in enumerate(state) for name, value in one}

        key = [self.training.model_dump(mode="json"), self.architecture.name, len(self.records), first, last]
        arrays = self.kept.get(f"{self.name}-models", key, make)
        modules = []
        for at in range(last - first):
            module = self.architecture.blank()
            own = {name.partition("/")[2]: one for name, one in arrays.items() if name.startswith(f"{at}/")}
            module.load_state_dict({name: torch.from_numpy(one) for name, one in own.items()})
            modules.append(frozen_copy(module))
        return modules, float(arrays["seconds"])

    def signals(self, recipe: dict[str, Any] | None) -> tuple[Arrays, float]:
        """Margins `phi` [models, n] and `own` [models, m] of all models under the recipe; CPU seconds of a replay."""
        found: list[Arrays] = []
        for first, last in parts(len(self.plan.inside)):

            def make(first: int = first, last: int = last) -> Arrays:
                modules = self.models[first:last]
                if recipe is not None:
                    chosen = settled(self.plan, modules[0], RECIPES.parse(recipe), Bounds.of(0, 1))
                    modules = replay(self.plan, modules, first=first, recipe=chosen, bounds=Bounds.of(0, 1))
                asked = [TorchTarget(module) for module in modules]
                return {
                    name: np.stack([margin(one.logits(records.x), records.y) for one in asked])
                    for name, records in (("phi", self.records), ("own", self.own))
                }

            key = [self.training.model_dump(mode="json"), self.architecture.name, recipe, first, last]
            _ = self.models  # trained outside the clock
            found.append(self.kept.get(f"{self.name}-signals", key, make))
        seconds = sum(float(one["seconds"]) for one in found) / len(self.plan.inside)
        return {name: np.concatenate([one[name] for one in found]) for name in ("phi", "own")}, seconds

    def shadows(self, phi: np.ndarray[Any, Any], first: int = 0, last: int = SHADOWS) -> ShadowSignals:
        return ShadowSignals(self.plan.inside[first:last], phi[first:last])


def parts(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]


def phi_of(module: nn.Module, records: Records) -> np.ndarray[Any, np.dtype[np.float32]]:
    return margin(TorchTarget(module).logits(records.x), records.y)


def location(folder: Path, kept: Kept) -> World:
    """Location-30: 446 yes-or-no features, 30 classes; 4,000 records are attacked, 1,010 are the attacker's.

    The net and its training are the usual ones of the benchmark: one hidden layer, trained until all records are right.
    """
    with np.load(folder / "location30.npz", allow_pickle=False) as archive:
        x = np.unpackbits(archive["x_packed"], axis=1)[:, : int(archive["n_features"])].astype(np.float32)
        y = archive["y"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    records = Records(torch.from_numpy(x[order]), torch.from_numpy(y[order]))
    training = Training(epochs=30, batch_size=64, learning_rate=5e-3, weight_decay=0.0)
    architecture = Architecture("mlp 446-64-30", lambda: Mlp(446, 30, (64,)))
    attacked, own = (records.take(torch.arange(first, last)) for first, last in ((0, 4000), (4000, len(x))))
    return World("location", attacked, own, architecture, training, kept)


def digits(kept: Kept) -> World:
    """scikit-learn's digits: 1,400 of 1,797 are attacked, the others are the attacker's."""
    data = load_digits(0)
    assert data.members is not None
    both = (data.members, data.non_members)
    records = Records(torch.cat([one.x for one in both]), torch.cat([one.y for one in both]))
    attacked, own = (records.take(torch.arange(*ends)) for ends in ((0, 1400), (1400, len(records))))
    return World("digits", attacked, own, Architecture("mlp", lambda: Mlp(64, 10)), Training(epochs=15), kept)


def held_out(folder: Path, kept: Kept) -> list[World]:
    """Worlds on which no constant of a score was chosen: a table, images and tokens, each trained far past its best."""

    def world(name: str, arrays: Arrays, n: int, own: int, build: Callable[[], nn.Module], training: Training) -> World:
        order = np.random.default_rng(1).permutation(len(arrays["y_train"]))[: n + own]
        x = torch.from_numpy(arrays["x_train"][order]).float()
        if x.dim() == 3:  # 28 x 28 as 14 x 14, so that models are trained side by side
            x = F.avg_pool2d(x.unsqueeze(1), 2)
        records = Records(x, torch.from_numpy(arrays["y_train"][order]).long())
        attacked, rest = records.take(torch.arange(n)), records.take(torch.arange(n, n + own))
        return World(name, attacked, rest, Architecture(name, build), training, kept)

    table = adult_arrays(folder)
    width = table["x_train"].shape[1]
    long = Training(epochs=30, batch_size=64, learning_rate=5e-3, weight_decay=0.0)
    words = Training(epochs=12, batch_size=32, learning_rate=5e-3, weight_decay=0.0)
    return [
        world("adult", table, 3000, 1000, lambda: Mlp(width, 2, (64,)), long),
        world("mnist", mnist_arrays(folder), 3000, 1000, lambda: Mlp(196, 10, (64,)), long),
        world("tokens", token_arrays(folder), 1600, 400, lambda: TokenGru(24, 4, 24), words),
    ]
