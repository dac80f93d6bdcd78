"""One run of the evasion attack: the records, what each part finds on them, and the worst case over the parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.data.records import Records
from ...targets.model import device_of
from ...targets.seeds import derive
from ..access import Access, Flag, Ledger
from ..case import Case, Evidence
from . import trust
from .ball import Norm, whole_range
from .engine import Perturber, Search
from .gradient.pgd import GradientPerturber
from .parameters import EvasionParameters

UNBOUNDED_RECORDS = 100  # attacked without a limit on epsilon, to see whether an attack works at all


@dataclass
class PartResult:
    """What one part found.

    Args:
        part: with its parameters.
        fooled: by epsilon, bool [n].
        without_gradient: how many records withstood it at the gate's epsilon without ever giving a gradient.
        inputs: float32 [n, *shape], at the gate's epsilon: what fooled the deployed model or came closest.
        flags: why its figures may be too optimistic.
    """

    part: Perturber
    inputs: Tensor
    fooled: dict[float, Tensor] = field(default_factory=dict)
    flags: set[Flag] = field(default_factory=set)
    without_gradient: int = 0


@dataclass
class EvasionRun:
    """The records under attack, where the gradients are, and what everything costs."""

    case: Case
    records: Records
    ids: np.ndarray[tuple[int], np.dtype[np.int64]]
    correct: Tensor
    ledger: Ledger

    @classmethod
    def of(cls, attack: EvasionParameters, case: Case) -> EvasionRun:
        count = min(attack.records, len(case.evaluation))
        module = case.twin if case.twin is not None else case.native
        device = case.evaluation.x.device if module is None else device_of(module, case.evaluation.x.device)
        records = Records(case.evaluation.x[:count], case.evaluation.y[:count]).to(device)
        ids = np.asarray(case.ids[:count], dtype=np.int64)
        correct = case.deployed.logits(records.x).argmax(1) == records.y
        return cls(case, records, ids, correct, Ledger(queries=count))

    def search(self, norm: Norm, epsilon: float, among: Tensor, seed: int, *, from_center: bool = False) -> Search:
        return Search(
            self.case.deployed,
            self.records,
            self.ids,
            norm,
            epsilon,
            self.case.bounds.to(self.records.x.device),
            among=among,
            seed=seed,
            ledger=self.ledger,
            from_center=from_center,
        )

    @property
    def labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        labels: np.ndarray[tuple[int], np.dtype[np.int64]] = self.records.y.cpu().numpy()
        return labels

    def evidence(self, attack: EvasionParameters, results: dict[str, PartResult], skipped: dict[str, str]) -> Evidence:
        arrays: dict[str, np.ndarray[Any, Any]] = {"ids": self.ids, "clean_correct": self.correct.cpu().numpy()}
        access = {part: result.part.access for part, result in results.items()}
        fooled = {
            part: {epsilon: outcome.cpu().numpy() for epsilon, outcome in result.fooled.items()}
            for part, result in results.items()
        }
        for part, result in results.items():
            if access[part] is Access.WHITE_BOX and trust.black_box_wins(part, access, fooled):
                result.flags.add(Flag.BLACK_BOX_WINS)
        flags = {part: sorted(str(flag) for flag in result.flags) for part, result in results.items()}
        worst = ~self.correct.cpu().numpy()
        tried = [epsilon for epsilon in attack.epsilons if any(epsilon in outcomes for outcomes in fooled.values())]
        for epsilon in tried:
            for part in results:
                if epsilon in fooled[part]:
                    arrays[f"fooled/{part}/{epsilon!r}"] = fooled[part][epsilon]
                    worst = worst | fooled[part][epsilon]
            arrays[f"worst/{epsilon!r}"] = worst
        arrays["adversarial"] = self._adversarial(attack.gate, results).cpu().numpy()
        at_gate = {part: outcomes[attack.gate] for part, outcomes in fooled.items()}
        summary = {
            "norm": attack.norm,
            "epsilons": tried,
            "gate_epsilon": attack.gate,
            "parts": list(results),
            "settings": {part: result.part.model_dump(mode="json") for part, result in results.items()},
            "part_access": {part: str(rights) for part, rights in access.items()},
            "use_parent": [part for part, result in results.items() if result.part.uses_parent],
            "union_flags": trust.union_flags(access, flags, at_gate),
            "without_gradient": {
                part: result.without_gradient for part, result in results.items() if result.without_gradient
            },
        }
        return Evidence(
            arrays=arrays,
            summary=summary,
            flags={part: raised for part, raised in flags.items() if raised},
            skipped=skipped,
            ledger=self.ledger,
        )

    def _adversarial(self, gate: float, results: dict[str, PartResult]) -> Tensor:
        """Per record the input of the first part that fooled the deployed model; of the first part where none did."""
        chosen = next(iter(results.values())).inputs.clone()
        for result in reversed(results.values()):
            chosen[result.fooled[gate]] = result.inputs[result.fooled[gate]]
        chosen[~self.correct] = self.records.x[~self.correct]
        return chosen


def attack_by(part: Perturber, run: EvasionRun, attack: EvasionParameters, *, seed: int) -> PartResult:
    """One part at each of its epsilons, smallest first; a record it has fooled once is fooled at larger ones too."""
    count = len(run.records)
    result = PartResult(part, run.records.x.clone())
    fooled, latest = ~run.correct, run.records.x.clone()
    for epsilon in attack.epsilons if part.at == "all" else (attack.gate,):
        if not fooled.all():
            search = run.search(attack.norm, epsilon, ~fooled, derive(seed, repr(epsilon)))
            part.perturb(search, run.case)
            latest[~fooled] = search.best[~fooled]
            fooled = fooled | search.fooled
            if epsilon == attack.gate:
                result.without_gradient = int((search.flat & ~fooled).sum())
            if trust.gradients_missing(result.without_gradient, count):
                result.flags.add(Flag.NO_GRADIENT)
            if part.access is Access.WHITE_BOX and trust.unfinished(search.found_at.numpy(), count):
                result.flags.add(Flag.UNFINISHED)
        result.fooled[epsilon] = fooled
        if epsilon == attack.gate:
            result.inputs = latest.clone()
    if part.access is Access.WHITE_BOX:
        if not run.case.twin_agrees:
            result.flags.add(Flag.TWIN_DISAGREES)
        own = isinstance(part, GradientPerturber)  # what ART's classes do without a limit says nothing about gradients
        own &= run.case.bounds.held is None  # what is held may well decide the class
        if own and Flag.NO_GRADIENT not in result.flags and unbounded_fails(part, run, attack, fooled, seed):
            result.flags.add(Flag.UNBOUNDED_FAILS)
    return result


def unbounded_fails(part: Perturber, run: EvasionRun, attack: EvasionParameters, fooled: Tensor, seed: int) -> bool:
    """Whether the part, from the clean records and with the whole range to itself, leaves the model above chance."""
    tried = torch.arange(len(run.records), device=fooled.device) < UNBOUNDED_RECORDS
    labels = run.labels[:UNBOUNDED_RECORDS]
    if not trust.unbounded_fails(fooled[tried].cpu().numpy(), labels):
        return False  # it got there within epsilon
    epsilon = whole_range(attack.norm, tuple(run.records.x.shape[1:]))
    search = run.search(attack.norm, epsilon, tried & ~fooled, derive(seed, "unbounded"), from_center=True)
    part.perturb(search, run.case)
    return trust.unbounded_fails((fooled | search.fooled)[tried].cpu().numpy(), labels)
