"""What a report says of churn, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

CHURN = Metric(
    name="churn",
    title="Decision churn",
    subject="decision churn",
    unit="percent",
    better="lower",
    meaning="Share of records on which the model decides otherwise than the one it came from, rightly or wrongly.",
)
NEGATIVE_FLIPS = Metric(
    name="negative_flips",
    title="Negative flips",
    subject="the share of negative flips",
    unit="percent",
    better="lower",
    meaning="Share of records that the model's parent gets right and the model wrong. Accuracy hides them where as "
    "many others are gained.",
)
LOW_MARGIN_FLIPS = Metric(
    name="low_margin_flips",
    title="Flips near the boundary",
    subject="the share of flips near the boundary",
    unit="percent",
    better="lower",
    meaning="Share of changed decisions among the tenth of the records that the model's parent is least sure of.",
)
WORST_GROUP = Metric(
    name="worst_group_change",
    title="Accuracy of the class or group that lost most",
    subject="accuracy of the class or group that lost most",
    unit="percent",
    better="higher",
    meaning="Share of right answers in that class or group of the records whose share fell most against the model's "
    "parent. A limit on its change holds for each of them: the interval is simultaneous over all (Bonferroni).",
)
IDENTIFIED = Metric(
    name="compression_identified",
    title="Compression-identified records",
    subject="the share of compression-identified records",
    unit="percent",
    better="lower",
    meaning="Share of records that most of the models compressed from this one decide otherwise than it does, whatever "
    "the method: rare and mislabelled ones, as a rule.",
)

CHURN_RISK = Risk(
    name="churn",
    title="Decision churn",
    question="Who gets another answer after compression, although nobody attacks?",
    wants="Nothing: nobody attacks. Whoever relies on a decision finds another one after the model was compressed.",
    harm="Users meet errors they did not meet before, tests that were passed no longer hold, and some groups may pay "
    "for an accuracy that stays the same on the whole.",
    advice=(
        "Look at the classes and groups that got worse before the model ships, however good its accuracy is. A policy "
        "can hold each of them to a limit: changes: {worst_group_change: -0.1}.",
        "Look at the compression-identified records, which are listed by id: a person should check their labels and "
        "what is decided of records like them.",
        "Prefer the candidate with the fewest negative flips among those of equal accuracy.",
        "Distil from, or fine-tune towards, the answers of the dense model where decisions must stay.",
    ),
    reading="Records are ordered by how sure the parent is of them, ten groups of equal size: each point is the share "
    "of decisions that changed in one group. Lower is better; on the right the parent was sure.",
    chart=Chart(x="tenth of the records, the least sure first", curve="changed decisions"),
    taxonomy={"NIST AI RMF": ("MEASURE 2.11",)},
)
