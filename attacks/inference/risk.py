"""The figures of membership inference by other attackers; its words are those of the risk itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..risk import Metric


@dataclass(frozen=True)
class Figures:
    """The two figures of one attacker: the true positive rate at 1 % false positives, the headline, and the AUC."""

    tpr: Metric
    auc: Metric

    @property
    def both(self) -> tuple[Metric, Metric]:
        return self.tpr, self.auc


def _figures(name: str, title: str, attacker: str, what: str = "records") -> Figures:
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


LABELS = _figures("label_only", "Members exposed by labels alone", "by the answered labels alone")
RELEASE = _figures("release_set", "Members exposed by all versions", "by all released versions together")
