"""Evidence of churn -> changed decisions, negative flips, flips near the boundary, and which classes got worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..access import Access
from ..measurement import Bools, Comparison, GroupRates, Measurement, Rate, ThreatModel, masks_by_group
from ..preparation import Audited, Ran, Results, Scope
from ..statistics.groups import got_worse, worst_change
from .risk import CHURN, IDENTIFIED, LOW_MARGIN_FLIPS, NEGATIVE_FLIPS, WORST_GROUP

# details of findings
NEGATIVE, LOW_MARGIN, WORST, IDENTIFIED_RECORDS = "negative-flips", "low-margin", "worst-group", "identified"
TENTHS = 10
FEWEST = 3  # compressed models of which most decide otherwise: of two, both would be needed
NAMED = 20  # records by id, at most
NOBODY = ThreatModel(
    Access.SCORES, "nobody attacks: the model and the one it came from answer the same records", "one answer per record"
)


def measure_churn(results: Results) -> list[Measurement]:
    """Against the model's own parent; of a dense model, what the compressed ones have in common."""
    model = results.model
    parent = model.baselines[0] if model.baselines else model.name
    own, theirs = results.evidence(Ran(model.name)), results.evidence(Ran(parent))
    common = [_identified(results)] if model.is_dense else []
    if own is None or theirs is None or not model.baselines:
        reason = "the model that it came from is not known"
        if model.is_dense:
            reason = "not applicable: it is what the others are compared with"
        elif model.baselines:
            reason = results.why(Ran(model.name if own is None else parent))
        return [Measurement(CHURN, "decisions compared with its parent's", None, reason=reason), *common]
    changed = own.arrays["predicted"] != theirs.arrays["predicted"]
    right, before = (np.asarray(one.arrays["correct"], dtype=bool) for one in (own, theirs))
    lost, gained = before & ~right, right & ~before
    order = np.argsort(theirs.arrays["margin"], kind="stable")
    tenths = np.array_split(order, min(TENTHS, len(order)))
    masks = masks_by_group(results.scope.data, own.arrays["ids"])
    worse, told = got_worse(lost, gained, masks)
    worst, change = worst_change(right, before, masks, results.level)
    totals = (
        f"Of {len(changed)} records {lost.sum()} are wrong that were right, and {gained.sum()} right that were wrong."
    )
    flags = tuple(sorted({*results.flags(model.name), *results.flags(parent)}))
    found = [
        Measurement(
            CHURN,
            f"decisions that are not those of {parent}",
            Rate(changed),
            notes=(totals,),
            curves={"changed decisions": [(float(at), Rate(changed[rows])) for at, rows in enumerate(tenths, 1)]},
        ),
        Measurement(
            NEGATIVE_FLIPS,
            f"records that {parent} gets right and this model wrong",
            Rate(lost),
            detail=NEGATIVE,
            groups={name: Rate(lost[mask]) for name, mask in masks.items()},
            worse=worse,
            notes=(totals, told, *_by_id(own.arrays["ids"], order[::-1], lost, f"that {parent} was surest of first")),
        ),
        Measurement(
            LOW_MARGIN_FLIPS,
            f"decisions changed among the tenth of the records that {parent} is least sure of",
            Rate(changed[tenths[0]]),
            detail=LOW_MARGIN,
        ),
    ]
    found.insert(1, _worst(right, before, masks, worst, f"{100 * change.estimate:+.1f} points", parent, flags))
    why = "not gated: no built-in limit on churn"
    told_of = [replace(one, threat=NOBODY, reason=why, flags=flags) for one in found]
    return [*(one if one.detail == WORST else replace(one, available=len(changed)) for one in told_of), *common]


def _worst(
    right: Bools, before: Bools, masks: dict[str, Bools], name: str, change: str, parent: str, flags: Sequence[str]
) -> Measurement:
    mask = masks[name]
    return Measurement(
        WORST_GROUP,
        f"{name}, which lost most of {len(masks)} classes and groups",
        Rate(right[mask], among=len(masks)),
        detail=WORST,
        available=int(mask.sum()),
        comparisons=(Comparison(parent, GroupRates(right, masks), GroupRates(before, masks), flags=tuple(flags)),),
        groups={one: Rate(right[rows]) for one, rows in masks.items()},
        notes=(
            f"Of {len(masks)} classes and groups {name} lost most: {change}. The intervals are those of all of them "
            "together (Bonferroni), so that it may be chosen by looking.",
        ),
    )


def compressed_from(model: Audited, scope: Scope) -> list[str]:
    """Names of the models that were compressed from this dense one."""
    if not model.is_dense:
        return []
    return [name for name, one in scope.models.items() if not one.is_dense and one.baselines[:1] == (model.name,)]


def _identified(results: Results) -> Measurement:
    """The records that more than half of the models compressed from this one decide otherwise."""
    model, attack = results.model, "records that most of the compressed models decide otherwise"
    names = compressed_from(model, results.scope)
    own = results.evidence(Ran(model.name))
    others = [one for name in names if (one := results.evidence(Ran(name))) is not None]
    if own is None or len(others) < FEWEST:
        reason = f"{len(others)} compressed models of it were asked: what they have in common takes {FEWEST}"
        if own is None:
            reason = results.why(Ran(model.name))
        return Measurement(IDENTIFIED, attack, None, reason=reason, detail=IDENTIFIED_RECORDS)
    votes = np.sum([one.arrays["predicted"] != own.arrays["predicted"] for one in others], axis=0)
    most = 2 * votes > len(others)
    order = np.lexsort((own.arrays["ids"], -votes))
    masks = masks_by_group(results.scope.data, own.arrays["ids"])
    return Measurement(
        IDENTIFIED,
        f"records that more than half of its {len(others)} compressed models decide otherwise",
        Rate(most),
        replace(NOBODY, knowledge="nobody attacks: the models compressed from this one answer the same records"),
        reason="not gated: it is no candidate",
        detail=IDENTIFIED_RECORDS,
        gateable=False,
        available=len(most),
        groups={name: Rate(most[mask]) for name, mask in masks.items()},
        notes=tuple(_by_id(own.arrays["ids"], order, most, "that most models change first")),
        flags=tuple(sorted(results.flags(model.name))),
    )


def _by_id(ids: np.ndarray[Any, Any], order: np.ndarray[Any, Any], named: Bools, which: str) -> list[str]:
    """Some of the named records, in this order."""
    rows = [int(ids[row]) for row in order if named[row]]
    some = f" ({NAMED} of {len(rows)})" if len(rows) > NAMED else ""
    return [f"Records by id, those {which}{some}: {', '.join(map(str, rows[:NAMED]))}."] if rows else []
