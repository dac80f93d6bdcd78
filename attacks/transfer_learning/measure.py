"""Evidence of transfer learning -> three figures of each way, beside those of the dense model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..access import Access
from ..case import Evidence
from ..measurement import Auc, Comparison, Measurement, Outcome, Rate, ThreatModel
from ..preparation import Ran, Results
from ..risk import Metric
from .risk import TRANSFER_ACCURACY, TRANSFER_MEMBERSHIP, TRANSFER_ROBUST
from .transfer import Way

ROBUST, MEMBERSHIP = "robust", "membership"  # of a finding's detail, behind its way; "" is accuracy
METRICS: dict[str, Metric] = {"": TRANSFER_ACCURACY, ROBUST: TRANSFER_ROBUST, MEMBERSHIP: TRANSFER_MEMBERSHIP}


def detail_of(way: Way, risk: str) -> str:
    """Of a finding: `""`, `robust`, `membership`, `fine-tuned`, `fine-tuned-robust`, `fine-tuned-membership`."""
    return "-".join(one for one in ("" if way == "probe" else way, risk) if one)


def measure_transfer(results: Results, ways: Sequence[Way], nothing: str) -> list[Measurement]:
    """All that was measured of one model.

    Args:
        nothing: why there is nothing, where the data has no other task.
    """
    task, model = results.scope.data.transfer, results.model
    evidence = results.evidence(Ran(model.name))
    found = []
    for way in ways:
        for risk, metric in METRICS.items():
            words, detail = _words(way, risk), detail_of(way, risk)
            if task is None or evidence is None:
                why = (
                    f"{nothing}: name its records under data.transfer" if task is None else results.why(Ran(model.name))
                )
                found.append(Measurement(metric, words, None, reason=why, detail=detail))
                continue
            own = _outcome(evidence, way, risk)
            if own is None:
                why = evidence.skipped.get(way) or evidence.skipped.get(risk) or results.why(Ran(model.name))
                found.append(Measurement(metric, words, None, reason=why, detail=detail))
                continue
            others = {one: there for one in model.baselines if (there := results.evidence(Ran(one))) is not None}
            comparisons = tuple(
                Comparison(name, own, theirs, flags=_flags(results, there, name, way, risk))
                for name, there in others.items()
                if (theirs := _outcome(there, way, risk)) is not None
            )
            found.append(
                Measurement(
                    metric,
                    words,
                    own,
                    _threat(way, risk, evidence, task.name),
                    detail=detail,
                    setting={"task": task.name[:80], "way": way},
                    comparisons=comparisons,
                    notes=_notes(way, len(task.members)),
                    flags=_flags(results, evidence, model.name, way, risk),
                )
            )
    return found


def _outcome(evidence: Evidence, way: Way, risk: str) -> Outcome | None:
    arrays = evidence.arrays
    if f"{way}/correct" not in arrays:
        return None
    if risk == MEMBERSHIP:
        scores = arrays[f"{way}/scores"]
        return Auc(scores, np.arange(len(scores)) < len(scores) // 2)
    array = arrays.get(f"{way}/{risk or 'correct'}")
    return None if array is None else Rate(array)


def _words(way: Way, risk: str) -> str:
    model = "a linear probe on its features" if way == "probe" else "the model fine-tuned as a whole"
    what = {"": "records right", ROBUST: "records right under attack", MEMBERSHIP: "training records recognised"}
    return f"{what[risk]}, {model}"


def _threat(way: Way, risk: str, evidence: Evidence, task: str) -> ThreatModel:
    if risk == ROBUST:
        return ThreatModel(
            Access.WHITE_BOX, "has the new model's file and follows its twin", "the quick set of attacks"
        )
    if risk == MEMBERSHIP:
        count = len(evidence.arrays["inside"])
        knowledge = "has the model's file, knows how the new one is trained, and owns records of the same kind"
        return ThreatModel(Access.SCORES, knowledge, f"{count} probes on random halves of the records asked about")
    return ThreatModel(None, f"nobody attacks; {task} is what the new model is for", f"one {way} training")


def _notes(way: Way, records: int) -> tuple[str, ...]:
    trained = "A dense layer was trained" if way == "probe" else "The whole, its weights in floats, was trained on"
    return (f"{trained} on {records} records; the new model is a file and was asked as one.",)


def _flags(results: Results, evidence: Evidence, model: str, way: Way, risk: str) -> tuple[str, ...]:
    found = set(results.flags(model)) if risk != "" else set()
    found |= set(evidence.flags.get(f"{way}/{risk}", ())) | set(evidence.flags.get(risk, ()))
    return tuple(sorted(found))
