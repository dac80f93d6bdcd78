"""What a report says of a promised epsilon that is put to the test."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

EPSILON_SHOWN = Metric(
    name="epsilon_shown",
    title="Claimed epsilon shown to be spent",
    subject="the part of the claimed epsilon that is shown to be spent",
    unit="number",
    better="lower",
    meaning="A lower bound of the training's true epsilon over the claimed one; nothing bounds it from above here. "
    "Above 1 the claim is false, and that fails under every policy. Below, the claim is not refuted, which is not to "
    "say that it is true.",
    of="trials",
    fails_beyond=1.0,
)

PRIVACY_CLAIM = Risk(
    name="privacy-claim",
    title="Claimed differential privacy",
    question="Does the training leak more than its promised epsilon allows?",
    wants="To learn from the trained model whether one record took part in the training.",
    harm="Noise that was forgotten, clipping per batch or sampling that was not accounted for leave a model that leaks "
    "as any other, under a promise that says it does not.",
    advice=(
        "Clip each record's gradient, add noise to the sum, and let one accountant count every step.",
        "Compress without training records, or account for each step that looks at them: else epsilon is void.",
        "Keep the seed of the noise secret.",
    ),
    reading="",
    chart=Chart(x="", curve="shown"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.033",),
        "MITRE ATLAS": ("AML.T0024.000",),
        "OWASP ML": ("ML04",),
        "NIST AI RMF": ("MEASURE 2.10",),
    },
)
