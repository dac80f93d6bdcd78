"""Evidence of smoothing -> certified accuracy at the headline's radius, and its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...compression.smoothed import voted_under_noise
from ...targets.form import Array, Arrays, Count, Document, Form, Layout, require
from ...targets.seeds import derive
from ...targets.serving.smoothed import Floats, least_share, radii
from ..access import Access
from ..case import Evidence
from ..measurement import Auc, Bools, Comparison, Measurement, Rate, ThreatModel
from ..preparation import Ran, Results, Scope
from .bounds import carried_share
from .risk import CERTIFIED_ACCURACY, SMOOTHING

NAME = "majority under noise"
SERVED = (
    "Of the majority over all noise, which this candidate's vote estimates by few copies: in L2, against any attacker. "
    "Where that majority is narrow, luck can turn the vote itself, and who asks often finds where; the served model's "
    "`certified`, of many copies, keeps the label or abstains. The bare file has no such bound."
)
NEVER = "Of the model behind a wrapper that adds noise and takes the majority, in L2: never a bound for the bare file."


def measure_smoothing(
    results: Results, curve: Sequence[float], headline: float, alpha: float, settings: Mapping[str, float]
) -> list[Measurement]:
    """One row: how many records are certified at the headline's radius, with the change against its baselines."""
    model, labels = results.model, results.scope.data.non_members.y.numpy()
    n, m = int(settings["samples"]), int(settings["compared"])
    evidence = results.evidence(Ran(model.name))
    sigma = settings["sigma"] if evidence is None else evidence.summary["sigma"]
    setting: dict[str, str | float | int] = {"norm": "l2", "sigma": sigma, "radius": headline}
    if evidence is None:
        why = results.why(Ran(model.name))
        return [Measurement(CERTIFIED_ACCURACY, NAME, None, reason=why, gateable=False, setting=setting)]

    def reach(of: Evidence) -> Floats:
        """The certified radius of each record, -1 where the answer is wrong or there is none."""
        found = radii(least_share(of.arrays["hits"], n, alpha), of.summary["sigma"])
        return np.where(of.arrays["top"] == labels[of.arrays["ids"]], found, -1.0)

    own = reach(evidence)
    sure = radii(least_share(evidence.arrays["hits"], n, alpha), sigma) >= 0
    asked, clean = int(settings["chosen_by"]) + n, evidence.arrays["clean_correct"]
    served = voted_under_noise(model.recipe)
    right_by = "As it is served" if served else "Without noise"
    notes = [
        SERVED if served else NEVER,
        f"Each record's radius holds with confidence {100 * (1 - alpha):g} %, from {n:,} answers under noise after "
        f"{int(settings['chosen_by']):,} that chose the answer. {int((~sure).sum())} of {len(sure)} records were "
        f"abstained on, which counts as a failure. {right_by} {100 * clean.mean():.1f} % of them are right.",
    ]
    furthest = float(radii(least_share(np.array([n]), n, alpha), sigma)[0])
    if headline > furthest:
        notes.append(
            f"{n:,} answers under noise of {sigma:g} certify no radius beyond {furthest:.2g}, whatever the model: the "
            "figure at this one says nothing of it. See the curve, or set the attack's `radius`."
        )
    curves: dict[str, list[tuple[float, Rate]] | Auc] = {"certified": _line(own, curve)}
    parent = None if model.parent is None or model.parent.name == model.name else model.parent.name
    dense = None if parent is None else results.evidence(Ran(parent))
    alike = dense is not None and dense.summary["sigma"] == sigma
    if dense is not None and alike and np.array_equal(dense.arrays["ids"], evidence.arrays["ids"]):
        others = (dense.arrays["first"] != evidence.arrays["first"]).sum(axis=1)
        share = carried_share(dense.arrays["hits"], n, others, m, alpha)
        right = dense.arrays["top"] == labels[dense.arrays["ids"]]
        carried = np.where(right, radii(share, sigma), -1.0)
        curves["carried from dense"] = _line(carried, curve)
        notes.append(
            f"Carried over from {parent}: its certificate less what the two disagree on under the same noise, with the "
            f"same confidence, certifies {100 * (carried >= headline).mean():.1f} % at this radius by {m:,} "
            f"questions a record in place of {asked:,}: {asked - m:,} ({100 * (asked - m) / asked:.0f} %) saved."
        )
    comparisons = []
    for name in model.baselines:
        other = results.evidence(Ran(name))
        if other is not None and np.array_equal(other.arrays["ids"], evidence.arrays["ids"]):
            flags = tuple(sorted(results.flags(name)))
            comparisons.append(Comparison(name, Rate(own >= headline), Rate(reach(other) >= headline), flags=flags))
    return [
        Measurement(
            CERTIFIED_ACCURACY,
            NAME,
            Rate(own >= headline),
            ThreatModel(
                Access.LABELS,
                "any attacker, whatever it knows; the certificate itself asks for labels only",
                f"L2 radius {headline:g} around a record, noise of {sigma:g}, confidence {100 * (1 - alpha):g} %",
            ),
            gateable=False,
            setting=setting,
            available=len(results.scope.data.evaluation_ids),
            comparisons=tuple(comparisons),
            curves=curves,
            notes=tuple(notes),
            flags=tuple(sorted(results.flags(model.name))),
        )
    ]


def _line(reach: Floats, curve: Sequence[float]) -> list[tuple[float, Rate]]:
    return [(radius, Rate(_at(reach, radius))) for radius in curve]


def _at(reach: Floats, radius: float) -> Bools:
    certified: Bools = reach >= radius
    return certified


# -- what stored evidence looks like -----------------------------------------------------------------------------------


class Summary(Document):
    """`Evidence.summary` of smoothing."""

    sigma: float
    chosen_by: Count
    samples: Count
    compared: Count
    seed: int


def evidence_form(settings: Mapping[str, float], count: int, scope: Scope) -> Form:
    """Of a run with these settings on so many records."""
    return Form(Summary, partial(_layout, settings, count), holds=partial(_holds, settings, scope))


def _layout(settings: Mapping[str, float], count: int, summary: Summary) -> Layout:
    return {
        "ids": Array("int64", (count,)),
        "clean_correct": Array("bool", (count,)),
        "top": Array("int64", (count,), low=0),
        "hits": Array("int64", (count,), low=0, high=settings["samples"]),
        "first": Array("int32", (count, int(settings["compared"])), low=0),
    }


def _holds(
    settings: Mapping[str, float], scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]
) -> None:
    seed = derive(scope.seed, SMOOTHING.name)
    require(found.model_dump() == {**settings, "seed": seed}, "the settings are not those of the attack")
    count = len(arrays["ids"])
    known = scope.data.evaluation_ids.numpy()[:count]
    require(np.array_equal(arrays["ids"], known), "ids are not those of the records")
    seen = (arrays["first"] == arrays["top"][:, None]).sum(axis=1)
    rest = found.samples - found.compared
    require(bool(((arrays["hits"] >= seen) & (arrays["hits"] <= seen + rest)).all()), "hits are not those of the draws")
