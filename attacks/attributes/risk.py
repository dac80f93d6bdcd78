"""What a report says of attributes that a model betrays, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

GAIN = Metric(
    name="attribute_gain",
    title="Attribute inference beyond imputation",
    subject="the gain of attribute inference over imputation",
    unit="number",
    better="lower",
    meaning="Share of the secret columns of training records that are guessed right with the model, less the share "
    "that is guessed right without it, from public records of the same kind: 0.01 is one column in a hundred.",
)
MEMBERS_MORE = Metric(
    name="attribute_gain_of_members",
    title="Attribute inference, members beyond others",
    subject="the gain of attribute inference on training records beyond that on others",
    unit="number",
    better="lower",
    meaning="The same gain on training records less that on records the model was not trained on: what it remembers of "
    "persons, and not what it knows of the world.",
)

ATTRIBUTES = Risk(
    name="attributes",
    title="Attribute inference",
    question="Does the model tell a secret column of a person whose other columns are known?",
    wants="A hidden category (sex, occupation) of a training record of which all else is known, the label included.",
    harm="A sensitive attribute of a person in the training data is disclosed.",
    advice=(
        "Leave out columns that the task does not need.",
        "Train for fewer epochs, with weight decay or with DP-SGD: what tells members from others is overfitting.",
        "Answer with labels, or with rounded scores.",
    ),
    reading="Each point is the gain on one column; lower is better.",
    chart=Chart(x="column", curve="gain", from_zero=False),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.032",),
        "MITRE ATLAS": ("AML.T0024.001",),
        "OWASP ML": ("ML03",),
        "NIST AI RMF": ("MEASURE 2.10",),
    },
)
