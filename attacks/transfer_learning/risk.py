"""What a report says of transfer learning, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

TRANSFER_ACCURACY = Metric(
    name="transfer_accuracy",
    title="Accuracy on the other task",
    subject="accuracy on the other task",
    unit="percent",
    better="higher",
    meaning="Share of the other task's records that a new model made of this one classifies correctly.",
)
TRANSFER_ROBUST = Metric(
    name="transfer_robust_accuracy",
    title="Robust accuracy on the other task",
    subject="robust accuracy on the other task",
    unit="percent",
    better="higher",
    meaning="Share of the other task's records that a new model made of this one classifies correctly whatever small "
    "change was tried.",
)
TRANSFER_MEMBERSHIP = Metric(
    name="transfer_membership_auc",
    title="Membership on the other task (AUC)",
    subject="membership inference against the other task's training records (AUC)",
    unit="score",
    better="lower",
    meaning="Chance that a record on which the new model was trained looks more like one than a record that it never "
    "saw. 0.5 is guessing.",
)

TRANSFER = Risk(
    name="transfer-learning",
    title="Transfer to another task",
    question="If this model is the beginning of one for another task, what does compression do to that one?",
    wants="To fool the new model, or to learn on whose records it was trained, which is easier where its features "
    "became coarser or tell records apart by accident.",
    harm="A compressed model that is as good as the dense one at its own task may be a worse beginning for others, "
    "less robust there, and give away more of whoever trains it on.",
    advice=(
        "Publish, for transfer, the candidate whose three figures stay with the dense model's.",
        "Where only a probe is trained, features decide: keep the last layers at more bits.",
        "Train the new model on adversarial inputs, and with differential privacy where its records are personal.",
    ),
    reading="There is no chart: each model is one point for each way of training on.",
    described="A probe is a dense layer on what enters the model's last layer; a fine-tuned model is trained on as a "
    "whole from there, its weights in floats.",
    chart=Chart(x="way", curve=""),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.022", "NISTAML.033"),
        "MITRE ATLAS": ("AML.T0043", "AML.T0024.000"),
        "OWASP ML": ("ML07",),
        "NIST AI RMF": ("MEASURE 2.7",),
    },
)
