"""Shared work: the questions that tell a dense model's copies from others, and what control models answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ...targets.model import frozen_copy
from ...targets.seeds import derive
from ..effort import Effort
from ..evasion.categories import without_ball
from ..membership.preparations import ShadowModels
from ..preparation import Inputs, Need, Preparation, Prepared, Scope, Trained, Weights
from .boundary import BOUNDARY, FEWEST, SCATTERED, Questions, questions

RECORDS = 300


class Asked(Document):
    """`Prepared.document`: the kinds of questions there are."""

    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Controls(Preparation):
    """Questions for the copies of a dense model, and its shadow models' answers.

    Arrays, of each kind of m questions: `<kind>/x` float32 [m, *shape], `<kind>/own` int64 [m], the dense model's
    labels, `<kind>/controls` int64 [k, m].
    """

    phase: ClassVar[str] = "ownership"
    parent: Trained
    chunks: tuple[ShadowModels, ...]

    @property
    def name(self) -> str:
        return f"controls/{self.parent.name}"

    @property
    def words(self) -> str:
        return f"asking control models what only copies of {self.parent.name} answer alike"

    @property
    def identity(self) -> Any:
        return [RECORDS]

    @property
    def effort(self) -> Effort:
        return Effort(seconds=2.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Weights(self.parent.name), *self.chunks)

    def compute(self, inputs: Inputs) -> Prepared:
        data = inputs.scope.data
        x = data.evaluation.x[:RECORDS].to(inputs.device)
        dense = frozen_copy(inputs.weights(self.parent.name).to(inputs.device))
        moved = not without_ball(data)
        asked = questions(dense, x, data.bounds.to(inputs.device), seed=derive(inputs.scope.seed, "owner"), moved=moved)
        answers: dict[str, list[np.ndarray[Any, Any]]] = {kind: [] for kind in asked}
        for chunk in self.chunks:
            arrays = inputs.prepared(chunk).arrays
            for shadow in range(chunk.first, chunk.last):
                module = self.parent.architecture.blank()
                mine = {name: np.array(one) for name, one in arrays.items() if name.startswith(f"{shadow}/")}
                module.load_state_dict({name.partition("/")[2]: torch.from_numpy(one) for name, one in mine.items()})
                module = frozen_copy(module.to(inputs.device))
                with torch.no_grad():
                    for kind, (made, _) in asked.items():
                        answers[kind].append(module(made).argmax(1).cpu().numpy())
        if len(answers[SCATTERED]) < FEWEST:
            raise NotApplicable(f"fewer than {FEWEST} control models: the plan's shadows (training_free) are too few")
        found: dict[str, np.ndarray[Any, Any]] = {}
        for kind, (made, own) in asked.items():
            found[f"{kind}/x"], found[f"{kind}/own"] = made.cpu().numpy(), own.cpu().numpy()
            found[f"{kind}/controls"] = np.stack(answers[kind])
        return Prepared(found, {"kinds": list(asked)})

    def form(self, scope: Scope) -> Form:
        count, shape, last = sum(one.last - one.first for one in self.chunks), scope.data.shape, scope.data.classes - 1

        def layout(document: Asked) -> Layout:
            require(set(document.kinds) <= {SCATTERED, BOUNDARY}, "a kind of question that is not known")
            return {
                name: form
                for kind in document.kinds
                for name, form in (
                    (f"{kind}/x", Array("float32", (f"m{kind}", *shape))),
                    (f"{kind}/own", Array("int64", (f"m{kind}",), 0, last)),
                    (f"{kind}/controls", Array("int64", (count, f"m{kind}"), 0, last)),
                )
            }

        return Form(Asked, layout)


def questions_of(prepared: Prepared) -> Questions:
    arrays = prepared.arrays
    return {
        kind: (torch.from_numpy(np.array(arrays[f"{kind}/x"])), torch.from_numpy(np.array(arrays[f"{kind}/own"])))
        for kind in prepared.document["kinds"]
    }


def agreements_of(arrays: Arrays, kind: str) -> list[float]:
    """Of each control model."""
    shares = (arrays[f"{kind}/controls"] == arrays[f"{kind}/own"]).mean(1)
    return [float(one) for one in shares]
