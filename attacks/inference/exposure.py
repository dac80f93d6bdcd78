"""Exposure: how surely an attacker names each training record, who is exposed most, and in which classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ..access import Access, Flag, Ledger
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Comparison, Measurement, PerRecord, Quantity, Rate, ThreatModel
from ..membership.case import ShadowSignals
from ..membership.preparations import enough_for_all, population_of
from ..membership.scoring import scores
from ..membership.signals import SAME, margin, margins_again
from ..preparation import Audited, Basis, Ran, Results, Scope
from ..risk import Metric, Risk
from ..statistics.roc import threshold_at_fpr
from .attacked import Attacked, needs_of, preparing
from .calibration import ENOUGH_FOR_LIRA
from .risk import EXPOSED, EXPOSURE
from .rows import FPR, OnMembers, doubts, why_not

SURELY = 10.0  # times likelier from a model trained on the record than from one that was not
NAMED = 10  # of the most exposed records, by id
EVERY_RECORD = 2**62
LEAST = 4  # shadow models: two with a record and two without it, for variances
FEW = f"odds need {LEAST} shadow models or more, and there are fewer, or nobody knows how this model was trained"

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int64]]


def log_odds(phi: np.ndarray[Any, Any], shadows: ShadowSignals) -> Floats:
    """Of each record, float64 [n]: log p(this answer | trained on the record) - log p(... | not), by LiRA.

    Args:
        phi: [n], the model's logit margins.
    """
    result: Floats = scores.lira(np.asarray(phi, dtype=np.float64)[None], shadows)[0]
    return result


def most_exposed(odds: Floats, count: int) -> Ids:
    """The places of the `count` records with the largest odds (or their logarithm), largest first; int64."""
    return np.argsort(-odds, kind="stable")[:count]


class Summary(Document):
    """`Evidence.summary`."""

    shadows: int = Field(ge=LEAST)


@ATTACKS.register
class Exposure(OnMembers):
    """Who is exposed: the odds of each training record, the share that is named surely, and the classes it is in.

    The odds are how many times likelier a model's answer is from models that were trained on the record than from
    models that were not (LiRA, with shadow models as the candidate was made). Where nothing else is known they are the
    odds that the record was in training. `crushproof exposure` writes them for the data officer, by id.

    Evidence on the n records of the membership audit, members first: `ids` int64 [n]; `is_member` and `right` bool [n];
    `phi` float32 [n]; `log_odds` float64 [n].
    """

    kind: Literal["exposure"] = "exposure"
    risk: ClassVar[Risk] = EXPOSURE
    metrics: ClassVar[tuple[Metric, ...]] = (EXPOSED,)

    def run_on(self, model: Audited, scope: Scope) -> Run:
        return Run(
            needs=needs_of(model, scope),
            prepare=preparing(model, EVERY_RECORD),
            identity=enough_for_all(scope),
            uses_parent=False,
            effort=Effort(answers=population_of(scope).attacked),
        )

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("",)

    def form(self, model: Audited, scope: Scope) -> Form:
        population = population_of(scope)
        count = (population.attacked,)
        layout: Layout = {
            "ids": Array("int64", count),
            "is_member": Array("bool", count),
            "right": Array("bool", count),
            "phi": Array("float32", count),
            "log_odds": Array("float64", count),
        }
        return Form(Summary, layout, holds=partial(_holds, scope))

    def run(self, case: Case, *, seed: int) -> Evidence:
        given = case.prepared
        if not isinstance(given, Attacked):
            raise NotApplicable("no training records: membership can only be audited against the training's records")
        if given.shadows is None or len(given.shadows.phi) < LEAST:
            raise NotApplicable(FEW)
        logits = case.deployed.logits(given.records.x)
        phi, right = margin(logits, given.records.y), (logits.argmax(1).cpu() == given.records.y.cpu()).numpy()
        if not np.isfinite(phi).all():
            raise NotApplicable("the model answers with numbers that are not finite")
        arrays = {
            "ids": given.ids,
            "is_member": given.is_member,
            "right": right,
            "phi": phi,
            "log_odds": log_odds(phi, given.shadows),
        }
        return Evidence(arrays, {"shadows": len(given.shadows.phi)}, ledger=Ledger(queries=len(phi)))

    def measure(self, results: Results) -> list[Measurement]:
        model, data = results.model, results.scope.data
        words = f"odds of having been trained on of at least {SURELY:g} to 1, which 1 % of the others have at most"
        evidence = results.evidence(Ran(model.name))
        if evidence is None or data.members is None:
            return [Measurement(EXPOSED, words, None, reason=why_not(results))]
        arrays, is_member = evidence.arrays, np.asarray(evidence.arrays["is_member"], dtype=bool)
        flags, notes = doubts(results, evidence, is_member)
        few = {Flag.FEW_SHADOWS.value} if evidence.summary["shadows"] < ENOUGH_FOR_LIRA else set()
        own = surely(arrays)
        labels = data.members.y.numpy()[arrays["ids"][is_member]]
        ids = arrays["ids"][is_member][most_exposed(arrays["log_odds"][is_member], NAMED)]
        right = np.asarray(arrays["right"], dtype=bool)
        falsely = float((arrays["log_odds"][~is_member] >= np.log(SURELY)).mean())
        quantities = (
            Quantity("accuracy on members", "mean", float(right[is_member].mean()), int(is_member.sum())),
            Quantity("accuracy on others", "mean", float(right[~is_member].mean()), int((~is_member).sum())),
            Quantity("others with such odds", "mean", falsely, int((~is_member).sum())),
        )
        return [
            Measurement(
                EXPOSED,
                words,
                Rate(own),
                ThreatModel(
                    Access.SCORES,
                    "knows the training, the recipe and the members that are not attacked; trains shadow models",
                    f"one answer a record, {evidence.summary['shadows']} shadow models",
                ),
                setting={"odds": SURELY},
                comparisons=tuple(
                    Comparison(name, Rate(own), Rate(surely(other.arrays)), flags=tuple(sorted(results.flags(name))))
                    for name in model.baselines
                    if (other := results.evidence(Ran(name))) is not None
                ),
                groups={
                    name: Rate(own[labels == label])
                    for label, name in enumerate(data.class_names)
                    if (labels == label).any()
                },
                quantities=quantities,
                flags=tuple(sorted({*flags, *few})),
                notes=(
                    *notes,
                    f"Of records that were not in training {100 * falsely:.1f} % have odds of {SURELY:g} to 1 too. The "
                    f"most exposed members, by id: {', '.join(map(str, ids.tolist()))}. All: crushproof exposure.",
                ),
            )
        ]

    def per_record(self, results: Results) -> PerRecord | None:
        evidence, data = results.evidence(Ran(results.model.name)), results.scope.data
        if evidence is None or data.members is None:
            return None
        arrays, is_member = evidence.arrays, np.asarray(evidence.arrays["is_member"], dtype=bool)
        odds, others = arrays["log_odds"][is_member], np.sort(arrays["log_odds"][~is_member])
        above = len(others) - np.searchsorted(others, odds)
        ids = arrays["ids"][is_member]
        labels = data.members.y.numpy()[ids]
        return PerRecord(
            ids,
            {
                "class": np.array(data.class_names)[labels],
                "odds": np.exp(np.clip(odds, -30, 30)),
                "non_members_with_such_odds": above / len(others),
                "answered_right": np.asarray(arrays["right"], dtype=bool)[is_member],
            },
            order=most_exposed(odds, len(odds)),
        )

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        given = case.prepared
        if not isinstance(given, Attacked):
            return ["records were attacked that are none of the population"]
        return margins_again(case.deployed, given.records, evidence.arrays["phi"])

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        given, stored = basis.prepared(), evidence.arrays
        if not isinstance(given, Attacked) or given.shadows is None:
            return []
        wrong, outside = [], ~stored["is_member"]
        if not np.allclose(stored["log_odds"], log_odds(stored["phi"], given.shadows), rtol=SAME, atol=SAME):
            wrong.append("the odds are not what follows from the margins")
        if len(given.shadows.phi) != evidence.summary["shadows"]:
            wrong.append("another number of shadow models")
        if basis.contradicted(stored["ids"][outside], stored["right"][outside], stored["right"][outside]):
            wrong.append("the records that the model classifies right are others")
        return wrong

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Odds of a record are those of one attack with these shadow models. A record with low odds is not proved "
            "to be safe, and one with high odds not proved to be memorised word for word."
        ]


def surely(arrays: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [members]: whose odds are at least `SURELY`, and larger than those of all but 1 % of the others.

    The second holds the first to its word: with shadow models that are unlike the model, odds are large for everybody.
    """
    odds, others = arrays["log_odds"][arrays["is_member"]], arrays["log_odds"][~arrays["is_member"]]
    enough = FPR * len(others) + 1e-9 >= 1
    least = max(np.log(SURELY), threshold_at_fpr(np.sort(others), FPR) if enough else -np.inf)
    found: np.ndarray[Any, np.dtype[np.bool_]] = odds >= least
    return found


def _holds(scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    population = population_of(scope)
    require(np.array_equal(arrays["ids"], population.ids), "ids are not those of the records")
    require(np.array_equal(arrays["is_member"], population.is_member), "is_member is not the truth")
