"""What a report says of model extraction, and its figure."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

FIDELITY = Metric(
    name="fidelity",
    title="Copy fidelity",
    subject="the stolen copy's fidelity",
    unit="percent",
    better="lower",
    meaning="Share of inputs on which the stolen copy answers as the deployed model does.",
)

TRANSFER = Metric(
    name="copy_transfer",
    title="Fooled through the copy",
    subject="the share fooled through the stolen copy",
    unit="percent",
    better="lower",
    meaning="Share of inputs that the deployed model gets wrong once they are changed so that the stolen copy does; "
    "what it gets wrong unchanged counts.",
)

EXTRACTION = Risk(
    name="extraction",
    title="Model extraction",
    question="Can somebody copy the model by asking it questions?",
    wants="To own a copy: to save the cost, to study it at leisure, or to prepare other attacks on it.",
    harm="Loss of the investment, and a stepping stone: attacks made on the copy often work on the original.",
    advice=(
        "Limit and watch the number of queries per client.",
        "Return labels or coarse scores: compare the two attackers to see what that buys.",
        "Do not rely on compression to protect the model: check the change against its parent.",
    ),
    reading="Each line shows how closely a stolen copy follows the model as the attacker asks more. Lower is safer; "
    "solid lines: the attacker sees scores, dashed lines: labels only.",
    chart=Chart(x="queries", curve="scores", dashed="labels", dashed_title="labels only", log_x=True, from_zero=False),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.031",),
        "MITRE ATLAS": ("AML.T0024.002", "AML.T0005.001"),
        "OWASP ML": ("ML05",),
        "NIST AI RMF": ("MEASURE 2.7",),
    },
)
