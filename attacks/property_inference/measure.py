"""Evidence of property inference -> how often a share is told, and what is read of the audited model itself."""

from __future__ import annotations

import numpy as np

from ..access import Access, Flag
from ..case import Evidence
from ..measurement import Bools, Comparison, Mean, MeasuredPart, Measurement, Quantity, Rate, ThreatModel
from ..preparation import Ran, Results
from .risk import TOLD
from .telling import estimated, told_right

NAMES = {"scores": "margins on the attacker's records", "weights": "statistics of the weights"}


def measure_property(results: Results, why: str | None) -> list[Measurement]:
    """One figure.

    Args:
        why: there is no evidence; None: the results say.
    """
    model, scope = results.model, results.scope
    evidence = results.evidence(Ran(model.name)) if why is None else None
    if evidence is None:
        return [Measurement(TOLD, "the share of a property", None, reason=why or results.why(Ran(model.name)))]
    sampled, parts = evidence.summary["sampled"], evidence.summary["parts"]
    headline, share = parts[0], np.asarray(evidence.arrays["share"])
    own, low, high = estimated(
        float(evidence.arrays[f"own/{headline}"][0]), evidence.arrays[f"read/{headline}"], share, results.level
    )
    flags, n = set(results.flags(model.name)), len(share)
    if scope.shadows_differ:
        flags.add(Flag.SHADOWS_DIFFER.value)
    least, most = (f"{100 * sampled['shares'][at]:g} %" for at in (0, -1))
    others = {name: found for name in model.baselines if (found := results.evidence(Ran(name))) is not None}
    skipped = [MeasuredPart(name, None, skipped=reason) for name, reason in evidence.skipped.items()]
    return [
        Measurement(
            TOLD,
            f"whether {sampled['words']} are {least} or {most}, by {NAMES[headline]}",
            Rate(_right(evidence, headline)),
            ThreatModel(
                Access.WHITE_BOX if headline == "weights" else Access.SCORES,
                "knows the training and the recipe, and owns records of the same kind",
                f"{len(share)} models of its own at known shares",
            ),
            setting={"low": float(sampled["shares"][0]), "high": float(sampled["shares"][-1])},
            comparisons=tuple(
                Comparison(
                    name,
                    Rate(_right(evidence, headline)),
                    Rate(_right(other, headline)),
                    flags=tuple(sorted(results.flags(name))),
                )
                for name, other in others.items()
                if f"read/{headline}" in other.arrays
            ),
            parts=(
                *(MeasuredPart(name, Rate(_right(evidence, name)), headline=name == headline) for name in parts),
                *skipped,
            ),
            curves={
                "share read": [
                    (one, Mean(evidence.arrays[f"read/{headline}"][share == one])) for one in np.unique(share).tolist()
                ]
            },
            quantities=(
                Quantity("share of this model", "read", own, n),
                Quantity("share of this model", "true", float(sampled["truth"]), int(sampled["of"])),
            ),
            notes=(
                f"Of this model itself {100 * own:.0f} % is read, [{100 * low:.0f}, {100 * high:.0f}] by {n} models "
                f"that were held out; it is {100 * sampled['truth']:.1f} %. They saw "
                f"{sampled['size']} different records each, as often as it saw its {sampled['of']}: what more records "
                "do to a model, the interval does not count.",
                *(scope.shadow_notes if model.parent is not None else ()),
            ),
            flags=tuple(sorted(flags)),
        )
    ]


def _right(evidence: Evidence, part: str) -> Bools:
    """bool [models at the two ends]."""
    share, shares = np.asarray(evidence.arrays["share"]), evidence.summary["sampled"]["shares"]
    return told_right(np.asarray(evidence.arrays[f"read/{part}"]), share, (shares[0] + shares[-1]) / 2)
