"""What a report says of property inference, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

TOLD = Metric(
    name="property_told",
    title="Shares of a property told apart",
    subject="how often the share of a property is told",
    unit="percent",
    better="lower",
    meaning="Share of models, trained as the audited one and compressed as it was, of which an attacker tells whether "
    "few or many of their training records have a property. Half is guessing; n counts models.",
    of="trials",
)

PROPERTY = Risk(
    name="property-inference",
    title="Property inference",
    question="Does the model say how many of its training records are of a certain kind?",
    wants="What the training records have in common and nobody was to learn: the share of a group, of a diagnosis, of "
    "a customer's best product.",
    harm="A secret of the whole is disclosed, though none of a single person: neither DP nor a passing membership test "
    "keeps it.",
    advice=(
        "Train on a sample in which the share is a public one, not the true one.",
        "Leave the column out, and what stands for it.",
        "Answer with labels; keep the weights to yourself where they tell more than the scores.",
    ),
    reading="What the attacker reads of models at each share. A flat line tells nothing; a steep one much.",
    described="The share that is read of the audited model itself, and the true one among its training records.",
    chart=Chart(x="share of the training records with the property", curve="share read"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.034",),
        "MITRE ATLAS": ("AML.T0024.001",),
        "OWASP ML": ("ML03",),
        "NIST AI RMF": ("MEASURE 2.10",),
    },
)
