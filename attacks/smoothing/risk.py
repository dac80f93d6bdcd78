"""What a report says of randomised smoothing, and its figure."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

CERTIFIED_ACCURACY = Metric(
    name="certified_accuracy",
    title="Certified accuracy under smoothing (L2)",
    subject="certified accuracy of the smoothed model",
    unit="percent",
    better="higher",
    meaning="Share of records that the model, answering by majority under Gaussian noise, is certain to get right "
    "whatever an attacker changes within an L2 radius. It is of that smoothed model: never a bound for the bare file.",
)

SMOOTHING = Risk(
    name="smoothing",
    title="Certified robustness under smoothing",
    question="What could be promised of this model if it were asked many times under noise?",
    wants="To change an input within an L2 radius so that the majority of the model's answers under noise changes.",
    harm="None by itself: this is what a wrapper around the model could guarantee, and what compression leaves of it.",
    advice=(
        "Read it as the guarantee of a wrapper that adds noise and takes the majority; the bare file has none.",
        "Train with the same noise (Gaussian augmentation) before compressing: a model that never saw noise certifies "
        "little.",
        "Compare the candidate's curve with its parent's: a drop here is robustness to noise that compression took.",
    ),
    reading="Each line shows the share of records certainly right as the attacker may change the input more. Higher is "
    "safer; dashed: carried over from the dense model with far fewer questions.",
    chart=Chart(
        x="L2 radius", curve="certified", dashed="carried from dense", dashed_title="carried over from the dense model"
    ),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.022",),
        "MITRE ATLAS": ("AML.T0015",),
        "OWASP ML": ("ML01",),
        "NIST AI RMF": ("MEASURE 2.7",),
    },
)
