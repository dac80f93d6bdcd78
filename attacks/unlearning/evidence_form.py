"""What stored evidence of unlearning must look like."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from ...targets.form import Amount, Array, Arrays, Count, Document, Form, Layout, Share, require
from ..membership.preparations import population_of
from ..membership.replayed import own_signals
from ..preparation import Audited, Scope


class NullRow(Document):
    """`scores.Null`."""

    targets: PositiveInt
    auc_mean: Share
    auc_sd: Amount
    auc_most: Share
    spread: Amount
    recall_mean: Share
    recall_sd: Amount


class Summary(Document):
    """`Evidence.summary` of unlearning."""

    headline: Literal["shadows", "retrained", "population"]
    forgotten: PositiveInt
    shadows: Count
    null: NullRow | None


def evidence_form(model: Audited, scope: Scope, retrained: bool) -> Form:
    """Of a run on this model."""
    alone = own_signals(model, scope) is None
    names = [] if alone else ["shadows"]
    names += ["retrained"] if retrained else []
    names += ["population"] if alone else []
    return Form(Summary, partial(_layout, scope, names), holds=partial(_holds, scope, names))


def _layout(scope: Scope, names: list[str], summary: Summary) -> Layout:
    others = population_of(scope).attacked // 2
    count = others + _forgotten(scope)
    return {
        "ids": Array("int64", (others,)),
        "is_forgotten": Array("bool", (count,)),
        "phi": Array("float32", (count,)),
        **{f"score/{name}": Array("float64", (count,)) for name in names},
    }


def _forgotten(scope: Scope) -> int:
    return 0 if scope.data.forgotten is None else len(scope.data.forgotten)


def _holds(scope: Scope, names: list[str], found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    population, count = population_of(scope), _forgotten(scope)
    require(found.forgotten == count, "forgotten is not the number of records to forget")
    require(found.headline == names[0], "the headline is another score than the first there is")
    require(np.array_equal(arrays["ids"], population.ids[~population.is_member]), "ids are not those of the records")
    truth = np.arange(len(arrays["is_forgotten"])) < count
    require(np.array_equal(arrays["is_forgotten"], truth), "is_forgotten is not the truth")
    require(found.shadows <= max(scope.training_free, scope.trained), "too many shadow models")
