"""How far an audit was held against its evidence: what the head of a report says, and what must not be said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from .policy_rows import Gate
from .rows import Audit, Candidate, Finding

NOT_VERIFIED = "NOT VERIFIED"

Shown = TypeVar("Shown", Candidate, Finding, Gate)


@dataclass(frozen=True)
class Standing:
    """Args:
    verified: every figure and verdict was made from the stored evidence.
    words: a clause that says how, or why not.
    """

    verified: bool
    words: str

    @property
    def sentence(self) -> str:
        return f"{self.words[:1].upper()}{self.words[1:]}." if self.verified else f"{NOT_VERIFIED}: {self.words}."


UNSIGNED, UNCHECKED = "evidence unsigned", "signature not checked"
MEASURED = Standing(True, f"figures and verdict were made from the evidence of this run; {UNSIGNED}")
REBUILT = Standing(True, f"figures and verdict were made again from the stored evidence; {UNSIGNED}")
SIGNED = Standing(
    True, f"{REBUILT.words.removesuffix(UNSIGNED)}{UNCHECKED}: `crushproof verify --key` tells whose it is"
)
CAVEATS = {REBUILT: UNSIGNED, SIGNED: UNCHECKED}


def told(audit: Audit, standing: Standing) -> Audit:
    """The audit as it may be shown: one that is not verified passes nothing."""
    if standing.verified:
        return audit
    why = standing.sentence

    def opened(rows: list[Shown], field: str) -> list[Shown]:
        update = {"verdict": "inconclusive", field: why}
        return [row.model_copy(update=update) if row.verdict == "pass" else row for row in rows]

    passes = audit.verdict == "pass"
    return audit.model_copy(
        update={
            "verdict": "inconclusive" if passes else audit.verdict,
            "deciding": [why] if passes else [*audit.deciding, why],
            "beside": [] if passes else audit.beside,
            "candidates": opened(audit.candidates, "deciding"),
            "findings": opened(audit.findings, "reason"),
            "policy": opened(audit.policy, "sentence"),
        }
    )
