"""The gate on where a finished file comes from: what its declared recipe promises of the dense model's weights."""

from __future__ import annotations

from ...targets.serving.statement import RowVerdict
from ..schema import wording
from ..schema.policy_rows import Gate
from ..schema.rows import Candidate


def lineage_gate(candidate: Candidate) -> Gate | None:
    """Under any policy: a file that is declared to be quantised must be the dense model, rounded and nothing else.

    One whose weights are not fails where its recipe only rounds, and leaves the verdict open where it may have been
    trained. One that cannot be compared, or was not, leaves it open too: else a tampered file would only have to be
    made unreadable. Operators that the dense model does not have leave it open whatever is declared, and so do weights
    that are not the dense model's. Of a declared recipe that makes new weights only the operators are held against it,
    where it keeps them. Nor is there anything to say of a .tflite file that is not declared: its weights are not read.
    """
    found, promised = candidate.lineage, candidate.promise
    if found is None and (candidate.file is None or candidate.parent is None):
        return None  # made here, or nothing to compare it with
    remade = candidate.recipe is not None and promised is None
    other = found is not None and found.verdict == "other structure"
    if (
        found is not None
        and found.foreign
        and not other
        and not (found.reason is None and promised in ("nearest", "neighbour"))
    ):
        if remade:
            return None
        told = (
            f"it is no compressed copy of the {candidate.parent} model. {' '.join(found.sentences)} Audit it without "
            "that model, or declare the recipe that made new weights of it."
        )
        return _gate(candidate, "inconclusive", told)
    if found is None or found.verdict == "not comparable":
        unread = candidate.recipe is None and (candidate.file or "").lower().endswith(".tflite")
        if unread or (remade and found is not None):
            return None
        reason = "The check did not run." if found is None else found.reason or " ".join(found.sentences)
        declared = (
            "" if candidate.recipe is None and promised is None else f"is declared as {_declared(candidate)} and "
        )
        told = (
            f"it {declared}cannot be compared with the dense model. {reason} Declare how it was really made, or ask "
            "its maker for the dense model that it came from."
        )
        return _gate(candidate, "inconclusive", told)
    sentences = " ".join(found.sentences)
    if found.foreign and not other:  # said first, of what may be as many sentences as there are layers
        sentences = f"it is no compressed copy of the {candidate.parent} model. {sentences}"
    verdict: RowVerdict = "pass"
    if found.verdict in ("other structure", "not as declared"):
        verdict = "inconclusive"
    elif found.verdict == "not nearest":
        verdict = "pass" if promised == "neighbour" else "inconclusive"
    elif found.verdict != "confirmed":
        verdict = "fail" if promised in ("nearest", "neighbour") else "inconclusive"
    return _gate(candidate, verdict, sentences)


def _gate(candidate: Candidate, verdict: RowVerdict, told: str) -> Gate:
    return Gate(
        candidate=candidate.name,
        rule="lineage",
        finding=None,
        value=None,
        low=None,
        high=None,
        limit=None,
        compares="absolute",
        verdict=verdict,
        p_value=None,
        sentence=f"{candidate.name}: {wording.label(told, 600)}",
    )


def _declared(candidate: Candidate) -> str:
    return f'"{candidate.recipe_words.partition("declared as ")[2] or (candidate.recipe or {}).get("kind")}"'
