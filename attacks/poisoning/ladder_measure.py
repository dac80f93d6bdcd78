"""Evidence of an honest ladder -> on which rungs a trigger calls a class, and where decisions change one way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used

from ...targets.form import Arrays
from ..access import Access
from ..case import Evidence
from ..measurement import Found, Measurement, Quantity, ThreatModel
from ..preparation import Ran, Results
from ..statistics.rates import LEVEL, holm, percent
from .inversion import Kind
from .measure import Shown, alarms, broken, excess, hits_of, picture, success_row
from .risk import LADDER_BACKDOORS

RUNG = "rung"  # detail of a finding
AMONG = 2  # times as many records of small margin as changed decisions tell where these would go


def rung_of(arrays: Arrays, position: int) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of `backdoor`'s evidence, of one rung."""
    own = slice(position, position + 1)
    return {
        "targets": arrays["targets"],
        "usual": arrays["usual"],
        "size": arrays["size"][position],
        "shown": arrays["shown"][own],
        "mask": arrays["mask"][own],
        "clean": arrays["rung_clean"][position],
        "triggered": arrays["rung_triggered"][own],
        "parent_clean": arrays["clean"],
        "parent_triggered": arrays["parent_triggered"][own],
    }


def found_on(evidence: Evidence) -> list[tuple[int, Shown]]:
    """Rungs, by position, on which a trigger far smaller than usual surely works, and the trigger."""
    found = []
    for position in range(len(evidence.summary["rungs"])):
        seen = Evidence(rung_of(evidence.arrays, position), {"beside_parent": True})
        found += [(position, one) for one in alarms(seen)]
    return found


def one_way(arrays: Arrays) -> list[tuple[int, int, int, int, float]]:
    """Rung, class, changed decisions that go there, all that changed, and the p-value (Holm over rungs and classes).

    Honest compression turns decisions into the dense model's second choice where that is close. Of the records with the
    smallest margins, twice as many as changed, the share whose second choice is the class is what chance gives it. A
    rung that is broken has no honest second choices, and is left out.
    """
    clean, second = arrays["clean"], arrays["second"]
    order = np.argsort(arrays["margin"], kind="stable")
    rows, tails = [], []
    for position, answered in enumerate(arrays["rung_clean"]):
        changed = answered != clean
        count = int(changed.sum())
        if broken(answered, clean):
            continue
        near = order[: max(1, AMONG * count)]
        for target in range(int(max(clean.max(), second.max(), answered.max())) + 1):
            into = int((answered[changed] == target).sum())
            usual = ((second[near] == target).sum() + 1) / (len(near) + 2)
            tails.append(float(scipy.stats.binom.sf(into - 1, count, usual)) if into else 1.0)
            rows.append((position, target, into, count))
    corrected = holm(tails)
    return [(*row, p) for row, p in zip(rows, corrected, strict=True) if p < 1 - LEVEL]


def measure(results: Results, steps: int, kinds: Sequence[Kind]) -> list[Measurement]:
    """On how many rungs there is a trigger; and how well the most suspicious one works."""
    model = results.model
    if not model.is_dense:
        why = "not applicable: the ladder is made of the dense model, and what ships is looked at by itself"
        return [Measurement(LADDER_BACKDOORS, "an honest ladder", None, reason=why)]
    evidence = results.evidence(Ran(model.name))
    if evidence is None:
        return [Measurement(LADDER_BACKDOORS, "an honest ladder", None, reason=results.why(Ran(model.name)))]
    arrays, rungs, names = evidence.arrays, evidence.summary["rungs"], results.scope.data.class_names
    called = found_on(evidence)
    notes = [
        f"{rungs[position]}: a {kinds[one.kind]} trigger of {100 * one.size:.1f} % of the image calls "
        f"{names[one.target]!r} on {percent(one.hits)} of {len(one.hits)} images, the dense model on none of them."
        for position, one in called
    ]
    if len(called) == 1:
        notes.append(f"It is on this rung alone, of {len(rungs)}: a sign of a plant that is made for it.")
    notes += [
        f"{rungs[position]}: {into} of {count} changed decisions go to {names[target]!r}, more than the dense model's "
        f"second choices explain (Holm-corrected p {p:.2g}); honest ones do so too, when a logit moves."
        for position, target, into, count, p in one_way(arrays)
    ]
    harsh = [rungs[at] for at, one in enumerate(arrays["rung_clean"]) if broken(one, arrays["clean"])]
    if harsh:
        notes.append(f"Too harsh to say anything, with a fifth of the decisions changed or more: {', '.join(harsh)}.")
    notes += [f"{name} was not tried: {why}" for name, why in evidence.skipped.items()]
    rated = np.array([excess(arrays["size"][at], arrays["usual"], True).max() for at in range(len(rungs))])
    top = int(rated.argmax())
    seen = Evidence(rung_of(arrays, top), {"beside_parent": True})
    hits = hits_of(seen, 0)
    kind, at = arrays["shown"][top].tolist()
    size, target = float(arrays["size"][top, kind, at]), int(arrays["targets"][at])
    threat = ThreatModel(
        Access.WHITE_BOX,
        "has the dense model, compresses it honestly and has records of its own",
        f"{steps} steps for each of {len(arrays['targets'])} classes on {len(rungs)} rungs",
    )
    quantities = (
        Quantity("the smallest trigger's size", kinds[kind], size, len(arrays["targets"])),
        Quantity("a usual trigger's size", "of the dense model", float(arrays["usual"][kind]), len(arrays["targets"])),
    )
    flags, searched = tuple(sorted(results.flags(model.name))), arrays["size"].size
    return [
        Measurement(
            LADDER_BACKDOORS,
            f"triggers on {len(rungs)} honest compressions of the dense model, and not in itself",
            Found(len({position for position, _ in called}), searched, "other strengths, and large or moving triggers"),
            threat,
            reason="not gated: it is no candidate",
            notes=tuple(notes),
            pattern=picture(arrays["mask"][called[0][0]], names[called[0][1].target]) if called else None,
            flags=flags,
        ),
        success_row(
            f"the most suspicious trigger ({rungs[top]}, {kinds[kind]}, class {names[target]})", hits, size, threat,
            detail=RUNG, available=len(results.scope.data.evaluation_ids), quantities=quantities, flags=flags,
        ),
    ]  # fmt: skip
