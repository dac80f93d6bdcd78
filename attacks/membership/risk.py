"""What a report says of membership inference, and its two figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

TPR = Metric(
    name="tpr_at_1_percent_fpr",
    title="Members exposed (TPR at 1 % FPR)",
    subject="the share of members exposed at 1 % false accusations",
    unit="percent",
    better="lower",
    meaning="Share of training records the attacker names correctly while wrongly accusing at most 1 % of the others. "
    "1 % is no better than guessing.",
)
AUC = Metric(
    name="auc",
    title="Membership AUC",
    subject="the membership attack's AUC",
    unit="score",
    better="lower",
    meaning="Chance that a training record looks more like a member than another record does. 0.5 is guessing.",
)

MEMBERSHIP = Risk(
    name="membership",
    title="Membership inference",
    question="Can somebody tell whether a person's record was used for training?",
    wants="To learn that a given record was among the training data.",
    harm="A privacy breach in itself where being in the data is sensitive (a clinic, a debt register), and a sign that "
    "the model remembers more than it should.",
    advice=(
        "Prefer a candidate that passes; otherwise train with DP-SGD and compress without touching members.",
        "Do not fine-tune or calibrate on members after compression: it brings leakage back.",
        "Train less long or regularise more: leakage follows the gap between training and test accuracy.",
    ),
    reading="Both axes are logarithmic. The further a line lies above the dotted diagonal (guessing), the more members "
    "are exposed; the left edge, few false accusations, matters most.",
    chart=Chart(x="false positive rate", curve="roc", rates=True),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.033",),
        "MITRE ATLAS": ("AML.T0024.000",),
        "OWASP ML": ("ML04",),
        "NIST AI RMF": ("MEASURE 2.10",),
    },
)
