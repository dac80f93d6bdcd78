"""What fools one model, asked of all the others: how far an attacker comes who has another model than the one meant."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ....targets.errors import NotApplicable
from ....targets.form import Array, Arrays, Document, Form, Layout, require
from ...case import Evidence
from ...effort import Effort
from ...measurement import Bools, Rate
from ...preparation import Deployed, Inputs, Need, Preparation, Prepared, Ran, Scope

MOST_ASKED = 200  # inputs of one model: an interval of 14 points at most
OPENING = 0.05  # seconds that it takes to open a model


class Asked(Document):
    """`models`: those that were asked, without those that could not be made."""

    models: tuple[str, ...]


@dataclass(frozen=True)
class AskedOfOthers(Preparation):
    """The inputs with which an attack fooled one model, and their records as they are, answered by each other one.

    It adds no attack: a few answers of each model, about the inputs that the evidence holds already. Whatever round
    the attack has reached on the one model, the others are asked, and no other round of an attack is needed.

    The inputs are as small as the attack found them: what is made to fool several models travels further.

    Arrays, for the `rows_asked` of the evidence: `clean_correct` and `fooled`, bool [models, rows].
    """

    phase: ClassVar[str] = "evasion"
    label: str
    model: str
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"asked-of-others/{self.label}/{self.model}"

    @property
    def words(self) -> str:
        return f"what fools {self.model} tried on the other models"

    @property
    def identity(self) -> Any:
        return ["asked-of-others", MOST_ASKED]

    @property
    def effort(self) -> Effort:
        return Effort(answers=2.0 * MOST_ASKED * len(self.others), seconds=OPENING * len(self.others))

    @property
    def needs(self) -> tuple[Need, ...]:
        return Ran(self.model), *(Deployed(other) for other in self.others)

    def compute(self, inputs: Inputs) -> Prepared:
        evidence = inputs.evidence(Ran(self.model))
        rows = rows_asked(evidence)
        records = inputs.scope.data.non_members.take(torch.from_numpy(np.array(evidence.arrays["ids"])[rows]))
        adversarial = torch.from_numpy(np.array(evidence.arrays["adversarial"])[rows]).to(records.x.device)
        asked: list[str] = []
        found: list[tuple[Bools, Bools]] = []
        for other in self.others:
            with contextlib.suppress(NotApplicable):  # it could not be made
                target = inputs.deployed(other)
                right, still = (
                    (target.logits(x).argmax(1) == records.y).cpu().numpy() if len(rows) else np.zeros(0, dtype=bool)
                    for x in (records.x, adversarial)
                )
                asked.append(other)
                found.append((right, ~still))
        right, fooled = (
            np.array([pair[at] for pair in found], dtype=bool).reshape(len(found), len(rows)) for at in (0, 1)
        )
        return Prepared({"clean_correct": right, "fooled": fooled}, {"models": asked})

    def form(self, scope: Scope) -> Form:
        def layout(document: Asked) -> Layout:
            answers = Array("bool", (len(document.models), "rows"))
            return {"clean_correct": answers, "fooled": answers}

        def holds(document: Asked, arrays: Arrays, files: Mapping[str, Any]) -> None:
            asked = [other for other in self.others if other in document.models]
            require(asked == [*document.models], "models that were not to be asked, or one twice")

        return Form(Asked, layout, holds=holds)


def rows_asked(evidence: Evidence) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first of the records that the attack fooled and the model gets right as they are, int64 [rows].

    Those whose stored input was made with another model's help (`use_parent`) say nothing of this one and are left out.
    """
    arrays, summary = evidence.arrays, evidence.summary
    gate = summary["gate_epsilon"]
    own, earlier = np.zeros(len(arrays["ids"]), dtype=bool), ~np.asarray(arrays["clean_correct"], dtype=bool)
    for part in summary["parts"]:  # the stored input is that of the first part that fooled the model
        fooled = np.asarray(arrays.get(f"fooled/{part}/{gate!r}", earlier), dtype=bool)
        if part not in summary["use_parent"]:
            own |= fooled & ~earlier
        earlier = earlier | fooled
    return np.flatnonzero(own)[:MOST_ASKED]


def transfers(found: Prepared, evidence: Evidence) -> Mapping[str, Rate]:
    """By model: of the records that both get right as they are, the share whose input fools that one as well.

    Raises:
        ValueError: the answers are not of the inputs of this evidence.
    """
    right, fooled = (np.asarray(found.arrays[name], dtype=bool) for name in ("clean_correct", "fooled"))
    count = len(rows_asked(evidence))
    if right.shape != (len(found.document["models"]), count) or fooled.shape != right.shape:
        raise ValueError(f"others were asked about {right.shape[-1]} inputs, and {count} fooled the model")
    return {
        name: Rate(fooled[row][right[row]]) for row, name in enumerate(found.document["models"]) if right[row].any()
    }
