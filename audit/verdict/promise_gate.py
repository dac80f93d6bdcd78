"""The gate on a promised epsilon: void, missing or larger fails, for a promise that is not made is not kept."""

from __future__ import annotations

from ...attacks.risk import EPSILON
from ..schema import wording
from ..schema.policy_rows import Gate
from ..schema.rows import Candidate
from .policy import EXACT, Policy


def promise_gate(candidate: Candidate, policy: Policy) -> Gate | None:
    """What a policy with `absolutes: {epsilon: 8}` says of a candidate; None: it limits no epsilon.

    The figure is what is promised (`Candidate.statement`), which nobody measured: it has no interval to be unsure of.
    """
    limit = policy.absolutes.get(EPSILON.name)
    if limit is None:
        return None
    promised, delta = (candidate.statement.get(name) for name in ("epsilon", "delta"))
    value = float(promised) if isinstance(promised, int | float) else None
    asked = f"the policy asks for at most {wording.figure(limit, EPSILON)}."
    if value is not None:
        at = f" at delta {delta:.1g}" if isinstance(delta, int | float) else ""
        told = f"{EPSILON.subject} is {wording.figure(value, EPSILON)}{at} (promised, not measured); {asked}"
    elif promised is not None:
        why = wording.label(str(candidate.statement.get("why", "what was promised no longer holds")), 300)
        told = f"{EPSILON.subject} is void, because {why}; {asked}"
    else:
        told = f"no epsilon is promised of its training; {asked}"
    return Gate(
        candidate=candidate.name,
        rule=EPSILON.name,
        finding=None,
        value=value,
        low=value,
        high=value,
        limit=limit,
        compares="absolute",
        verdict="pass" if value is not None and value <= limit + EXACT else "fail",
        p_value=None,
        sentence=f"{candidate.name}: {told}",
    )
