"""What stored evidence of extraction must look like, and what of it follows from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from ...targets.form import Array, Arrays, Count, Document, Form, Layout, Share, require
from ...targets.serving.query_streams import NONE, WATCHED


class Summary(Document):
    """`Evidence.summary` of extraction."""

    copies: tuple[str, ...]
    budgets: tuple[Count, ...]
    queries: dict[str, Count]
    kept: str
    fidelity: dict[str, Share]
    copy_accuracy: dict[str, Share] = Field(alias="copy accuracy")
    fidelity_without_queries: Share = Field(alias="fidelity without queries")
    transfer: dict[str, Share]
    architecture_known: bool = Field(alias="architecture known")
    architecture_guessed: str = Field(alias="architecture guessed")
    builtin_architecture: tuple[str, ...] = Field(alias="built-in architecture")
    records_owned: Count = Field(alias="records owned")
    judging_queries: Count = Field(alias="judging queries")


def evidence_form(
    queries: Mapping[str, int], budgets: tuple[int, ...], ids: np.ndarray[Any, Any], attacked: int
) -> Form:
    """Of a run.

    Args:
        queries: spent on each copy, in their order.
        ids: of the records; attacked: how many of them through each copy.
    """
    return Form(Summary, partial(_layout, len(ids), attacked), holds=partial(_holds, queries, budgets, ids))


def _layout(count: int, attacked: int, summary: Summary) -> Layout:
    outcomes = Array("bool", (count,))
    asked: dict[str, int] = {}  # by the sort of answers, the most: stored keys are in no order of budgets
    for name, spent in summary.queries.items():
        sort, slash, _ = name.partition("/")
        if slash:
            asked[sort] = max(spent, asked.get(sort, 0))
    return {
        "ids": Array("int64", (count,)),
        "target_correct": outcomes,
        **{f"{sort}/{name}": outcomes for sort in ("agrees", "copy_correct") for name in summary.copies},
        **{f"transfer/{name}": Array("bool", (attacked,)) for name in summary.transfer},
        **{
            f"distances/{name}": Array("float32", (min(queries, WATCHED),), low=NONE)
            for name, queries in {**asked, "honest": count}.items()
        },
    }


def _holds(
    queries: Mapping[str, int],
    budgets: tuple[int, ...],
    ids: np.ndarray[Any, Any],
    found: Summary,
    arrays: Arrays,
    files: Mapping[str, Any],
) -> None:
    require(list(found.copies) == list(queries) and found.queries == queries, "the copies are not those of the attack")
    require(found.budgets == budgets, "the budgets are not those of the attack")
    require(np.array_equal(arrays["ids"], ids), "ids are not those of the records")
    require(found.kept in found.transfer or not found.transfer, "the copy that is kept is none of the strongest")
    require({found.kept, *found.transfer} <= {*queries} >= {*found.builtin_architecture}, "a copy that there is not")
    for sort, shares in (
        ("agrees", found.fidelity),
        ("copy_correct", found.copy_accuracy),
        ("transfer", found.transfer),
    ):
        means = {name: float(arrays[f"{sort}/{name}"].mean()) for name in shares}
        require(shares == means and (sort == "transfer" or shares.keys() == queries.keys()), f"{sort} is another share")
