"""Progressive bit search on stored bits: the fewest flips that make a file useless, each verified on the file itself.

After Rakin, He & Fan 2019 (Bit-Flip Attack, arXiv:1903.12269): bits are ranked by the gradient of what they stand for
times what a flip changes it by, the first few are tried on a twin, and the best is kept. Three things are other. The
gradient is that of the margin and not of the cross-entropy, which is as good as zero for records that the model is sure
of. What is kept is what leaves the least probability on the right classes, so that one record's large loss counts
little. And every flip is made in the file and run in ONNX Runtime before it is kept: what the runtime ignores (the
scale of an int32 bias, say) is not searched again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.data.records import Records
from ...targets.errors import CrushproofError
from ...targets.interface.assumptions import Assumptions
from ...targets.interface.finished_model import Deployed
from ...targets.model import Target
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.seeds import generator
from ...targets.untrusted.model_file import CheckedOnnx
from ..access import Ledger
from .stored import Flip, Floats, Stored, attacked_bits, flipped
from .surrogate import Surrogate, correct, right_probability

TRIALS = 10  # of a step, on the twin; where none of them helps, as many again, so often at most:
ROUNDS = 4
SMALL = 2**18  # bits: a file of fewer has as many more trials, which cost as little
OF_A_TENSOR = 3  # of ten trials, at most
REFUSED = 6  # flips of a step that the file may not follow, before the search gives up
LEAST_GAIN, LEAST = 0.1, 1e-4  # that the file must show: of what the twin promised, and at all
WRONG_ALREADY = 0.1  # weight of a record that is wrong, in the gradient: it should stay so
WILD = 1e6  # a change beyond it is none that a gradient tells of
AT_ONCE = 2**22  # flips whose harm is estimated at a time
HUGE = 1e30  # what a flip to NaN or infinity counts

Allowed = Callable[[Stored, int], bool]  # whether this bit of a tensor's elements may be flipped


@dataclass(eq=False)
class Goal:
    """What is to go wrong.

    Args:
        records: the attacker's own.
        weights: float32 [n]; above 0: this record is to be wrong; below: it is to stay right.
        reached: whether these answers on the evaluation records, bool [m] (right or not), are what is wanted.
        enough: a `value` that is as good as any: no further flip is tried beside one that promises it.
        intact: logits of the file and of its twin before any flip, and the gradients there, once they are known: all
            searches for the goal begin alike.
    """

    records: Records
    weights: Tensor
    reached: Callable[[Tensor], bool]
    enough: float
    intact: tuple[Tensor, Tensor, list[Floats | None]] | None = None

    def value(self, logits: Tensor) -> float:
        """The probability of the right classes, as it is weighed: the lower the better for the attacker, at most 1."""
        right = right_probability(logits, self.records.y)
        return float((right * self.weights).sum() / self.weights.abs().sum())

    def loss(self, logits: Tensor, rows: slice) -> Tensor:
        """Whose gradient ranks the bits: margins towards another class, weighed."""
        y, weights = self.records.y[rows], self.weights[rows]
        own = logits.gather(1, y[:, None])[:, 0]
        best = logits.scatter(1, y[:, None], -torch.inf).max(1).values
        margin = (best - own).nan_to_num(0.0, 0.0, 0.0)
        as_wanted = (margin > 0) == (weights > 0)
        return (weights * torch.where(as_wanted, WRONG_ALREADY * margin, margin)).sum()


@dataclass
class Found:
    """A search's result.

    Args:
        flips: in the order in which they are made.
        after: bool [m] for each flip: which evaluation records the file gets right once it is made.
        reached: the last of them is what was wanted.
    """

    flips: list[Flip]
    after: list[Tensor]
    reached: bool


@dataclass
class Files:
    """Runs the file with bits flipped, on the attacker's own records and on those that are evaluated."""

    checked: CheckedOnnx
    tensors: list[Stored]
    assumptions: Assumptions | None
    evaluation: Records
    ledger: Ledger = field(default_factory=Ledger)

    def opened(self, flips: Sequence[Flip]) -> Target:
        data = flipped(self.checked, self.tensors, flips)
        output = None if self.assumptions is None else self.assumptions.output
        target: Target = OnnxTarget(data, output=output)
        return target if self.assumptions is None else Deployed(target, self.assumptions)

    def answers(self, flips: Sequence[Flip], own: Tensor) -> tuple[Tensor, Tensor] | None:
        """Logits on `own`, and bool [m]: which evaluation records are right; None: it no longer loads, or fails."""
        try:
            logits = self.opened(flips).logits(torch.cat([own, self.evaluation.x]).cpu())
        except CrushproofError:
            return None
        self.ledger.queries += len(logits)
        return logits[: len(own)], correct(logits[len(own) :], self.evaluation.y.cpu())


def search(
    surrogate: Surrogate, files: Files, goal: Goal, budget: int, allowed: Allowed, inert: set[int], ledger: Ledger
) -> Found:
    """Flips one bit after the other until the goal is reached, at most `budget`; then drops those that it did without.

    Args:
        allowed: which bits the attacker can flip.
        inert: numbers of tensors that the runtime was found to ignore, to which it adds.
    """
    found, refused = Found([], [], False), set[Flip]()
    trials = max(TRIALS, SMALL // max(1, attacked_bits(surrogate.tensors)))
    logits, twins, gradients = _intact(surrogate, files, goal, ledger)
    value, on_twin = goal.value(logits), goal.value(twins)
    while len(found.flips) < budget and not found.reached:
        if found.flips:
            gradients = surrogate.gradients(goal.records.x, goal.loss)
            ledger.forwards += len(goal.records)
            ledger.backwards += len(goal.records)
        ranked = _ranked(surrogate, gradients, allowed, refused | set(found.flips), inert, trials)
        step = None
        for promised, flip in _promising(surrogate, goal, ranked, trials, max(value, on_twin), ledger):
            if len(refused) > REFUSED * (len(found.flips) + 1):
                break
            told = files.answers([*found.flips, flip], goal.records.x)
            now = value if told is None else goal.value(told[0])
            if told is not None and now <= value - LEAST_GAIN * max(value - promised, 0.0) - LEAST:
                step = flip, told, now, promised
                break
            refused.add(flip)
            if told is not None and torch.equal(told[0], logits):
                inert.add(flip.tensor)
        if step is None:
            break
        flip, (logits, right), value, on_twin = step
        surrogate.flip(flip)
        found.flips.append(flip)
        found.after.append(right)
        found.reached = goal.reached(right)
    for flip in found.flips:
        surrogate.flip(flip)
    return _without_needless(found, files, goal) if found.reached else found


def _intact(
    surrogate: Surrogate, files: Files, goal: Goal, ledger: Ledger
) -> tuple[Tensor, Tensor, list[Floats | None]]:
    """See `Goal.intact`."""
    if goal.intact is None:
        before, twins = files.answers([], goal.records.x), surrogate.logits(goal.records.x)
        gradients = surrogate.gradients(goal.records.x, goal.loss)
        ledger.forwards += 2 * len(goal.records)
        ledger.backwards += len(goal.records)
        goal.intact = twins if before is None else before[0], twins, gradients
    return goal.intact


def _ranked(
    surrogate: Surrogate,
    gradients: Sequence[Floats | None],
    allowed: Allowed,
    without: set[Flip],
    inert: set[int],
    trials: int,
) -> list[Flip]:
    """The flips that should do the most harm, to first order: the worst of each role first, in turns, those that a
    first order holds for apart from the others; else a scale's exponent would always seem worse than all else.
    """
    scored: dict[tuple[str, bool], list[tuple[float, Flip]]] = {}
    for number, (stored, gradient) in enumerate(zip(surrogate.tensors, gradients, strict=True)):
        bits = [bit for bit in stored.tried if allowed(stored, bit)]
        if gradient is None or number in inert or not bits:
            continue
        together, share = max(1, AT_ONCE // len(gradient)), OF_A_TENSOR * trials // 10
        best: dict[bool, list[tuple[float, Flip]]] = {True: [], False: []}
        for start in range(0, len(bits), together):
            some = bits[start : start + together]
            harm, wild = expected_harm(gradient, surrogate.moved(number, some))
            for flip in without:
                if flip.tensor == number and flip.bit in some:
                    harm[some.index(flip.bit), flip.element] = 0
            for kind, found in best.items():
                of_kind = np.where(wild == kind, harm, 0).ravel()
                most = min(len(of_kind), share)
                for place in np.argpartition(-of_kind, most - 1)[:most]:
                    if of_kind[place] > 0:
                        bit, element = divmod(int(place), len(gradient))
                        found.append((float(of_kind[place]), Flip(number, element, some[bit])))
        for kind, found in best.items():  # those to NaN and beyond first: one of them is often enough
            scored.setdefault((stored.role, kind), []).extend(sorted(found, reverse=True)[:share])
    ordered = [[flip for _, flip in sorted(one, reverse=True)] for one in scored.values()]
    turns = [flip for turn in zip_longest(*ordered) for flip in turn if flip is not None]
    return turns[: trials * ROUNDS]


def expected_harm(gradient: Floats, moved: Floats) -> tuple[Floats, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Gradient [n] times change [bits, n]; and bool [bits, n], whether no first order holds: a change to NaN or
    infinity, or by more than a million, harms whichever its direction, if anything depends on the number.
    """
    size = np.abs(moved)
    wild = ~(size <= WILD)
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.where(size <= HUGE, size, HUGE)
        return np.where(wild, np.abs(gradient) * size, gradient * moved), wild


def _promising(
    surrogate: Surrogate, goal: Goal, flips: Sequence[Flip], trials: int, value: float, ledger: Ledger
) -> Iterator[tuple[float, Flip]]:
    """What a flip leaves on the right classes, by the twin, where that is less than `value`, the least first; further
    flips are tried only where those before were not enough.
    """
    start = 0
    while start < len(flips):
        values: list[tuple[float, Flip]] = []
        for flip in flips[start : start + trials]:
            surrogate.flip(flip)
            values.append((goal.value(surrogate.logits(goal.records.x)), flip))
            surrogate.flip(flip)
            if values[-1][0] <= goal.enough:
                break
        ledger.forwards += len(goal.records) * len(values)
        start += len(values)
        yield from (one for one in sorted(values) if one[0] < value)


def _without_needless(found: Found, files: Files, goal: Goal) -> Found:
    """Drops flips without which the file is as useless, the first ones first."""
    kept = list(found.flips)
    for flip in found.flips[:-1]:
        fewer = [one for one in kept if one != flip]
        told = files.answers(fewer, goal.records.x)
        if told is not None and goal.reached(told[1]):
            kept = fewer
    if len(kept) == len(found.flips):
        return found
    after: list[Tensor] = []
    for count in range(1, len(kept) + 1):
        told = files.answers(kept[:count], goal.records.x)
        after.append(torch.zeros(len(files.evaluation), dtype=torch.bool) if told is None else told[1])
        if goal.reached(after[-1]) and told is not None:
            return Found(kept[:count], after, True)
    return Found(kept, after, goal.reached(after[-1]))


def random_flips(tensors: Sequence[Stored], count: int, seed: int) -> list[Flip]:
    """So many different bits of all that the tensors store, each as likely."""
    sizes = np.array([len(one.raw) * one.width for one in tensors])
    total = int(sizes.sum())
    drawn: dict[int, Any] = {}
    stream = generator(seed, "random flips")
    while len(drawn) < min(count, total):
        drawn |= dict.fromkeys(torch.randint(total, (count,), generator=stream).tolist())
    ends = np.cumsum(sizes)
    flips = []
    for place in list(drawn)[:count]:
        number = int(np.searchsorted(ends, place, side="right"))
        element, bit = divmod(place - int(ends[number] - sizes[number]), tensors[number].width)
        flips.append(Flip(number, element, bit))
    return flips
