"""How a model's answers on records move when the records are altered a little: what SAMIA tells members by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.form import Array
from ...targets.model import Target, TorchTarget
from ...targets.seeds import derive, normal
from ..measurement import Bools, Floats
from ..membership.preparations import population_of
from ..membership.replayed import LookedAtShadows
from ..membership.signals import AT_ONCE, margin
from ..preparation import Inputs, Scope
from .altered import altered

NOISE = 0.1  # standard deviation, in [0, 1] units
LARGEST = 8  # probabilities of a record that are looked at, the largest first
FOLDS = 4  # in which shadows are left out, pair by pair
ROWS = 40_000  # that a classifier is fitted on at most
SMALL = 1e-6

Features = np.ndarray[Any, np.dtype[np.float32]]


def count_of(classes: int) -> int:
    """How many features a record has."""
    return 2 + 2 * min(classes, LARGEST)


def features(target: Target, records: Records, data: Data, draws: int, *, seed: int) -> Features:
    """What a model's answers on n records tell, float32 [n, f]; takes n (1 + draws) queries.

    The margin; the logarithm of how far it moves, on average, when the record is altered; the logarithms of the largest
    probabilities, in order; and of how far these move (Yuan & Zhang 2022, section 4.1).
    """
    logits = _asked(target, records.x)
    phi, p = margin(logits, records.y).astype(np.float64), torch.softmax(logits, 1)
    moved, shifted = np.zeros(len(phi)), torch.zeros_like(p)
    for other in _copies(records.x, data, draws, seed):
        answer = _asked(target, other)
        moved += np.abs(margin(answer, records.y) - phi) / draws
        shifted += (torch.softmax(answer, 1) - p).abs() / draws
    largest = p.topk(min(data.classes, LARGEST), dim=1)
    every = [largest.values, shifted.gather(1, largest.indices)]
    columns = [phi[:, None], np.log(moved + SMALL)[:, None], *((one + SMALL).log().cpu().numpy() for one in every)]
    return np.concatenate(columns, 1).astype(np.float32)


def _asked(target: Target, x: Tensor) -> Tensor:
    return torch.cat([target.logits(some) for some in x.split(AT_ONCE)]).double()


def _copies(x: Tensor, data: Data, draws: int, seed: int) -> Iterator[Tensor]:
    """With normal noise within the bounds; where values are categories or ids, with features of other records."""
    ids = np.arange(len(x))
    if data.structure.declared or data.undeclared_blocks or data.bounds.whole is not None:
        blocks = tuple(tuple(range(first, last + 1)) for first, last in data.undeclared_blocks)
        blocks = (*data.structure.one_hot, *blocks)
        yield from altered(x, ids, draws, data.attacker, data.structure, blocks, seed)
        return
    bounds = data.bounds.to(x.device)
    for draw in range(draws):
        noise = normal(derive(seed, "noise", draw), ids, tuple(x.shape[1:])).to(x.device)
        yield bounds.clamp(x + NOISE * bounds.scale * noise)


@dataclass(frozen=True)
class SensitivitiesOfShadows(LookedAtShadows):
    """As `SignalsOfShadows`, with what the shadows' answers on altered records tell.

    Arrays: `inside` bool [k, n]; `features` float32 [k, n, f].
    """

    draws: int = 8

    @property
    def name(self) -> str:
        return super().name.replace("signals/", f"sensitivities/{self.draws}/", 1)

    @property
    def words(self) -> str:
        return f"answers on altered records of {self.which}"

    @property
    def identity(self) -> Any:
        return [super().identity, self.draws]

    def seen(self, modules: Iterable[nn.Module], inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
        return {"features": np.stack([asked(TorchTarget(one), inputs.scope, self.draws) for one in modules])}

    def telling(self, scope: Scope, shadows: int) -> dict[str, Array]:
        shape = (shadows, population_of(scope).attacked, count_of(scope.data.classes))
        return {"features": Array("float32", shape, finite=False)}


def asked(target: Target, scope: Scope, draws: int) -> Features:
    """`features` of the attacked records of an audit."""
    return features(target, population_of(scope).targets, scope.data, draws, seed=derive(scope.seed, "sensitivity"))


def learned(own: Features, known: Features, inside: Bools, seed: int) -> tuple[Floats, Floats]:
    """Scores by classifiers that learn from shadows how members look: of the target, [n], and of each shadow, [k, n].

    Each of `FOLDS` classifiers (boosted trees) learns from some pairs of shadows and scores the others; the target's
    score is their mean. So no shadow is scored by what has seen it or its complement.

    Args:
        own: [n, f], of the target; known: [k, n, f]; inside: bool [k, n].
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    k, n, f = known.shape
    fold = (np.arange(k) // 2) % min(FOLDS, max(k // 2, 2))
    found, of_shadows = np.zeros(n), np.zeros((k, n))
    rng = np.random.default_rng(derive(seed, "samia"))
    for one in np.unique(fold):
        x, y = known[fold != one].reshape(-1, f), inside[fold != one].ravel()
        rows = rng.permutation(len(x))[:ROWS]
        trees = HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.1, max_leaf_nodes=15, early_stopping=False, random_state=0
        )
        trees.fit(x[rows], y[rows])
        found += trees.decision_function(own) / len(np.unique(fold))
        of_shadows[fold == one] = trees.decision_function(known[fold == one].reshape(-1, f)).reshape(-1, n)
    return found, of_shadows
