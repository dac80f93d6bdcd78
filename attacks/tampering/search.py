"""Progressive bit search on stored bits: the fewest flips that make a file useless, each verified on the file itself.

After Rakin, He & Fan 2019 (Bit-Flip Attack, arXiv:1903.12269): bits are ranked by the gradient of what they stand for
times what a flip changes it by, the first few are tried on a twin, and the best is kept. Three things are other.
Several aims are pursued and the shortest way counts: towards a class that all records should reach with few flips,
since flips with one aim add up, and away from the right classes. What is kept is what lowers the margin that is missing
to that class, or the probability of the right classes, so that one record's large loss counts little. And every flip is
made in the file and run in ONNX Runtime before it is kept: what the runtime ignores (the scale of an int32 bias) is not
searched again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from ..access import Ledger
from .files import Files
from .goal import BEYOND, Aim, Goal, Intact
from .ranking import Allowed, fewest, ranked
from .stored import Flip, attacked_bits
from .surrogate import Surrogate, correct

TRIALS = 6  # of a step, on the twin; where none of them helps, as many again, so often at most:
SMALL = 2**18  # bits: a file of fewer has as many more trials, which cost as little
MOST_TRIALS = 256
REFUSED = (
    6  # flips of a step that the file may not follow, or less than the twin, before the search goes on or gives up
)
WRAPPING = 3  # of which the file is asked first, see `_wrapping`
LEAST_GAIN, LEAST = 0.1, 1e-4  # that the file must show: of what the twin promised, and at all
SPARED = 0.03  # of the attacker's records that may be right again where a flip is spared, for the file to be asked
CLASSES = 2  # towards which a search goes, at most
BEHIND = 1.5  # times the flips that are allowed: who would need more of them at this pace gives up
SUDDEN = 2  # flips away from the right classes, where a class was reached: a few do it at once, or many are needed
COMPARED, BY, HELD = 12, 32, 2**24  # classes that are compared, by so many records; numbers of their gradients held


@dataclass
class Found:
    """A search's result.

    Args:
        flips: in the order in which they are made.
        after: bool [m] for each flip: which evaluation records the file gets right once it is made.
        reached: the last of them is what was wanted.
        value: of the goal, once all are made.
        spare: those of them without which, by the twin, as much is wrong.
    """

    flips: list[Flip]
    after: list[Tensor]
    reached: bool
    value: float = float("inf")
    spare: list[Flip] = field(default_factory=list)

    @property
    def order(self) -> tuple[bool, float]:
        """The better, the less: the fewest flips, or what is nearest."""
        return not self.reached, len(self.flips) if self.reached else self.value


def search(
    surrogate: Surrogate, files: Files, goal: Goal, budget: int, allowed: Allowed, inert: set[int], ledger: Ledger
) -> Found:
    """Flips one bit after the other until the goal is reached, at most `budget`; then drops those that it did without.

    Args:
        allowed: which bits the attacker can flip.
        inert: numbers of tensors that the runtime was found to ignore, to which it adds.
    """
    found = Found([], [], False)
    for number, wanted in enumerate(_classes(surrogate, files, goal, allowed, ledger)):
        most = len(found.flips) - 1 if found.reached else budget
        if found.reached and wanted < 0:
            most = min(most, SUDDEN)
        if most < 1:
            break
        aim = goal.away() if wanted < 0 else goal.towards(wanted)
        one = _pursued(surrogate, files, goal, (wanted, aim), most, allowed, inert, ledger, found.reached)
        if number == 0 or one.order < found.order:
            found = one
    return _without_needless(found, files, goal) if found.reached else found


def _classes(surrogate: Surrogate, files: Files, goal: Goal, allowed: Allowed, ledger: Ledger) -> list[int]:
    """The aims in the order in which they are pursued: towards the classes that should take the fewest flips, and away
    from the right classes (-1).
    """
    intact = _intact(surrogate, files, goal, ledger)
    if bool((goal.weights < 0).any()):
        return [-1]
    behind = [goal.towards(one).value(intact.twins) + BEYOND for one in range(intact.twins.shape[1])]
    held = max(1, HELD // max(1, sum(len(one.raw) for one in surrogate.tensors)))
    near = sorted(range(len(behind)), key=lambda one: behind[one])[: min(COMPARED, held)]
    x = goal.records.x[:BY]
    for wanted in near:
        if wanted not in intact.gradients:
            intact.gradients[wanted] = surrogate.gradients(x, goal.towards(wanted).loss)
            ledger.forwards += len(x)
            ledger.backwards += len(x)
    needed = [len(x) * behind[wanted] for wanted in near]
    expected = fewest(surrogate, [intact.gradients[wanted] for wanted in near], allowed, needed)
    return [*(wanted for _, wanted in sorted(zip(expected, near, strict=True))[:CLASSES]), -1]


def _pursued(
    surrogate: Surrogate,
    files: Files,
    goal: Goal,
    which: tuple[int, Aim],
    budget: int,
    allowed: Allowed,
    inert: set[int],
    ledger: Ledger,
    hurried: bool,
) -> Found:
    """Flips with one aim; the surrogate is as before in the end.

    Args:
        hurried: it ends where it is far behind what reaches its end within the budget.
    """
    wanted, aim = which
    intact, records = _intact(surrogate, files, goal, ledger), goal.records
    found, refused, logits = Found([], [], False, goal.value(intact.logits)), set[Flip](), intact.logits
    value, on_twin = aim.value(logits), aim.value(surrogate.keep(records.x))
    start = value - aim.enough
    trials = min(MOST_TRIALS, max(TRIALS, SMALL // max(1, attacked_bits(surrogate.tensors))))
    while len(found.flips) < budget and not found.reached:
        gradients = None if found.flips else intact.gradients.get(wanted)
        if gradients is None:
            gradients = surrogate.gradients(records.x, aim.loss)
            ledger.forwards += len(records)
            ledger.backwards += len(records)
        if not found.flips:
            intact.gradients[wanted] = gradients
        flips = ranked(surrogate, gradients, allowed, refused | set(found.flips), inert, trials)
        promising = _promising(surrogate, aim, flips, trials, max(value, on_twin), ledger)
        wrapping = ((-torch.inf, flip) for flip in _wrapping(surrogate, flips) if not found.flips)
        step, tries, ends = None, 0, False
        for promised, flip in chain(wrapping, promising):
            if step is not None and (step[2] <= promised + LEAST_GAIN * (value - promised) or tries >= REFUSED):
                break
            if len(refused) > REFUSED * (len(found.flips) + 1):
                break
            tries += 1
            told = files.answers([*found.flips, flip], records.x)
            now = value if told is None else aim.value(told[0])
            if told is not None and goal.reached(told[1]):  # before any that does not, whatever its value
                step = (flip, told, now) if step is None or not ends or now < step[2] else step
                ends = True
                continue
            gained = value - now - LEAST - LEAST_GAIN * max(value - max(promised, aim.enough), 0.0)
            if told is not None and not ends and gained >= 0:
                step = (flip, told, now) if step is None or now < step[2] else step
                continue
            refused.add(flip)
            if told is not None and torch.equal(told[0], logits):
                inert.add(flip.tensor)
        if step is None:
            break
        flip, (logits, right), value = step
        surrogate.flip(flip)
        on_twin = aim.value(surrogate.keep(records.x))
        ledger.forwards += len(records)
        found.flips.append(flip)
        found.after.append(right)
        found.reached, found.value = goal.reached(right), goal.value(logits)
        done = (start - (value - aim.enough)) / start if start > 0 else 1.0
        if hurried and len(found.flips) > 1 and BEHIND * budget * done < len(found.flips):
            break
    found.spare = _spare(surrogate, found, goal) if found.reached else []
    for flip in found.flips:
        surrogate.flip(flip)
    return found


def _spare(surrogate: Surrogate, found: Found, goal: Goal) -> list[Flip]:
    """See `Found`; the surrogate holds all flips, and what it keeps is of them."""
    y = goal.records.y
    right = correct(surrogate.logits(goal.records.x), y)
    most = float(right.double().mean()) + SPARED

    def left(flip: Flip) -> float:
        return float(correct(surrogate.with_flip(flip), y).double().mean())  # the flip undone

    return [flip for flip in found.flips[:-1] if left(flip) <= most]


def _intact(surrogate: Surrogate, files: Files, goal: Goal, ledger: Ledger) -> Intact:
    """See `Intact`."""
    if goal.intact is None:
        before, twins = files.answers([], goal.records.x), surrogate.logits(goal.records.x)
        ledger.forwards += len(goal.records)
        goal.intact = Intact(twins if before is None else before[0], twins)
    return goal.intact


def _promising(
    surrogate: Surrogate, aim: Aim, flips: Sequence[Flip], trials: int, value: float, ledger: Ledger
) -> Iterator[tuple[float, Flip]]:
    """The value that a flip leaves by the twin (the least there is: all is as wanted), where that is less than `value`,
    the least first; further flips are tried only where those before were not enough.
    """
    start = 0
    while start < len(flips):
        values: list[tuple[float, Flip]] = []
        for flip in flips[start : start + trials]:
            logits = surrogate.with_flip(flip)
            values.append((-math.inf if aim.there(logits) else aim.value(logits), flip))
            if values[-1][0] <= aim.enough:
                break
        ledger.forwards += len(values) * len(surrogate.kept_records)
        start += len(values)
        yield from (one for one in sorted(values) if one[0] < value)


def _wrapping(surrogate: Surrogate, flips: Sequence[Flip]) -> list[Flip]:
    """The first few that flip the sign of an int32: sums to which it is added wrap around, which the twin's do not."""
    found = [flip for flip in flips if flip.bit == 31 and surrogate.tensors[flip.tensor].kind == "int"]
    return found[:WRAPPING]


def _without_needless(found: Found, files: Files, goal: Goal) -> Found:
    """Drops flips without which the file is as useless, the first ones first."""
    kept = list(found.flips)
    for flip in found.spare:
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
