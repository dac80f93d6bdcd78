"""What a report says of model inversion, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

# As for what was to be forgotten: a net that memorised 100 digits has about .65 and one that memorised 10 has .98
GIVEN_AWAY = 0.6

NEAR = Metric(
    name="inversion_auc",
    title="Members near what is rebuilt (AUC)",
    subject="how much nearer members are to what is rebuilt (AUC)",
    unit="score",
    better="lower",
    meaning="Chance that a training record lies nearer to the input rebuilt from the model for its class than a record "
    "of the class that the model never saw. 0.5: what is rebuilt is a likeness of the class, of nobody in particular. "
    "Surely above 0.6 fails under every policy that does not limit it.",
    fails_beyond=GIVEN_AWAY,
)
SINGLED_OUT = Metric(
    name="inversion_member_nearest",
    title="Classes whose rebuilt input is nearest to a member",
    subject="the share of classes whose rebuilt input is nearest to a member",
    unit="percent",
    better="lower",
    meaning="Share of classes in which, among as many members as other records, the one nearest to the rebuilt input "
    "is a member. Half is chance; more says that single members are singled out.",
    of="trials",
)
RECOGNISED = Metric(
    name="inversion_recognised",
    title="Rebuilt inputs recognised",
    subject="the share of rebuilt inputs that are recognised",
    unit="percent",
    better="lower",
    meaning="Share of classes whose rebuilt input another network, trained on the attacker's own records, takes for "
    "the class: what the model says of its classes to who knows nothing of them. It is no leak of a record.",
    of="trials",
)

INVERSION = Risk(
    name="inversion",
    title="Model inversion",
    question="Can inputs be rebuilt from the model that resemble the persons it was trained on?",
    wants="To see what a class looks like (a face, a patient's values) without having any record of it.",
    harm="Where a class is a person, or holds few records, what is rebuilt shows them. Of a class of many it shows "
    "their likeness, which is what the model is for.",
    advice=(
        "Train no class on a handful of records; merge rare ones.",
        "Stop earlier, use weight decay or DP-SGD: inputs near to single members come from memorising.",
        "Answer with labels or rounded scores, and limit queries: gradient-free rebuilding needs tens of thousands.",
    ),
    reading="Both axes are logarithmic. The further a line lies above the dotted diagonal (guessing), the more members "
    "are told from others by how near they are to what was rebuilt.",
    described="How sure the model itself is of what was rebuilt for its classes, asked as it ships.",
    chart=Chart(x="false positive rate", curve="roc", rates=True),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.032",),
        "MITRE ATLAS": ("AML.T0024.001",),
        "OWASP ML": ("ML03",),
        "NIST AI RMF": ("MEASURE 2.10",),
    },
)
