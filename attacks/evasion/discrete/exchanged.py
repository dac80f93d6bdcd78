"""What fools one model by exchange, asked of the one it is compared with, and back: transfer, alike for both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ....targets.errors import NotApplicable
from ....targets.form import Array, Document, Form
from ...attack import ATTACKS
from ...case import Case, Evidence
from ...effort import Effort
from ...measurement import Bools
from ...preparation import Deployed, Inputs, Need, Preparation, Prepared, Ran, Results, Scope
from .parameters import SubstitutionParameters
from .running import on_device

TRANSFER = "transfer"  # of what fools the models it is compared with, as a candidate's own figure counts it
ALIKE = ("gate", "reach", "tokens", "features", "moves", "padding")  # in a summary: both had the same to change


@dataclass(frozen=True)
class ExchangedBothWays(Preparation):
    """The stored inputs of each of two models, at up to the gate's changes, as the other one answers them.

    Both searched with the same settings. Arrays `on_candidate` and `on_baseline`, int64 [n]: how many changes the
    other's input takes where it fools this one, else 0.
    """

    phase: ClassVar[str] = "substitution"
    label: str
    candidate: str
    baseline: str
    told: str  # the attack's fields, as JSON
    records: int

    @property
    def name(self) -> str:
        return f"exchanged/{self.label}/{self.candidate}/{self.baseline}"

    @property
    def words(self) -> str:
        return f"exchanges that fool {self.candidate} tried on {self.baseline}, and back ({self.records} records)"

    @property
    def identity(self) -> Any:
        return ["exchanged", self.told, self.records]

    @property
    def effort(self) -> Effort:
        return Effort(answers=2 * self.records)

    @property
    def needs(self) -> tuple[Need, ...]:
        pair = self.candidate, self.baseline
        return *(Ran(model) for model in pair), *(Deployed(model) for model in pair)

    def compute(self, inputs: Inputs) -> Prepared:
        settings = ATTACKS.parse(json.loads(self.told))
        assert isinstance(settings, SubstitutionParameters)
        mine, theirs = (inputs.evidence(Ran(model)) for model in (self.candidate, self.baseline))
        if any(mine.summary[key] != theirs.summary[key] for key in ALIKE):
            raise NotApplicable("not applicable: the two models were not attacked alike")
        asked = {"on_candidate": (self.candidate, theirs), "on_baseline": (self.baseline, mine)}
        return Prepared(
            {name: costs_on(inputs.case(model), settings, evidence) for name, (model, evidence) in asked.items()}
        )

    def form(self, scope: Scope) -> Form:
        cost = Array("int64", (min(self.records, len(scope.data.evaluation_ids)),), low=0)
        return Form(Document, {"on_candidate": cost, "on_baseline": cost})


def costs_on(case: Case, settings: SubstitutionParameters, evidence: Evidence) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64 [n]: the cost of each stored input that fools the case's model at up to the gate's, else 0."""
    case = on_device(case)
    features, count = settings.features(case, evidence.summary["reach"]), len(evidence.arrays["ids"])
    records = case.evaluation.take(torch.arange(count, device=case.evaluation.x.device))
    crafted = torch.from_numpy(np.array(evidence.arrays["adversarial"])).to(records.x.device)
    changes = features.changes(crafted.flatten(1), records.x.flatten(1))
    fooled = (changes > 0) & (changes <= evidence.summary["gate"])
    fooled &= case.deployed.logits(crafted).argmax(1) != records.y
    found: np.ndarray[Any, np.dtype[np.int64]] = torch.where(fooled, changes, 0).cpu().numpy()
    return found


def both_ways(attack: SubstitutionParameters, scope: Scope, candidate: str, baseline: str) -> ExchangedBothWays:
    """Of the attack as it is planned, and of the same one once a probe chose its gate and reach."""
    planned = attack.sharing().model_copy(update={"gate_changes": "auto", "reach": "auto", "chosen": None})
    return ExchangedBothWays(scope.label, candidate, baseline, planned.model_dump_json(), attack.count)


def fooled_by_others(attack: SubstitutionParameters, results: Results, changes: int) -> dict[str, tuple[Bools, Bools]]:
    """By baseline of the measured model, what the other's inputs fool with up to so many changes: of it, and of the
    baseline, bool [n] each; only where both were asked.
    """
    found = {}
    for name in results.model.baselines:
        asked = results.prepared(both_ways(attack, results.scope, results.model.name, name))
        if asked is not None:
            pair = asked.arrays["on_candidate"], asked.arrays["on_baseline"]
            mine, theirs = (np.asarray((cost > 0) & (cost <= changes), dtype=bool) for cost in pair)
            found[name] = mine, theirs
    return found
