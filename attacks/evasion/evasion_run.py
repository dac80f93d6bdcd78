"""One run of the evasion attack: the records, what each part finds on them, and the worst case over the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.data.records import Records
from ...targets.form import Array, Layout, require
from ...targets.model import device_of
from ...targets.seeds import derive
from ...targets.steps import Arrays
from ...training.ball import Ball
from ..access import Access, Flag, Ledger
from ..case import Case, Evidence
from . import trust
from .ascent.walk import WALKS, falls
from .ball import whole_range
from .blocks import Counter, Sought, at_once, blocks, followable, kept_at_cost, seek
from .categories import seen_step
from .engine import Perturber
from .gradient.pgd import GradientPerturber
from .likeness.distances import distances
from .parameters import EvasionParameters
from .trust import Outcomes

UNBOUNDED_RECORDS = 100  # attacked without a limit on epsilon, to see whether an attack works at all


@dataclass
class PartResult:
    """What one part found: `fooled` by epsilon, bool [n].

    Args:
        inputs: float32 [n, *shape], at the gate's epsilon: what fooled the deployed model or came closest.
        flags: why its figures may be too optimistic.
        without_gradient: how many records withstood it at the gate's epsilon without ever giving a gradient.
    """

    part: Perturber
    inputs: Tensor
    fooled: dict[float, Outcomes] = field(default_factory=dict)
    flags: set[Flag] = field(default_factory=set)
    without_gradient: int = 0


@dataclass
class EvasionRun:
    """The records under attack, where the gradients are, what everything costs, and what was found so far.

    Args:
        correct: bool [n], the clean answers.
        batch: records that are attacked at a time.
        counter: how far the attack is.
        adversarial: float32 [n, *shape], at the gate's epsilon: the input of the first part that fooled the deployed
            model; of the first part where none did.
        falls: see `ascent.walk.falls`, where some part is white-box; None: nobody walked.
        lowest: by gradients (`Perturber.follows`) and epsilon, float32 [n], the lowest margins that parts came to.
    """

    case: Case
    attack: EvasionParameters
    records: Records
    ids: np.ndarray[tuple[int], np.dtype[np.int64]]
    correct: Outcomes
    ledger: Ledger
    batch: int
    counter: Counter
    results: dict[str, PartResult] = field(default_factory=dict)
    adversarial: Tensor | None = None
    falls: np.ndarray[Any, np.dtype[np.float32]] | None = None
    lowest: dict[tuple[str, float], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, attack: EvasionParameters, case: Case, parts: Sequence[Perturber]) -> EvasionRun:
        case, count = followable(case, parts), min(attack.count, len(case.evaluation))
        module = case.twin if case.twin is not None else case.native
        device = case.evaluation.x.device if module is None else device_of(module, case.evaluation.x.device)
        records = Records(case.evaluation.x[:count], case.evaluation.y[:count]).to(device)
        ledger = Ledger()

        def clean(first: int, end: int, spent: Ledger) -> Arrays:
            spent.queries += end - first
            right = case.deployed.logits(records.x[first:end]).argmax(1) == records.y[first:end]
            return {"correct": right.cpu().numpy()}

        answers = [
            kept_at_cost(
                f"clean/{first}-{end}", ledger, partial(clean, first, end), {"correct": Array("bool", (end - first,))}
            )
            for first, end in blocks(count)
        ]
        correct = np.concatenate([one["correct"] for one in answers])
        ids = np.asarray(case.ids[:count], dtype=np.int64)
        passes = sum(len(epsilons_of(part, attack)) for part in parts)
        return cls(case, attack, records, ids, correct, ledger, at_once(case), Counter(count * passes))

    def add(self, result: PartResult) -> None:
        """Takes what a part found to what there is; of its inputs only those that are needed stay in memory."""
        gate = self.attack.gate
        if self.adversarial is None:
            self.adversarial = result.inputs
        else:
            earlier = np.logical_or.reduce([other.fooled[gate] for other in self.results.values()])
            new = torch.from_numpy(result.fooled[gate] & ~earlier)
            self.adversarial[new] = result.inputs[new]
        self.results[result.part.part] = replace(result, inputs=self.adversarial[:0])

    def walk(self, *, seed: int) -> None:
        """Away from the first records, from half of the gate's epsilon on, where there is something to walk on."""
        module = self.case.twin if self.case.twin is not None else self.case.native
        if module is None or all(one.part.access is not Access.WHITE_BOX for one in self.results.values()):
            return
        x, bounds = self.records.x[:WALKS], self.case.bounds.to(self.records.x.device)
        inside = Ball("linf", 1.0, x, bounds).project
        first = bounds.scale * self.attack.gate / 2
        if self.attack.norm == "l2":
            first = first / x[0].numel() ** 0.5

        def walked(spent: Ledger) -> Arrays:
            return {"fall": falls(module, x, inside, first, seed, spent, self.batch).cpu().numpy()}

        form = {"fall": Array("float32", (len(x),), low=0, high=1)}
        self.falls = kept_at_cost(f"walk/0-{len(x)}", self.ledger, walked, form)["fall"]

    @property
    def labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        labels: np.ndarray[tuple[int], np.dtype[np.int64]] = self.records.y.cpu().numpy()
        return labels

    def evidence(self, skipped: dict[str, str]) -> Evidence:
        attack, results = self.attack, self.results
        assert self.adversarial is not None  # some part ran
        arrays: dict[str, np.ndarray[Any, Any]] = {"ids": self.ids, "clean_correct": self.correct}
        access = {part: result.part.access for part, result in results.items()}
        fooled = {part: result.fooled for part, result in results.items()}
        for part, result in results.items():
            strong = access[part] is Access.WHITE_BOX and result.part.seeks_all
            if strong and trust.black_box_wins(part, access, fooled):
                result.flags.add(Flag.BLACK_BOX_WINS)
        flags = {part: sorted(str(flag) for flag in result.flags) for part, result in results.items()}
        worst = ~self.correct
        tried = [epsilon for epsilon in attack.epsilons if any(epsilon in outcomes for outcomes in fooled.values())]
        for epsilon in tried:
            for part in results:
                if epsilon in fooled[part]:
                    arrays[f"fooled/{part}/{epsilon!r}"] = fooled[part][epsilon]
                    worst = worst | fooled[part][epsilon]
            arrays[f"worst/{epsilon!r}"] = worst
        arrays["adversarial"] = self.adversarial.numpy()
        if self.falls is not None:
            arrays[trust.FALLS] = self.falls
        arrays |= distances(self.records.x, self.adversarial, self.case.bounds, tokens=self.case.structure.tokens)
        at_gate = {part: outcomes[attack.gate] for part, outcomes in fooled.items()}
        summary = {
            "norm": attack.norm,
            "epsilons": tried,
            "gate_epsilon": attack.gate,
            "parts": list(results),
            "settings": {part: result.part.model_dump(mode="json") for part, result in results.items()},
            "part_access": {part: str(rights) for part, rights in access.items()},
            "step": seen_step(self.records.x.cpu(), self.case.bounds),
            "use_parent": [part for part, result in results.items() if result.part.uses_parent],
            "union_flags": trust.whole_flags(access, flags, at_gate, self.falls),
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


def epsilons_of(part: Perturber, attack: EvasionParameters) -> tuple[float, ...]:
    """Where the part runs, smallest first."""
    return attack.epsilons if part.at == "all" else (attack.gate,)


def attack_by(part: Perturber, run: EvasionRun, *, seed: int) -> PartResult:
    """One part at each of its epsilons, smallest first; a record it has fooled once is fooled at larger ones too.

    What it finds on a block of records at an epsilon is kept (`steps.kept`).
    """
    gate, count = run.attack.gate, len(run.records)
    result = PartResult(part, run.records.x.cpu().clone())
    flat = np.zeros(count, dtype=bool)
    found_at = {epsilon: np.full(count, np.nan, dtype=np.float32) for epsilon in epsilons_of(part, run.attack)}
    outcomes = {epsilon: np.zeros(count, dtype=bool) for epsilon in found_at}
    margins = {epsilon: torch.full((count,), torch.inf) for epsilon in found_at}
    for first, end in blocks(count):
        fooled = ~run.correct[first:end]
        for epsilon in found_at:
            if not fooled.all():
                done = run.counter.done
                piece = kept_at_cost(
                    f"{part.part}/{epsilon!r}/{first}-{end}",
                    run.ledger,
                    partial(_piece, part, run, epsilon, first, fooled, derive(seed, repr(epsilon))),
                    _form_of_piece(run, part, epsilon, end - first),
                    partial(_check_piece, fooled, epsilon == gate),
                )
                run.counter.done = done
                if epsilon <= gate:
                    result.inputs[first:end][_shown(fooled, piece["fooled"], epsilon == gate)] = torch.from_numpy(
                        np.array(piece["inputs"])
                    )
                if epsilon == gate:
                    flat[first:end] = piece["flat"] & ~piece["fooled"]
                fooled, found_at[epsilon][first:end] = piece["fooled"], piece["found_at"]
                if part.follows is not None:
                    margins[epsilon][first:end] = torch.from_numpy(np.array(piece["margin"]))
            run.counter.add(end - first)
            outcomes[epsilon][first:end] = fooled
    result.fooled = outcomes
    if part.follows is not None:
        for epsilon, margin in margins.items():
            earlier = run.lowest.get((part.follows, epsilon), margin)
            run.lowest[part.follows, epsilon] = torch.minimum(earlier, margin)
    result.without_gradient = int(flat.sum())
    _flag(result, run, found_at, seed)
    return result


def _shown(before: Outcomes, after: Outcomes, at_gate: bool) -> Outcomes:
    """The records whose inputs a piece gives: those it fooled; at the gate those it did not fool, too."""
    return ~before if at_gate else after & ~before


def _piece(
    part: Perturber, run: EvasionRun, epsilon: float, first: int, fooled: Outcomes, seed: int, spent: Ledger
) -> Arrays:
    """One part at one epsilon on one block, whose records it fooled at smaller ones in part."""
    found = _seek(part, run, epsilon, first, ~fooled, seed, spent, run.counter)
    after = fooled | found.fooled.numpy()
    arrays = {"fooled": after, "flat": found.flat.numpy(), "found_at": found.found_at.numpy()}
    if part.follows is not None:
        arrays["margin"] = found.margin.numpy()
    if epsilon <= run.attack.gate:
        arrays["inputs"] = found.best.numpy()[_shown(fooled, after, epsilon == run.attack.gate)]
    return arrays


def _form_of_piece(run: EvasionRun, part: Perturber, epsilon: float, count: int) -> Layout:
    inputs = {"inputs": Array("float32", (None, *run.records.x.shape[1:]))} if epsilon <= run.attack.gate else {}
    found_at = Array("float32", (count,), finite=False)
    margin = {"margin": found_at} if part.follows is not None else {}
    return {
        "fooled": Array("bool", (count,)),
        "flat": Array("bool", (count,)),
        "found_at": found_at,
        **margin,
        **inputs,
    }


def _check_piece(before: Outcomes, at_gate: bool, piece: Arrays) -> None:
    """A record fooled at a smaller epsilon stays so, and there are as many inputs as are to be shown."""
    require(bool((piece["fooled"] >= before).all()), "a record that was fooled is not any longer")
    shown = int(_shown(before, piece["fooled"], at_gate).sum())
    require("inputs" not in piece or len(piece["inputs"]) == shown, "the inputs are not those that are shown")


def _seek(
    part: Perturber,
    run: EvasionRun,
    epsilon: float,
    first: int,
    among: Outcomes,
    seed: int,
    spent: Ledger,
    counter: Counter | None = None,
    *,
    from_center: bool = False,
) -> Sought:
    end = first + len(among)
    before = None if part.follows is None else run.lowest.get((part.follows, epsilon))
    return seek(
        part,
        run.case,
        Records(run.records.x[first:end], run.records.y[first:end]),
        run.ids[first:end],
        Ball(run.attack.norm, epsilon, run.records.x[first:end], run.case.bounds.to(run.records.x.device)),
        among=torch.from_numpy(among),
        seed=seed,
        ledger=spent,
        batch=run.batch,
        first=first,
        from_center=from_center,
        before=None if before is None else before[first:end],
        counter=counter,
    )


def _flag(
    result: PartResult, run: EvasionRun, found_at: dict[float, np.ndarray[Any, np.dtype[np.float32]]], seed: int
) -> None:
    """The flags that follow from what a part found on all records."""
    part, count = result.part, len(run.records)
    if trust.gradients_missing(result.without_gradient, count):
        result.flags.add(Flag.NO_GRADIENT)
    if part.access is not Access.WHITE_BOX:
        return
    if any(trust.unfinished(found, count) for found in found_at.values()):
        result.flags.add(Flag.UNFINISHED)
    if not run.case.twin_agrees:
        result.flags.add(Flag.TWIN_DISAGREES)
    own = isinstance(part, GradientPerturber)  # what ART's classes do without a limit says nothing about gradients
    own &= run.case.bounds.held is None  # what is held may well decide the class
    if own and Flag.NO_GRADIENT not in result.flags and _unbounded_fails(result, run, seed):
        result.flags.add(Flag.UNBOUNDED_FAILS)


def _unbounded_fails(result: PartResult, run: EvasionRun, seed: int) -> bool:
    """Whether the part, from the clean records and with the whole range to itself, leaves the model above chance."""
    labels = run.labels[:UNBOUNDED_RECORDS]
    fooled = list(result.fooled.values())[-1][:UNBOUNDED_RECORDS]
    if not trust.unbounded_fails(fooled, labels):
        return False  # it got there within epsilon
    epsilon = whole_range(run.attack.norm, tuple(run.records.x.shape[1:]))

    def unbounded(spent: Ledger) -> Arrays:
        seeds = derive(seed, "unbounded")
        found = _seek(result.part, run, epsilon, 0, ~fooled, seeds, spent, from_center=True)
        return {"fooled": found.fooled.numpy()}

    form = {"fooled": Array("bool", (len(labels),))}
    more = kept_at_cost(f"{result.part.part}/unbounded/0-{len(labels)}", run.ledger, unbounded, form)
    return trust.unbounded_fails(fooled | more["fooled"], labels)
