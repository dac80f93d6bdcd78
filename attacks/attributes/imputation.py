"""Guessing hidden columns without any model: imputers that are fitted on the attacker's own records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.form import Array, Document, Form
from ...targets.seeds import derive, generator
from ..effort import Effort
from ..preparation import Inputs, Preparation, Prepared, Scope

MOST = 16  # categories of a column that is guessed
FITTED = 4000  # records that imputers are fitted on, at most
FLOOR = 1e-6  # of a probability
ROUNDS = 30  # of boosting

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Column:
    """A column of categories: one 0/1 feature each."""

    name: str
    features: tuple[int, ...]

    def categories(self, x: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Which one each record has, int64 [n]; one that has none counts as the first."""
        return x[:, list(self.features)].argmax(1).cpu().numpy().astype(np.int64)

    def filled(self, x: Tensor, category: int) -> Tensor:
        """Copies of records with that category."""
        filled = x.clone()
        filled[:, list(self.features)] = 0.0
        filled[:, self.features[category]] = 1.0
        return filled


def columns(data: Data) -> tuple[Column, ...]:
    """The one-hot blocks of a table, declared or seen, of 2 to `MOST` categories."""
    if len(data.shape) != 1:
        return ()
    declared = data.structure.one_hot
    blocks = declared or tuple(tuple(range(first, last)) for first, last in data.undeclared_blocks)
    named = [one.column for one in data.structure.encoded]
    names = named if len(named) == len(blocks) else [f"features {block[0]} to {block[-1]}" for block in blocks]
    return tuple(Column(name, block) for name, block in zip(names, blocks, strict=True) if 2 <= len(block) <= MOST)


def attacked(data: Data, records: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids of the members and of the non-members that are guessed at, equally many, int64 [n] each, ascending."""
    members = 0 if data.members is None else len(data.members)
    count = min(members, len(data.evaluation_ids), records)

    def draw(of: int, label: str) -> Tensor:
        return torch.randperm(of, generator=generator(seed, "attributes", label))[:count].sort().values

    return draw(members, "members"), data.evaluation_ids[draw(len(data.evaluation_ids), "others")]


def records_of(data: Data, records: int, seed: int) -> Records:
    """Those records, members first."""
    assert data.members is not None, "who calls this has looked"
    inside, others = attacked(data, records, seed)
    first, second = data.members.take(inside), data.non_members.take(others)
    return Records(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]))


@dataclass(frozen=True)
class Imputed(Preparation):
    """How likely each category of each column is, by what is public.

    Arrays, of the i-th column: `<i>/blind` and `<i>/labelled`, log-probabilities float64 [2 n, categories], without and
    with the record's label known.
    """

    phase: ClassVar[str] = "attributes"
    records: int

    @property
    def name(self) -> str:
        return f"imputed/{self.records}"

    @property
    def words(self) -> str:
        return "guessing hidden columns without any model"

    @property
    def identity(self) -> Any:
        return [self.records]

    @property
    def effort(self) -> Effort:
        return Effort(seconds=20.0)

    def compute(self, inputs: Inputs) -> Prepared:
        data, seed = inputs.scope.data, inputs.scope.seed
        target = records_of(data, self.records, seed)
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for at, column in enumerate(columns(data)):
            for name, labelled in (("blind", False), ("labelled", True)):
                arrays[f"{at}/{name}"] = impute(column, data.attacker, target, labelled, derive(seed, "imputer"))
        return Prepared(arrays)

    def form(self, scope: Scope) -> Form:
        found: dict[str, Array] = {}
        n = 2 * len(attacked(scope.data, self.records, scope.seed)[0])
        for at, column in enumerate(columns(scope.data)):
            one = Array("float64", (n, len(column.features)), high=1e-9)
            found |= {f"{at}/blind": one, f"{at}/labelled": one}
        return Form(Document, found)


def impute(column: Column, known: Records, target: Records, labelled: bool, seed: int) -> Floats:
    """Log-probabilities of a column's categories for `target`, float64 [n, categories].

    Logistic regression or boosted trees, whichever guesses more of the later third of the attacker's records right when
    it is fitted on the others. What no known record has is all but ruled out.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    known = known.take(torch.arange(min(len(known), FITTED)))
    x, y = _features(column, known, labelled), column.categories(known.x)
    wanted = _features(column, target, labelled)
    probabilities = np.full((len(wanted), len(column.features)), FLOOR)
    if len(np.unique(y)) < 2:
        probabilities[:, y[:1]] = 1.0
    else:
        makers: Mapping[str, Any] = {
            "linear": lambda: LogisticRegression(max_iter=300),
            "trees": lambda: HistGradientBoostingClassifier(
                max_iter=ROUNDS, learning_rate=0.2, max_leaf_nodes=8, early_stopping=False, random_state=seed % 2**32
            ),
        }
        cut = 2 * len(y) // 3
        right = {"linear": 0.0, "trees": -1.0}
        if len(np.unique(y[:cut])) > 1:
            right = {
                name: float((make().fit(x[:cut], y[:cut]).predict(x[cut:]) == y[cut:]).mean())
                for name, make in makers.items()
            }
        best = makers[max(right, key=right.__getitem__)]().fit(x, y)
        probabilities[:, best.classes_] = np.maximum(best.predict_proba(wanted), FLOOR)
    logs: Floats = np.log(probabilities / probabilities.sum(1, keepdims=True))
    return logs


def _features(column: Column, records: Records, labelled: bool) -> np.ndarray[Any, Any]:
    kept = np.delete(records.x.cpu().numpy(), column.features, axis=1)
    if not labelled:
        return kept
    labels = records.y.cpu().numpy()
    return np.concatenate([kept, np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]], axis=1)
