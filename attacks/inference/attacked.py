"""Some of the records of a membership audit: those a costly attack is made on, and what shadow models say of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ...targets.data.records import Records
from ...targets.seeds import generator
from ..measurement import Bools
from ..membership.case import ShadowSignals
from ..membership.population import PopulationPlan
from ..membership.preparations import enough_for_all, population_of
from ..membership.replayed import own_signals
from ..preparation import Audited, Inputs, Need, Scope

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Attacked:
    """n records, members first, then as many non-members.

    Args:
        rows: int64 [n], their places among the attacked records of the population.
        ids: int64 [n], indices into `Data.members` or `Data.non_members`.
        is_member: bool [n].
        shadows: what shadow models compressed as the model is say of them; None: there is none.
        blocks: features that are one-hot blocks, declared or seen.
    """

    records: Records
    rows: Ids
    ids: Ids
    is_member: Bools
    shadows: ShadowSignals | None
    blocks: tuple[tuple[int, ...], ...] = ()


def rows_of(population: PopulationPlan, count: int, seed: int) -> Ids:
    """At most `count` places among the attacked records, half of them members'; fewer are among those of more."""
    half = population.attacked // 2
    own = min(half, count // 2)

    def some(side: str) -> Ids:
        drawn: Ids = (
            torch.randperm(half, generator=generator(seed, "attacked in part", side))[:own].sort().values.numpy()
        )
        return drawn

    return np.concatenate([some("members"), half + some("non-members")])


def needs_of(model: Audited, scope: Scope) -> tuple[Need, ...]:
    """The shared work that `prepare` wants."""
    signals = own_signals(model, scope)
    return () if signals is None else (signals,)


def prepare(model: Audited, count: int, inputs: Inputs) -> Attacked:
    """What an attack on this model finds in `Case.prepared`."""
    scope = inputs.scope
    population, signals = population_of(scope), own_signals(model, scope)
    rows, shadows = rows_of(population, count, scope.seed), None
    if signals is not None:
        arrays = inputs.prepared(signals).arrays
        first = slice(enough_for_all(scope))
        shadows = ShadowSignals(arrays["inside"][first][:, rows], arrays["phi"][first][:, rows])
        if not np.isfinite(shadows.phi).all():
            shadows = None
    blocks = tuple(tuple(range(first, last + 1)) for first, last in scope.data.undeclared_blocks)
    return Attacked(
        population.targets.take(torch.from_numpy(rows)),
        rows,
        population.ids[rows],
        population.is_member[rows],
        shadows,
        (*scope.data.structure.one_hot, *blocks),
    )


def preparing(model: Audited, count: int) -> partial[Attacked]:
    """As `Run.prepare` wants it."""
    return partial(prepare, model, count)
