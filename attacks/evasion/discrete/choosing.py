"""Which reach and number of changes tell models apart: those at which the dense model keeps about half of its accuracy.

Where numbers move through their whole range, one change may be enough for any record (a capital gain of 99,999), and
every model looks like every other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ....targets.data.records import Records
from ....targets.errors import NotApplicable
from ....targets.form import Arrays, Document, Form, require
from ....targets.seeds import derive
from ...access import Ledger
from ...attack import ATTACKS
from ...case import Case
from ...effort import Effort
from ...preparation import Deployed, Inputs, Need, Preparation, Prepared, Scope
from ..blocks import Counter
from ..radius import LEAST, MOST
from .features import Features
from .parameters import Chosen, SubstitutionParameters
from .running import ANSWERS, GRADIENT, on_block, on_device

LADDER = (1.0, 0.3, 0.1, 0.03, 0.01, 0.0)  # of reaches, the largest first
RECORDS = 200  # of the attacker's own, probed


def choose(case: Case, settings: SubstitutionParameters, *, seed: int) -> Chosen:
    """The largest reach at which the deployed model keeps a third to two thirds of its clean accuracy after one of the
    numbers of changes, and the largest such number; where there is none, the nearest to one half.

    The part that follows gradients decides on the attacker's own records; without a twin the one by answers.

    Raises:
        NotApplicable: nothing can change.
    """
    case = on_device(case)
    records = case.attacker.take(torch.arange(min(RECORDS, len(case.attacker))))
    correct = (case.deployed.logits(records.x).argmax(1) == records.y).cpu().numpy()
    clean, probe = float(correct.mean()), dict[str, tuple[float, ...]]()
    why = "not applicable: nothing can change"
    for reach in LADDER if settings.reach == "auto" else (settings.reach,):
        try:
            features = settings.features(case, reach)
        except NotApplicable as error:  # of numbers alone nothing is left
            why = str(error)
            continue
        levels = _levels(case, features, settings, records, correct, derive(seed, repr(reach)))
        standing = [correct & ((levels == 0) | (levels > changes)) for changes in settings.changes]
        probe[repr(reach)] = tuple(float(one.mean()) for one in standing)
        kept = [share for _, _, share in _kept(settings, clean, {repr(reach): probe[repr(reach)]})]
        if any(LEAST <= share <= MOST for share in kept) or min(kept) > MOST or not features.numbers.any():
            break
    if not probe:
        raise NotApplicable(why)
    return following(settings, clean, len(records), probe)


def following(
    settings: SubstitutionParameters, clean: float, records: int, probe: Mapping[str, tuple[float, ...]]
) -> Chosen:
    """What a probe leads to; see `Chosen`."""
    told = _kept(settings, clean, probe)
    fit = [one for one in told if LEAST <= one[2] <= MOST]
    reach, changes, kept = max(fit) if fit else min(told, key=lambda one: (abs(one[2] - 0.5), -one[0], -one[1]))
    return Chosen(reach=reach, changes=changes, kept=kept, records=records, clean=clean, probe=dict(probe))


def _kept(
    settings: SubstitutionParameters, clean: float, probe: Mapping[str, tuple[float, ...]]
) -> list[tuple[float, int, float]]:
    """By reach and number of changes that the gate may have: robust / clean accuracy."""
    return [
        (float(reach), changes, min(1.0, share / clean) if clean else 0.0)
        for reach, shares in probe.items()
        for changes, share in zip(settings.changes, shares, strict=True)
        if settings.gate_changes in ("auto", changes)
    ]


def _levels(
    case: Case,
    features: Features,
    settings: SubstitutionParameters,
    records: Records,
    correct: np.ndarray[Any, np.dtype[np.bool_]],
    seed: int,
) -> np.ndarray[Any, Any]:
    """At which number of changes each record falls; 0: it does not."""
    counter, settings = Counter(len(records)), settings.model_copy(update={"gate_changes": settings.changes[-1]})
    flat = Records(records.x.flatten(1), records.y)
    for part in (GRADIENT, ANSWERS) if case.twin is not None else (ANSWERS,):
        try:
            ids = np.arange(len(records))
            levels = on_block(part, case, features, settings, flat, ids, correct, seed, Ledger())["level"]
        except NotApplicable:  # the twin looks no token up
            continue
        counter.add(len(records))
        return levels
    return np.zeros(len(records), dtype=np.int64)


class Probed(Document):
    """What the probe gave."""

    chosen: Chosen


@dataclass(frozen=True)
class ReachProbe(Preparation):
    """Reach and number of changes that the reference model's own answers ask for.

    Document: `chosen`, the fields of `Chosen`.
    """

    phase: ClassVar[str] = "substitution"
    told: str  # the attack's fields, as JSON
    reference: str

    @property
    def settings(self) -> SubstitutionParameters:
        found = ATTACKS.parse(json.loads(self.told))
        assert isinstance(found, SubstitutionParameters)
        return found

    @property
    def name(self) -> str:
        return f"reach/{hashlib.sha256(self.told.encode()).hexdigest()[:12]}"

    @property
    def words(self) -> str:
        return f"probing how many changes {self.reference} withstands"

    @property
    def identity(self) -> Any:
        return ["reach", self.told]

    @property
    def effort(self) -> Effort:
        whole = self.settings.model_copy(update={"records": RECORDS}).effort
        return Effort(gradients=2 * whole.gradients, seconds=1.0)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Deployed(self.reference),)

    def compute(self, inputs: Inputs) -> Prepared:
        chosen = choose(inputs.case(self.reference), self.settings, seed=inputs.scope.seed)
        return Prepared(document={"chosen": chosen.model_dump(mode="json")})

    def form(self, scope: Scope) -> Form:
        settings = self.settings

        def holds(document: Probed, arrays: Arrays, files: Any) -> None:
            found = document.chosen
            require(found.records <= RECORDS, "more than a probe can be")
            again = following(settings, found.clean, found.records, found.probe)
            require(again == found, "what is chosen does not follow from the probe")

        return Form(Probed, {}, holds=holds)
