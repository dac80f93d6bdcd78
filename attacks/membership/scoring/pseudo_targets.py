"""Which score is the headline: the best on shadows that are attacked in the target's place, which has no say in it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ...statistics.roc import area, tpr_at_fpr
from ..case import ShadowSignals, related
from . import scores

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Figures = dict[str, float | int | None]

FPR = 0.01  # false positive rate at which the true positive rate is reported
WITH_FEW = ("bavaria", "rmia")  # what may be the headline below `ENOUGH_SHADOWS`: LiRA's variances rest on too little
ENOUGH_SHADOWS = 16
LEAST = 4  # shadows: one pair is left out where a shadow is the target


def choose(figures: dict[str, Figures], by: Literal["tpr_mean", "auc_mean"], *, shadows: int) -> str:
    """The name with the largest mean over pseudo-targets (AUC breaks ties); with few shadows, among `WITH_FEW`.

    Below `LEAST` none can be attacked, and the headline is named beforehand: BaVarIA with RMIA's ratio in it, or with
    one shadow the ratio alone.
    """
    if shadows < LEAST:
        return "rmia/own" if shadows == 1 else "bavaria/own"

    def merit(name: str) -> tuple[float, float]:
        first, auc = figures[name][by], figures[name]["auc_mean"]
        return (first if first is not None else 0.0, auc if auc is not None else 0.0)

    few = shadows < ENOUGH_SHADOWS
    return max((name for name in figures if not few or name.partition("/")[0] in WITH_FEW), key=merit)


def pseudo_targets(kinds: dict[str, ShadowSignals], is_member: Bools | None = None) -> dict[str, Figures]:
    """Mean and standard deviation of TPR and AUC over own shadows as targets, by name; see `Membership`.

    Args:
        kinds: the shadows by kind, "own" among them.
        is_member: bool [n], the truth of the audited model, for what shadows tell of records that they were not trained
            on; None: without those figures.
    """
    own = kinds["own"]
    if len(own.phi) < LEAST:
        return {}
    kinds = {kind: signals for kind, signals in kinds.items() if len(signals.phi) >= LEAST}
    keep = {kind: ~related(own.inside, signals.inside) for kind, signals in kinds.items()}
    figures: dict[str, Figures] = {}
    for name, score in score_all(own.phi, kinds, keep).items():
        told = _told(list(zip(score, own.inside, strict=True)))
        figures[name] = {"targets": len(score), **told, "tpr_half": None}
        if is_member is not None:
            rest = [(row[~inside], is_member[~inside]) for row, inside in zip(score, own.inside, strict=True)]
            untrained = _told(rest)
            figures[name] |= {
                "untrained_auc": untrained["auc_mean"],
                "untrained_auc_sd": untrained["auc_sd"],
                "untrained_tpr": untrained["tpr_mean"],
                "untrained_tpr_sd": untrained["tpr_sd"],
            }
    return figures


def tpr_by_half(own: ShadowSignals, name: str) -> float | None:
    """Mean TPR of one score over the shadows as targets, each half of them attacked by the other half alone.

    Beside the figure with all but a pair it tells what more shadows would find (`more_shadows`). None where a half is
    less than 4 shadows, or tells no TPR.
    """
    k, kind = len(own.phi), name.partition("/")[0]
    if k % 4 or k < 8 or kind not in scores.WITH_SHADOWS:
        return None
    halves = [ShadowSignals(own.inside[some], own.phi[some]) for some in (slice(0, k // 2), slice(k // 2, k))]
    found = []
    for targets, shadows in (halves, halves[::-1]):
        score = scores.WITH_SHADOWS[kind](targets.phi.astype(np.float64), shadows, None)
        found += list(zip(score, targets.inside, strict=True))
    return _told(found)["tpr_mean"]


def more_shadows(half: float, all_but_a_pair: float, count: int) -> tuple[float, float]:
    """What TPR twice as many shadows, and any number, would find on average: a line over 1 / number through two points.

    Args:
        half: of `tpr_by_half`, count / 2 shadows.
        all_but_a_pair: with count - 2.
    """
    few, many = count / 2, count - 2
    slope = max(all_but_a_pair - half, 0.0) / (1 / few - 1 / many)
    twice, any_number = (min(all_but_a_pair + slope * (1 / many - rest), 1.0) for rest in (0.5 / count, 0.0))
    return twice, any_number


def _told(targets: list[tuple[Floats, Bools]]) -> Figures:
    """Of scores and truths, one pair per target."""
    aucs = np.array([area(score, truth) for score, truth in targets])
    tprs = None
    if tells_tpr(min(int((~truth).sum()) for _, truth in targets)):
        tprs = [tpr_at_fpr(score, truth, FPR) for score, truth in targets]
    return {
        "tpr_mean": None if tprs is None else float(np.mean(tprs)),
        "tpr_sd": None if tprs is None else float(np.std(tprs, ddof=1)),
        "auc_mean": float(aucs.mean()),
        "auc_sd": float(aucs.std(ddof=1)),
    }


def score_all(
    phi: np.ndarray[Any, Any], kinds: dict[str, ShadowSignals], keep: dict[str, Bools] | None = None
) -> dict[str, Floats]:
    """Every score of targets with margins phi [t, n]: float64 [t, n] by name; `keep` as in `scores.lira`, by kind."""
    found = {"loss": scores.loss(phi)}
    for kind, signals in kinds.items():
        chosen = keep[kind] if keep is not None else None
        found |= {
            f"{name}/{kind}": scores.WITH_SHADOWS[name](phi, signals, chosen) for name in score_names(len(signals.phi))
        }
    return found


def score_names(shadows: int) -> tuple[str, ...]:
    """The scores that so many shadows give."""
    return scores.WITH_ONE if shadows == 1 else tuple(scores.WITH_SHADOWS)


def tells_tpr(non_members: int) -> bool:
    """Whether so many tell a true positive rate at `FPR`."""
    return FPR * non_members + 1e-9 >= 1
