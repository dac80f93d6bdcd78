"""Evidence of churn -> changed decisions, negative flips, flips near the boundary, and which classes got worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..access import Access
from ..measurement import Measurement, Rate, ThreatModel, masks_by_group
from ..preparation import Ran, Results
from ..statistics.groups import got_worse
from .risk import CHURN, LOW_MARGIN_FLIPS, NEGATIVE_FLIPS

NEGATIVE, LOW_MARGIN = "negative-flips", "low-margin"  # details of findings
TENTHS = 10
NOBODY = ThreatModel(
    Access.SCORES, "nobody attacks: the model and the one it came from answer the same records", "one answer per record"
)


def measure_churn(results: Results) -> list[Measurement]:
    """Against the model's own parent."""
    model = results.model
    parent = model.baselines[0] if model.baselines else model.name
    own, theirs = results.evidence(Ran(model.name)), results.evidence(Ran(parent))
    if own is None or theirs is None or not model.baselines:
        reason = "the model that it came from is not known"
        if model.is_dense:
            reason = "not applicable: it is what the others are compared with"
        elif model.baselines:
            reason = results.why(Ran(model.name if own is None else parent))
        return [Measurement(CHURN, "decisions compared with its parent's", None, reason=reason)]
    changed = own.arrays["predicted"] != theirs.arrays["predicted"]
    right, before = (np.asarray(one.arrays["correct"], dtype=bool) for one in (own, theirs))
    lost, gained = before & ~right, right & ~before
    order = np.argsort(theirs.arrays["margin"], kind="stable")
    tenths = np.array_split(order, min(TENTHS, len(order)))
    masks = masks_by_group(results.scope.data, own.arrays["ids"])
    worse, told = got_worse(lost, gained, masks)
    totals = (
        f"Of {len(changed)} records {lost.sum()} are wrong that were right, and {gained.sum()} right that were wrong."
    )
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
            notes=(totals, told),
        ),
        Measurement(
            LOW_MARGIN_FLIPS,
            f"decisions changed among the tenth of the records that {parent} is least sure of",
            Rate(changed[tenths[0]]),
            detail=LOW_MARGIN,
        ),
    ]
    flags = tuple(sorted({*results.flags(model.name), *results.flags(parent)}))
    why = "not gated: no built-in limit on churn"
    return [replace(one, threat=NOBODY, reason=why, flags=flags, available=len(changed)) for one in found]
