"""The policy in audit.json: the limits there were, those that were left out and why, and what each one decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ...attacks.risk import Metric
from ...targets.serving.statement import RowVerdict
from .row import Count, Figure, Row, Share

Compares = Literal["change", "absolute"]  # against the candidate's own parent, or by itself


class Limit(Row):
    """One limit of the policy."""

    metric: str
    compares: Compares
    limit: Figure
    left_out: str | None = Field(
        None, description="why these inputs cannot decide it, so that it was not applied; None: it was"
    )
    attacks: list[str] = Field([], description="of one left out: those of the plan that would have measured it")


class Gate(Row):
    """One rule of the policy applied to one candidate."""

    candidate: str
    rule: str = Field(description="accuracy, robust_accuracy, tpr_at_1_percent_fpr, auc, ...")
    finding: str | None = Field(description="id of the finding judged; None for accuracy")
    value: Figure | None
    low: Figure | None
    high: Figure | None
    limit: Figure | None
    compares: Compares
    verdict: RowVerdict
    p_value: Share | None = Field(None, description="of a fail; Holm-corrected over the report")
    needs_records: Count | None = Field(None, description="about how many would decide it; None: no number would")
    sentence: str


def margin(gate: Gate, metrics: Mapping[str, Metric]) -> float:
    """How far the unfavourable end of the interval keeps within the limit; negative beyond it."""
    if gate.low is None or gate.high is None or gate.limit is None:
        return 0.0
    return gate.low - gate.limit if metrics[gate.rule].better == "higher" else gate.limit - gate.high
