"""The gate on where a finished file comes from: what its declared recipe promises of the dense model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from .findings import Candidate, Gate, RowVerdict


def lineage_gate(candidate: Candidate) -> Gate | None:
    """Under any policy: a file that is declared to be quantised must be a rounding of the dense model.

    One that is not fails where its recipe only rounds, and leaves the verdict open where it may have been trained. One
    that cannot be compared leaves it open too where its recipe keeps every weight's shape: else a tampered file would
    only have to be made unreadable. Where nothing is declared, or a recipe that changes shapes, nothing is promised
    that could be held against it.
    """
    found, recipe = candidate.lineage, candidate.recipe or {}
    if found is None and (candidate.file is None or candidate.parent is None):
        return None  # made here, or nothing to compare it with
    promised = _promise(recipe)
    if found is None or found.verdict == "not comparable":
        if promised is None:
            return None
        reason = "The check did not run." if found is None else found.reason or " ".join(found.sentences)
        told = (
            f"it is declared as {_declared(candidate)} and cannot be compared with the dense model. {reason} Declare "
            "how it was really made, or ask its maker for the dense model that it came from."
        )
        return _gate(candidate, "inconclusive", told)
    verdict: RowVerdict = "pass"
    if found.verdict == "not nearest":
        rounding = _quantize(recipe).get("rounding")
        verdict = "pass" if rounding in ("adaptive", "stochastic") else "inconclusive"
    elif found.verdict != "confirmed":
        verdict = "fail" if promised == "rounding" else "inconclusive"
    return _gate(candidate, verdict, " ".join(found.sentences))


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
        sentence=f"{candidate.name}: {told[:900]}",
    )


def _quantize(recipe: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """The fields of its quantisation: of mixed precision they stand one level deeper."""
    inner = recipe.get("quantize", recipe)
    return inner if isinstance(inner, Mapping) else {}


def _promise(recipe: JsonValue) -> Literal["rounding", "shapes"] | None:
    """What a declared recipe says of the weights: only rounded, of the dense model's shapes at least, or nothing."""
    if not isinstance(recipe, dict):
        return None
    kind = recipe.get("kind")
    if kind in ("quantize", "mixed-precision"):
        return "rounding" if _quantize(recipe).get("fine_tune") is None else "shapes"
    if kind == "chain":
        steps = recipe.get("steps")
        return "shapes" if isinstance(steps, list) and all(_promise(step) for step in steps) else None
    keeps = kind in ("share", "dynamic-sparsity")
    keeps |= kind == "prune" and recipe.get("structure", "weights") in ("weights", "n:m")
    return "shapes" if keeps else None


def _declared(candidate: Candidate) -> str:
    return f'"{candidate.recipe_words.partition("declared as ")[2] or (candidate.recipe or {}).get("kind")}"'
