"""What the stored evidence of flipped bits looks like, and what must hold in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ...targets.form import Array, Arrays, Count, Document, Form, Layout, Share, require
from ..measurement import Bools
from ..preparation import Scope
from .integrity import CHECKS
from .stored import ROLES, Flip

Goals = Literal["chance", "class"]
Text = Annotated[str, Field(max_length=400)]
FLIP = ("search", "tensor", "element", "bit")  # columns of `flips`


class Tensor(Document):
    """A tensor of parameters: its name, what it is for, which node computes with it, an element's bits, elements."""

    name: Text
    role: Text
    layer: Text
    width: Annotated[int, Field(ge=1, le=64)]
    elements: Annotated[int, Field(ge=1)]


class Search(Document):
    """One search: `wanted` is the class to miss (-1: any record); `stuck`: it ended early, nothing else helped."""

    goal: Goals
    part: Text
    draw: Count
    wanted: Annotated[int, Field(ge=-1)]
    reached: bool
    stuck: bool


class Summary(Document):
    """`Evidence.summary`. `chance`: accuracy at or below which the file is useless; `own`: records that each
    search had; `lost`: sets of random flips after which the file no longer runs; `groups`: of
    the checksums.
    """

    tensors: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=100_000)]
    searches: tuple[Search, ...]
    chance: Share
    own: Annotated[int, Field(ge=1)]
    budget: Annotated[int, Field(ge=1)]
    random: Count
    lost: Count
    groups: Count


def evidence_form(count: int, settings: Mapping[str, int], scope: Scope) -> Form:
    """Of a run on so many evaluation records."""

    def layout(summary: Summary) -> Layout:
        searches = len(summary.searches)
        return {
            "ids": Array("int64", (count,)),
            "clean_correct": Array("bool", (count,)),
            "flips": Array("int64", ("f", len(FLIP)), low=0),
            "after": Array("bool", ("f", count)),
            "random": Array("bool", (settings["draws"] - summary.lost if summary.random else 0, count)),
            "noticed": Array("bool", (searches, len(CHECKS))),
            "groups": Array("int64", (searches, 2), low=0, high=summary.groups),
        }

    def holds(found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
        ids = scope.data.evaluation_ids.numpy()[:count]
        require(np.array_equal(arrays["ids"], ids), "ids are not those of the records")
        given = {name: getattr(found, name) for name in ("budget", "random")}
        require(given == {name: settings[name] for name in given}, "the settings are not those of the attack")
        require(all(one.role in ROLES for one in found.tensors), "a tensor is for nothing that is known")
        labels = scope.data.non_members.y.numpy()[ids]
        for number, one in enumerate(found.searches):
            rows = arrays["flips"][:, 0] == number
            flips, after = flips_of(arrays, number), arrays["after"][rows]
            require(len(set(flips)) == len(flips) <= found.budget, "a bit is flipped twice, or too many are")
            for flip in flips:
                require(flip.tensor < len(found.tensors), "a tensor that is none of those that are named")
                tensor = found.tensors[flip.tensor]
                require(flip.element < tensor.elements and flip.bit < tensor.width, "a bit beyond its tensor")
            now = after[-1] if len(after) else arrays["clean_correct"]
            there = reached(now, arrays["clean_correct"], labels, one.wanted, found.chance)
            require(there == one.reached, "what was reached does not follow from the answers")

    return Form(Summary, layout, holds=holds)


def flips_of(arrays: Mapping[str, np.ndarray[Any, Any]], search: int) -> list[Flip]:
    """In the order in which they are made."""
    rows = arrays["flips"][arrays["flips"][:, 0] == search]
    return [Flip(*(int(value) for value in row[1:])) for row in rows]


MISSED, WORKING = 0.05, 0.5  # a class is missed; the file goes on working for the others


def reached(right: Bools, clean: Bools, labels: np.ndarray[Any, Any], wanted: int, chance: float) -> bool:
    """Whether answers, bool [n] (right or not), are what an attacker wants: no better than `chance`, or, of a class,
    nearly all wrong while of the others half as many are right as were before (`clean`).
    """
    if wanted < 0:
        return float(right.mean()) <= chance
    own = labels == wanted
    return bool(right[own].mean() <= MISSED and right[~own].mean() >= WORKING * clean[~own].mean())
