"""What findings are made from: the finished results of a suite, and the pieces every finding shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..attacks.attack import Flag
from ..attacks.evasion.trust import at_chance as no_better_than_guessing
from .cells import Result
from .findings import Estimate, Finding, Part, ThreatModel
from .lineup import Contender
from .suite import Suite
from .taxonomy import taxonomy

NOTHING_RAN = ThreatModel(access="none", knowledge="nothing ran", budget="none")


@dataclass(frozen=True)
class Reader:
    """The finished results of a suite; None where a cell did not finish or did not apply."""

    suite: Suite
    get: Callable[[str], Result | None]
    why: Callable[[str], str]  # the reason why `get` gave None
    evidence: Callable[[str], tuple[str, str]]  # path and digest of a cell's evidence
    command: str  # how this audit was started, up to --only


def candidate_flags(reader: Reader, contender: Contender) -> set[str]:
    """What is wrong with a candidate whatever is measured on it.

    A model no better than guessing is neither robust nor private (rule 8); compression that looked at members after
    DP-SGD voids the epsilon its parent was promised; a finished file that is asked in other units than it was trained
    on answers at random, which looks like strength; bounds that were guessed make every epsilon a guess; of a model
    that answers otherwise each time nothing is known.
    """
    candidate = reader.get(reader.suite.candidate_cell(contender))
    labels = reader.suite.subject.data.evaluation.y.numpy()
    correct = None if candidate is None else candidate.arrays.get("evidence/correct")
    guessing = correct is not None and no_better_than_guessing(correct, labels)
    found = {Flag.AT_CHANCE.value} if guessing else set()
    if contender.touches_members_after_dp:
        found.add(Flag.EPSILON_VOID.value)
    if reader.suite.subject.data.bounds_doubt:
        found.add(Flag.BOUNDS_DOUBTFUL.value)
    if contender.file is not None and contender.file.doubtful:
        found.add(Flag.INTERFACE_DOUBTFUL.value)
    if candidate is not None and candidate.document.get("varies"):
        found.add(Flag.ANSWERS_VARY.value)
    return found


def shell_of(
    reader: Reader,
    contender: Contender,
    label: str,
    risk: str,
    metric: str,
    better: str,
    threat: ThreatModel,
    setting: dict[str, str | float | int],
) -> Callable[..., Finding]:
    """A finding with everything filled in that does not depend on whether it was measured."""

    def build(detail: str = "", **fields: Any) -> Finding:
        identifier = f"{contender.name}/{label}" + (f"/{detail}" if detail else "")
        judged = not contender.is_dense and detail != "without-draw"
        if fields.get("estimate") is None:
            fields = {**fields, "verdict": "not-measured"}
        return Finding.model_validate(
            {
                "id": identifier,
                "candidate": contender.name,
                "risk": risk,
                "metric": metric,
                "better": better,
                "setting": setting,
                "threat_model": threat,
                "taxonomy": taxonomy(risk),
                "reproduce": reproduce(reader.command, identifier),
                "estimate": None,
                "gated": judged and risk != "extraction",
                "gateable": judged,
                **fields,
            }
        )

    return build


def reproduce(command: str, identifier: str) -> str:
    """How to get a finding again; an audit from Python has no command."""
    if command:
        return f"{command} --only {identifier}"
    return "call crushproof.audit_model again with the same arguments and out=..., which keeps what is computed"


def with_evidence(reader: Reader, finding: Finding, cell: str, result: Result) -> Finding:
    path, digest = reader.evidence(cell)
    ledger = result.document["ledger"]
    return finding.model_copy(
        update={
            "evidence": path,
            "evidence_digest": digest,
            "queries": ledger["queries"],
            "forwards": ledger["forwards"],
            "backwards": ledger["backwards"],
        }
    )


def part_of(name: str, own: Estimate | None, result: Result, key: str, headline: bool = False) -> Part:
    return Part(
        name=name,
        estimate=None if own is None else own.estimate,
        low=None if own is None else own.low,
        high=None if own is None else own.high,
        flags=result.document["flags"].get(key, []),
        skipped=result.document["skipped"].get(key),
        headline=headline,
    )
