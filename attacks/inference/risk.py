"""The figures of membership inference by other attackers; its words are those of the risk itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..membership.risk import MEMBERSHIP
from ..risk import Chart, Metric, Risk


@dataclass(frozen=True)
class Figures:
    """The two figures of one attacker: the true positive rate at 1 % false positives, the headline, and the AUC."""

    tpr: Metric
    auc: Metric

    @property
    def both(self) -> tuple[Metric, Metric]:
        return self.tpr, self.auc


def figures_of(name: str, title: str, attacker: str, what: str = "records") -> Figures:
    return Figures(
        Metric(
            name=f"{name}_tpr_at_1_percent_fpr",
            title=f"{title} (TPR at 1 % FPR)",
            subject=f"the share of {what} exposed at 1 % false accusations {attacker}",
            unit="percent",
            better="lower",
            meaning=f"Share of the {what} used for training that the attacker names correctly {attacker}, while "
            "wrongly accusing at most 1 % of the others. 1 % is no better than guessing.",
        ),
        Metric(
            name=f"{name}_auc",
            title=f"{title} (AUC)",
            subject=f"the membership attack's AUC {attacker}",
            unit="score",
            better="lower",
            meaning=f"Chance that one of the {what} used for training looks more like one than one of the others does, "
            f"{attacker}. 0.5 is guessing.",
        ),
    )


LABELS = figures_of("label_only", "Members exposed by labels alone", "by the answered labels alone")
RELEASE = figures_of("release_set", "Members exposed by all versions", "by all released versions together")
PERSONS = figures_of("user_level", "Persons exposed", "from all records of a person together", "persons")

EXPOSED = Metric(
    name="exposed_members",
    title="Members named surely",
    subject="the share of members whose odds are 10 to 1 or more",
    unit="percent",
    better="lower",
    meaning="Share of training records for which the model's answer is at least 10 times likelier from models that "
    "were trained on the record than from models that were not, and more so than for all but 1 % of the others.",
)
EXPOSURE = Risk(
    name="exposure",
    title="Exposure of single records",
    question="Whose records does the model give away, and how surely?",
    wants="To be sure of one person, not right on average: a few records that are named beyond doubt are enough.",
    harm="An average hides who is hit: odd, rare and wrongly labelled records are remembered best, and they are often "
    "those of a minority.",
    advice=(
        "Look at the most exposed records first (crushproof exposure lists them by id): wrong labels and duplicates "
        "can be mended before the next training.",
        "Tell the data officer where records of one class are exposed far more than others.",
        "Leaving the exposed records out exposes others; DP-SGD bounds what any record can give away.",
    ),
    reading="Lower is better. The odds say how much an answer speaks for training on the record.",
    described="How often the model is right on members and on others (the gap that membership attacks live on), and "
    "how many of the others have such odds although they were not in training.",
    chart=Chart(x="odds", curve="exposed"),
    taxonomy=dict(MEMBERSHIP.taxonomy),
)
