"""What an audit of this size could not have seen, and what its method does not prove: sentences for the report."""

from __future__ import annotations

from ..attacks.evasion.evasion import Evasion
from ..attacks.extraction.extraction import Extraction
from . import statistics
from .measures import FPR
from .suite import Suite


def power_of(suite: Suite) -> list[str]:
    """Which loss or leak would have gone unseen, at 80 % power and 95 % confidence."""
    data = suite.subject.data
    if data.regression:
        return []  # these are figures of shares; an error's interval says what it could have shown
    sentences = []
    n = len(data.evaluation_ids)
    sentences.append(f"Accuracy: {_unseen('a loss', n)} (less churn assumed than there may be).")
    sentences += [
        f"Evasion: {_unseen('a loss of robust accuracy', min(attack.records, n))}."
        for attack in suite.lineup.attacks
        if isinstance(attack, Evasion)
    ]
    if suite.audits_membership:
        half = suite.population.attacked // 2
        auc = statistics.detectable_auc(half, half)
        sentence = f"Membership: with {half} members and {half} non-members an AUC below {auc:.3f}"
        if half >= 1 / FPR:
            tpr = statistics.detectable_tpr(half, half, FPR)
            sentence += f", or a true positive rate at 1 % false positives below {100 * tpr:.1f} %,"
        sentences.append(sentence + " would not be told from no leak.")
        shadows = suite.plan.shadows
        sentences.append(
            f"Shadow models: {shadows.training_free} for the dense model and recipes that do not train, "
            f"{shadows.trained} for hardened models and recipes that do; more shadows find smaller leaks."
        )
    return sentences


def _unseen(loss: str, n: int) -> str:
    try:
        drop = statistics.detectable_drop(n)
    except ValueError:
        return f"{loss} of any size would not be told from chance with {n} paired records"
    return f"{loss} below {100 * drop:.1f} points would not be told from chance with {n} paired records"


def limits_of(suite: Suite) -> list[str]:
    """What a pass does not prove."""
    sentences = [
        "Robust accuracy is an upper bound: a stronger attack than the ones listed may exist. It is no certificate.",
        "A passed membership test is evidence, never proof, of privacy: it speaks for the attacks and shadows listed.",
        "Every figure holds for records like the evaluated ones and for the deployed bytes named by their digest. "
        "Recompressing, retraining or another runtime makes another model.",
    ]
    if suite.audits_membership:
        data = suite.subject.data
        rest = 0 if data.members is None else len(data.members) - suite.population.attacked // 2
        if rest:
            sentences.append(
                f"The membership attacker knows {rest} members that are not attacked: every shadow is trained on them, "
                "so that shadows are as large as the target."
            )
    if any(isinstance(attack, Extraction) for attack in suite.lineup.attacks):
        sentences.append(
            "The extraction attacker knows the architecture family and owns records of the same distribution; one "
            "without either would need more queries."
        )
    sentences.append("Energy is modelled from operation counts and published figures per operation, not measured.")
    return sentences
