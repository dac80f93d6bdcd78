"""What evasion found on one model, and how two models compare: like with like.

A change counts the parts that ran on both sides with the same parameters and, of transfer, the inputs crafted on each
of the two and asked of the other. What one side alone faced is in its own figure and in the row of that part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.certificate import AGREEMENT
from ...targets.data.data import Data
from ..access import Access, Flag
from ..case import Case, Evidence
from ..elsewhere import wrong_elsewhere
from ..measurement import Bools, Comparison, Rate, masks_by_group
from ..preparation import Ran, Results
from ..statistics.groups import got_worse
from ..statistics.rates import percent
from . import trust
from .likeness.distances import distances, others
from .parameters import EvasionParameters
from .preparations.crafted import ReplayedBothWays
from .preparations.radii import RadiusProbe, RoomToFall, radii_of

REPLAYED = "transfer from its candidates"  # as a dense model faces it; no part can be labelled so
BOTH_WAYS = "transfer both ways"  # as a change counts it

TINY = 1e-3  # an L-inf epsilon below which next to nothing can fail; in L2 the corners of that ball, up to TINY_L2
TINY_L2 = 0.05  # with many values the corners are far: .39 at 224 x 224 x 3, where an L2 epsilon of .25 does harm
FREE = 0.1  # of the values that are no categories, at least, an attacker can change
# Of a gradient attack that deserves the name. PGD on a dense MNIST model at L-inf .06 leaves 40.0 % with 1 step, 37.4
# with 2, 36.4 with 3, 35.6 with 10 and 35.2 with 50: from the third on more of them find little.


@dataclass(frozen=True)
class Found:
    """The evidence on one model, with what its candidates contribute where it is a dense one.

    Args:
        robust: bool [n], withstood every attack at the gate's epsilon.
        flags: of that worst case; part_flags: by part.
        replayed: bool [n], fooled by inputs crafted on its candidates; None where there are none.
        elsewhere: by the name of a part, bool [n]: what it gets wrong in each other runtime.
    """

    evidence: Evidence
    attack: EvasionParameters
    robust: Bools
    flags: tuple[str, ...]
    part_flags: dict[str, list[str]]
    replayed: Bools | None
    elsewhere: dict[str, Bools] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        return self.evidence.summary

    def fooled(self, part: str) -> Bools | None:
        """bool [n], at the gate's epsilon; None where the part did not run there."""
        array = self.evidence.arrays.get(f"fooled/{part}/{self.attack.gate!r}")
        return None if array is None else np.asarray(array, dtype=bool)


def found_on(results: Results, name: str, attack: EvasionParameters, against: str | None = None) -> Found | None:
    """What was found on one model; None where the attack did not run.

    Args:
        against: of the candidates of a dense model, only this one's crafted inputs count; None: those of all.
    """
    evidence = results.evidence(Ran(name))
    resolved = resolve_radius(results, attack)
    if evidence is None or resolved is None:
        return None
    scope = results.scope
    replayed = [
        np.asarray(found.arrays["on_baseline"], dtype=bool)
        for other in (scope.compared_with(name) if against is None else [against])
        if (found := _replay(results, attack, other, name)) is not None
    ]
    elsewhere = wrong_elsewhere(results, name, attack.count)
    robust = robust_at(evidence, resolved.gate)
    for wrong in elsewhere.values():
        robust = robust & ~wrong
    flags, part_flags = set(evidence.summary["union_flags"]), dict(evidence.flags)
    together = None
    if replayed:
        together = np.logical_or.reduce(replayed)
        robust = robust & ~together
        flags, part_flags = _flags_with_replays(evidence, resolved, together)
    if evidence.agreement is not None and evidence.agreement < AGREEMENT:
        flags.add(Flag.TWIN_DISAGREES.value)
    if results.without_twin(name) is not None:
        flags.add(Flag.NO_WHITE_BOX.value)
    if scope.data.bounds_doubt:
        flags.add(Flag.BOUNDS_DOUBTFUL.value)
    chosen = chosen_radius(results, attack)
    if chosen is not None and chosen["how"] == "nearest":
        flags.add(Flag.EPSILON_EXTREME.value)
    tiny = min(TINY * math.sqrt(math.prod(scope.data.shape)), TINY_L2) if resolved.norm == "l2" else TINY
    if chosen is None and resolved.gate < tiny:
        flags.add(Flag.EPSILON_TINY.value)
    if chosen is None and below_step(evidence.summary, resolved.gate) is not None:
        flags.add(Flag.BELOW_GRID.value)
    if free_share(scope.data, resolved.gate) < FREE:
        flags.add(Flag.LITTLE_FREE.value)
    if _weak(evidence.summary, resolved.gate):
        flags.add(Flag.WEAK_ATTACK.value)
    return Found(evidence, resolved, robust, tuple(sorted(flags)), part_flags, together, elsewhere)


def below_step(summary: Mapping[str, Any], epsilon: float) -> float | None:
    """The step of the grid that the records lie on, where no value can reach half of one within epsilon."""
    step = summary.get("step")
    return step if step is not None and epsilon < step / 2 else None


def doubts(results: Results, found: Found) -> list[str]:
    """What two of the flags rest on, in sentences with the number and the cure."""
    told = []
    if Flag.TWIN_DISAGREES in found.flags:
        shares = results.agreement(results.model.name)
        if found.evidence.agreement is not None:
            shares["adversarial"] = found.evidence.agreement, len(found.robust)
        kinds = ", ".join(f"{100 * share:.1f} % of {n} {kind} inputs" for kind, (share, n) in shares.items())
        told.append(
            f"Twin and deployed model give the same label on {kinds}; 99.5 % are asked. Name parts that ask the model "
            "itself: square with more queries, or hop-skip-jump."
        )
    if (step := below_step(found.summary, found.attack.gate)) is not None:
        told.append(
            f"The records lie on a grid of {round(1 / step)} steps, and epsilon is less than half of one: rounded to "
            "it, every input is the record itself. Name an epsilon of at least one step."
        )
    return told


def free_share(data: Data, epsilon: float) -> float:
    """Of the values of a record that are no categories, the share that can change within epsilon."""
    n, structure, bounds = math.prod(data.shape), data.structure, data.bounds
    numbers = np.ones(n, dtype=bool)
    numbers[[*structure.codes, *(at for block in structure.one_hot for at in block)]] = False
    free = numbers.copy()
    free[list(structure.immutable)] = False
    if bounds.whole is not None:  # a whole number changes by one or not at all
        least = (epsilon * bounds.scale.expand(data.shape) >= 1) | ~bounds.whole
        free &= least.flatten().cpu().numpy()
    return float(free.sum() / max(numbers.sum(), 1))


def _weak(summary: Mapping[str, Any], epsilon: float) -> bool:
    """Whether every part that followed gradients gave up early, or had steps too short to leave its start."""
    white = [part for part, access in summary["part_access"].items() if Access(access) is Access.WHITE_BOX]
    return bool(white) and all(trust.too_weak(summary["settings"][part], epsilon) for part in white)


def chosen_radius(results: Results, attack: EvasionParameters) -> dict[str, Any] | None:
    """The fields of `radius.Radius` that was chosen for the attack; None where it names its own, or none could be."""
    if attack.radius is not None:
        return asdict(attack.radius)
    if not attack.automatic:
        return None
    chosen = results.prepared(RadiusProbe(attack.norm, results.scope.reference.name))
    return None if chosen is None else dict(chosen.document["radius"])


def resolve_radius(results: Results, attack: EvasionParameters) -> EvasionParameters | None:
    """The attack with the radius that was chosen for it; None where none could be."""
    if not attack.automatic:
        return attack
    chosen = results.prepared(RadiusProbe(attack.norm, results.scope.reference.name))
    return None if chosen is None else attack.at(*radii_of(chosen))


def _replay(results: Results, attack: EvasionParameters, candidate: str, baseline: str) -> Any:
    scope = results.scope
    return results.prepared(ReplayedBothWays(scope.label, candidate, baseline, attack.radii(scope), attack.count))


def _flags_with_replays(
    evidence: Evidence, attack: EvasionParameters, replayed: Bools
) -> tuple[set[str], dict[str, list[str]]]:
    """The flags of a dense model's worst case once inputs crafted on its candidates are among its attacks."""
    summary = evidence.summary
    access = {part: Access(value) for part, value in summary["part_access"].items()} | {REPLAYED: Access.LABELS}
    fooled = {
        part: np.asarray(evidence.arrays[f"fooled/{part}/{attack.gate!r}"], dtype=bool)
        for part in summary["parts"]
        if f"fooled/{part}/{attack.gate!r}" in evidence.arrays
    } | {REPLAYED: replayed}
    flags = {part: set(raised) for part, raised in evidence.flags.items()}
    seek_all = {part.part for part in attack.parts if part.seeks_all}
    for part, outcomes in fooled.items():
        if access[part] is Access.WHITE_BOX and part in seek_all and trust.beats(replayed, outcomes):
            flags.setdefault(part, set()).add(Flag.BLACK_BOX_WINS.value)
    by_part = {part: sorted(raised) for part, raised in flags.items() if raised}
    return set(trust.whole_flags(access, by_part, fooled, evidence.arrays.get(trust.FALLS))), by_part


def like_for_like(
    results: Results, attack: EvasionParameters, name: str, mine: Found, theirs: Found
) -> Comparison | None:
    """Over what both models faced with the same parameters; None where there is no such part."""
    both: dict[str, tuple[Bools, Bools]] = {}
    for part in mine.summary["parts"]:
        alike = mine.summary["settings"][part] == theirs.summary["settings"].get(part)
        own, other = mine.fooled(part), theirs.fooled(part)
        if alike and own is not None and other is not None and part not in mine.summary["use_parent"]:
            both[part] = own, other
    replays = _replay(results, attack, results.model.name, name)
    if replays is not None and mine.summary["use_parent"]:
        both[BOTH_WAYS] = replays.arrays["on_candidate"].astype(bool), replays.arrays["on_baseline"].astype(bool)
    if not both:
        return None
    both |= {
        part: (mine.elsewhere[part], theirs.elsewhere[part]) for part in mine.elsewhere if part in theirs.elsewhere
    }
    return Comparison(
        baseline=name,
        own=Rate(~np.logical_or.reduce([own for own, _ in both.values()])),
        theirs=Rate(~np.logical_or.reduce([other for _, other in both.values()])),
        counted=tuple(both),
        flags=tuple(sorted({*theirs.flags, *results.flags(name)})),
        floor=_chance(results, theirs),
        instead=_instead(results, name, theirs.attack),
    )


def lost_robustness(
    results: Results, found: Found, comparisons: Sequence[Comparison]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes and groups that lost robustness to compression, beyond chance, and a sentence where it was tested."""
    first = next((one for one in comparisons if one.baseline == results.model.baselines[0]), None)
    if first is None or not isinstance(first.own, Rate) or not isinstance(first.theirs, Rate):
        return (), ()
    own, theirs = (np.asarray(one.successes, dtype=bool) for one in (first.own, first.theirs))
    masks = masks_by_group(results.scope.data, np.asarray(found.evidence.arrays["ids"]))
    worse, told = got_worse(theirs & ~own, own & ~theirs, masks, results.level)
    return worse, (f"Against {first.baseline}, by what both sides faced: {told[0].lower()}{told[1:]}",)


def _chance(results: Results, baseline: Found) -> float:
    """The robust accuracy of a guesser, where that is well below a third of the baseline's accuracy, else 0.

    With few classes an attack pushes any model below chance, so there chance is no floor.
    """
    chance = 1 / results.scope.data.classes
    return chance if chance < float(np.mean(baseline.evidence.arrays["clean_correct"])) / 6 else 0.0


def _instead(results: Results, parent: str, attack: EvasionParameters) -> str | None:
    """The epsilon at which the parent keeps about half of its accuracy, where at the gate's it keeps next to none."""
    found = results.prepared(RoomToFall(results.scope.label, parent, attack.norm))
    radius = None if found is None else found.document["radius"]
    if radius is None:
        return None
    share = kept_words(radius)
    if radius["how"] == "nearest":
        return f"no epsilon was found that leaves {parent} about half; at {radius['epsilon']:.2g} it keeps {share}"
    return f"at epsilon {radius['epsilon']:.2g} {parent} keeps {share}: name that, or epsilon: auto"


def robust_at(evidence: Evidence, epsilon: float) -> Bools:
    """bool [n]: the deployed model withstood every attack at this epsilon."""
    return ~np.asarray(evidence.arrays[f"worst/{epsilon!r}"], dtype=bool)


def kept_words(radius: Mapping[str, Any]) -> str:
    """What the probed model keeps at the chosen radius, with its interval, n and access."""
    probe = {float(epsilon): share for epsilon, share in radius["probe"].items()}
    right = max(1, round(probe[0.0] * radius["records"]))
    kept = percent(np.arange(right) < round(radius["kept"] * right), digits=0)
    return (
        f"{kept} of its accuracy (a quick probe of {radius['records']} of the attacker's records, white-box where "
        "there is a twin)"
    )


def contradictions(
    evidence: Evidence, case: Case, worst: str, allowed: Callable[[Tensor, Tensor], Tensor]
) -> list[str]:
    """In what the deployed model's answers differ from the evidence of a run, a phrase each.

    A record counts as fooled at the gate exactly if it is misclassified as it is, or as it was stored to be attacked,
    and that is allowed.

    Args:
        worst: the array that says who is fooled at the gate.
        allowed: bool [n], of stored inputs and their records, float32 [n, *shape] each.
    """
    arrays = evidence.arrays
    place = {int(one): row for row, one in enumerate(case.ids)}
    rows = [place.get(int(one)) for one in arrays["ids"]]
    if None in rows:
        return ["records were attacked that are none to be evaluated"]
    records = case.evaluation.take(torch.tensor(rows, dtype=torch.int64, device=case.evaluation.x.device))
    found = []
    correct = (case.deployed.logits(records.x).argmax(1) == records.y).cpu().numpy()
    if (off := int((correct != arrays["clean_correct"]).sum())) > 0:
        found.append(f"{off} of {len(correct)} records are classified otherwise")
    adversarial = torch.from_numpy(np.array(arrays["adversarial"])).to(records.x.device)
    wrong = (case.deployed.logits(adversarial).argmax(1) != records.y) & allowed(adversarial, records.x)
    fooled = ~correct | wrong.cpu().numpy()
    if (off := int((fooled != arrays[worst]).sum())) > 0:
        found.append(f"{off} of {len(correct)} stored adversarial inputs do not fool it as the evidence has it")
    again = distances(records.x, adversarial, case.bounds, tokens=case.structure.tokens)
    found += [f"{name} is not that of the stored adversarial inputs" for name in others(arrays, again)]
    return found
