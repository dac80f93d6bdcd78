"""What stored evidence of membership inference must look like, and what of it follows from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from ...targets.form import Amount, Array, Arrays, Document, Form, Layout, Share, require
from ..preparation import Audited, Scope
from .preparations import population_of, shadow_counts
from .scoring.pseudo_targets import score_names


class Procedure(Document):
    """Figures of one score over the shadows as targets; see `Membership`."""

    targets: PositiveInt
    tpr_mean: Share | None
    tpr_sd: Amount | None
    auc_mean: Share
    auc_sd: Amount
    untrained_auc: Share
    untrained_auc_sd: Amount
    untrained_tpr: Share | None
    untrained_tpr_sd: Amount | None
    tpr_half: Share | None


class Summary(Document):
    """`Evidence.summary` of membership inference."""

    headline: str
    headline_auc: str
    n: PositiveInt
    shadows: dict[Literal["own", "dense"], PositiveInt]
    restored: bool
    pseudo_targets: dict[str, Procedure]


def evidence_form(model: Audited, scope: Scope) -> Form:
    """Of a run on this model."""
    return Form(Summary, partial(_layout, scope), holds=partial(_holds, model, scope))


def _scores(summary: Summary) -> list[str]:
    known = [f"{kind}/{sort}" for sort, count in summary.shadows.items() for kind in score_names(count)]
    return ["loss", *(known or ["population", "quantile"])]


def _layout(scope: Scope, summary: Summary) -> Layout:
    count = population_of(scope).attacked
    scores = Array("float64", (count,))
    return {
        "ids": Array("int64", (count,)),
        "is_member": Array("bool", (count,)),
        "phi": Array("float32", (count,)),
        "blind": scores,
        **({"restored": Array("float32", (count,))} if summary.restored else {}),
        **{f"score/{name}": scores for name in _scores(summary)},
    }


def _holds(model: Audited, scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    population, names = population_of(scope), _scores(found)
    require({found.headline, found.headline_auc, *found.pseudo_targets} <= {*names}, "a score that there is not")
    require(max(found.shadows.values(), default=0) <= max(scope.training_free, scope.trained), "too many shadow models")
    full, own = shadow_counts(model, scope)[0], found.shadows.get("own", 0)
    of_runs = {full, *(count for count in (scope.training_free, scope.trained) if count < full)}
    require(own in of_runs and (own > 0 or not found.shadows), "shadow models of another model")
    require("own" in found.shadows or not found.restored, "scores put on the scale of shadows that there are not")
    require(found.n == population.attacked, "n is not the number of records")
    require(np.array_equal(arrays["ids"], population.ids), "ids are not those of the records")
    require(np.array_equal(arrays["is_member"], population.is_member), "is_member is not the truth")
    require(np.array_equal(arrays["score/loss"], arrays["phi"].astype(np.float64)), "score/loss is not that of phi")
