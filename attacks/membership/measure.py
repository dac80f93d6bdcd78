"""Evidence of membership inference -> TPR at 1 % FPR and AUC, each of the attack that was best on pseudo-targets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...compression.answers import answers_limited, answers_noisy
from ...compression.smoothed import voted_under_noise
from ..access import Access, Flag
from ..case import Evidence
from ..measurement import (
    Auc,
    Bools,
    Comparison,
    MeasuredPart,
    Measurement,
    Outcome,
    ThreatModel,
    TprAtFpr,
)
from ..preparation import Ran, Results, Scope
from ..statistics import power as statistical_power
from ..statistics import ranking
from .averaging import NEIGHBOURS, VOTES, neighbourhood
from .preparations import shadow_counts
from .risk import AUC, TPR
from .runs import run_detail
from .scoring.pseudo_targets import FPR, more_shadows

SMALL = 0.638  # AUC of two normal distributions half a standard deviation apart: more is no small difference
SEEN = 0.01  # of AUC and of TPR: what an attack may see of a difference between the sets before it counts
REVERSED = 0.02  # of AUC below that of models trained on neither sort of record
EASY = 0.4  # AUC: test records that much easier than training records were chosen
REPEATED_MEMBERS = Flag.REPEATED_MEMBERS.value
UNFOUND = 1.0  # over their number: what of a leak shadows do not find (benchmarks/membership.py, few: .3 to 1.0)
# Of what 64 shadow models find beyond guessing at 1 % false positives, what so few find: on average, from which net to
# which, in percent, and of how many nets of five data sets (benchmarks/membership.py, few, held-out and alone).
FOUND_BY_FEW = {0: (4, 0, 17, 13), 1: (46, 36, 58, 14), 2: (77, 58, 97, 14), 3: (80, 66, 94, 14)}
AUC_DETAIL = "auc"
NO_MEMBERS = "the data has no training records (x_train, y_train) to tell apart from others"


def measure_membership(results: Results) -> list[Measurement]:
    """Both figures, each of the attack chosen beforehand."""
    model = results.model
    ran = Ran(model.name)
    evidence = results.evidence(ran)
    if evidence is None:
        reason = NO_MEMBERS if results.scope.data.members is None and not results.scope.data.regression else None
        reason = reason or results.why(ran)
        return [
            Measurement(TPR, "membership", None, reason=reason, setting={"fpr": FPR}),
            Measurement(AUC, "membership", None, reason=reason, detail=AUC_DETAIL),
        ]
    flags, notes = _caveats(results, evidence)
    by_tpr, by_auc = evidence.summary["headline"], evidence.summary["headline_auc"]
    is_member = np.asarray(evidence.arrays["is_member"], dtype=bool)
    enough = bool((~is_member).sum() >= 1 / FPR)
    few = f"{int((~is_member).sum())} non-members are too few for a false positive rate of 1 %"
    chosen = bool(evidence.summary["pseudo_targets"])
    words = "{}, " + ("chosen on shadows as pseudo-targets" if chosen else "named beforehand")
    threat = _threat(_shadows(evidence))
    return [
        Measurement(
            TPR,
            words.format(by_tpr),
            _outcome(evidence, by_tpr, "tpr"),
            threat,
            reason=None if enough else few,
            setting={"fpr": FPR},
            comparisons=_comparisons(results, evidence, by_tpr, "tpr") if enough else (),
            parts=_parts(evidence, by_tpr, "tpr"),
            curves={
                "roc": Auc(evidence.arrays[f"score/{by_tpr}"], is_member),
                "blind": Auc(evidence.arrays["blind"], is_member),
            },
            notes=(
                *notes,
                *_procedure_note(evidence.summary, by_tpr, "tpr", "TPR at 1 % FPR"),
                *_growth(evidence.summary, by_tpr, is_member),
                *few_found([_shadows(evidence)]),
            ),
            flags=flags,
        ),
        Measurement(
            AUC,
            words.format(by_auc),
            _outcome(evidence, by_auc, "auc"),
            threat,
            detail=AUC_DETAIL,
            comparisons=_comparisons(results, evidence, by_auc, "auc"),
            parts=_parts(evidence, by_auc, "auc"),
            notes=(
                *notes,
                *_procedure_note(evidence.summary, by_auc, "auc", "AUC"),
                *few_found([_shadows(evidence)]),
            ),
            flags=flags,
        ),
    ]


def _outcome(evidence: Evidence, name: str, figure: str) -> Outcome | None:
    """The figure of one score; None where there are too few non-members to tell it."""
    scores, is_member = evidence.arrays[f"score/{name}"], np.asarray(evidence.arrays["is_member"], dtype=bool)
    if figure == "auc":
        return Auc(scores, is_member)
    return TprAtFpr(scores, is_member, FPR) if (~is_member).sum() >= 1 / FPR else None


def _parts(evidence: Evidence, headline: str, figure: str) -> tuple[MeasuredPart, ...]:
    names = sorted(array.removeprefix("score/") for array in evidence.arrays if array.startswith("score/"))
    return tuple(
        MeasuredPart(
            name,
            _outcome(evidence, name, figure),
            tuple(evidence.flags.get(name, ())),
            evidence.skipped.get(name),
            headline=name == headline,
        )
        for name in names
    )


def _comparisons(results: Results, evidence: Evidence, attack: str, figure: str) -> tuple[Comparison, ...]:
    """The same attack on each uncompressed baseline, with as many shadows as it has on the candidate.

    Like for like: another attack, or four times the shadows, would pass for an effect of the compression.
    """
    is_member = np.asarray(evidence.arrays["is_member"], dtype=bool)
    kind, _, sort = attack.partition("/")
    own, uncompressed = shadow_counts(results.model, results.scope)
    found = []
    for name in results.model.baselines:
        detail = run_detail(results.scope.models[name], results.scope, uncompressed if sort == "dense" else own)
        other = results.evidence(Ran(name, detail))
        if other is None:
            continue
        scores, theirs = evidence.arrays[f"score/{attack}"], other.arrays[f"score/{kind}" + ("/own" if sort else "")]
        pair: tuple[Outcome, Outcome] = (
            (Auc(scores, is_member), Auc(theirs, is_member))
            if figure == "auc"
            else (TprAtFpr(scores, is_member, FPR), TprAtFpr(theirs, is_member, FPR))
        )
        found.append(Comparison(name, *pair, flags=_flags_of(results, other, name)))
    return tuple(found)


def _shadows(evidence: Evidence) -> int:
    """How many there were, compressed as the model is."""
    return int(evidence.summary["shadows"].get("own", 0))


def _threat(shadows: int) -> ThreatModel:
    """The attacker who asked this model: with shadows of its training where that is known and the plan trains some."""
    knowledge = "owns records of the same kind that were not trained on"
    if shadows:
        knowledge = "knows the training, the recipe and the members that are not attacked; trains shadow models"
    return ThreatModel(Access.SCORES, knowledge, _counted(shadows))


def _counted(shadows: int) -> str:
    return f"{shadows or 'no'} shadow model{'s' if shadows > 1 else ''}"


def few_found(counts: Iterable[int]) -> list[str]:
    """What is known of attackers with so few shadow models, a sentence each; nothing of those with enough."""
    return [
        f"An attacker with {_counted(count)} found {mean} % on average ({low} to {high} %; {nets} nets of 5 data sets) "
        "of what one with 64 finds beyond guessing at 1 % false positives: a low figure says that much less of privacy."
        for count in sorted(set(counts))
        if count in FOUND_BY_FEW
        for mean, low, high, nets in [FOUND_BY_FEW[count]]
    ]


def _flags_of(results: Results, evidence: Evidence, model: str) -> tuple[str, ...]:
    """The trust flags of the attack on one model, and of the model itself."""
    return tuple(sorted({flag for raised in evidence.flags.values() for flag in raised} | results.flags(model)))


def _procedure_note(summary: dict[str, Any], attack: str, metric: str, words: str) -> list[str]:
    """The leave-pair-out figure: the training procedure's, not this model's, and never gated."""
    own = summary["pseudo_targets"].get(attack)
    if own is None or own[f"{metric}_mean"] is None:
        return []
    mean, spread = own[f"{metric}_mean"], own[f"{metric}_sd"]
    figures = (
        f"{100 * mean:.1f} % on average, sd {100 * spread:.1f}" if metric == "tpr" else f"{mean:.3f}, sd {spread:.3f}"
    )
    return [
        f"The training procedure, not this model (shadows as targets, never gated): {words} {figures}, "
        f"{own['targets']} targets."
    ]


def _growth(summary: dict[str, Any], attack: str, is_member: Bools) -> list[str]:
    """What more shadow models would find, and which leak these show."""
    own = summary["pseudo_targets"].get(attack)
    if own is None or own["tpr_half"] is None or own["tpr_mean"] <= 2 * FPR:  # next to nothing is found, that may grow
        return []
    half, mean, count = own["tpr_half"], own["tpr_mean"], summary["shadows"]["own"]
    twice, any_number = more_shadows(half, mean, count)
    grows = (
        f"More shadow models: of the shadows' members it finds {100 * half:.1f} % with {count // 2} of them and "
        f"{100 * mean:.1f} % with {count - 2}; a line over 1 / number through both makes it about {100 * twice:.1f} % "
        f"with {2 * count} and {100 * any_number:.1f} % with any number."
    )
    try:
        seen = statistical_power.detectable_tpr(int(is_member.sum()), int((~is_member).sum()), FPR) * any_number / mean
    except ValueError:
        seen = 1.0
    if seen >= 1:
        return [f"{grows} With so few records none of them surely shows a leak: what it takes is more records."]
    return [
        f"{grows} So {count} show a leak of {100 * seen:.1f} % or more, as any number would find it, with a "
        "probability of 80 %."
    ]


def _caveats(results: Results, evidence: Evidence) -> tuple[tuple[str, ...], list[str]]:
    """Trust flags and notes of both figures."""
    model, scope = results.model, results.scope
    is_member: Bools = np.asarray(evidence.arrays["is_member"], dtype=bool)
    flags = set(_flags_of(results, evidence, model.name))
    notes: list[str] = []
    shadows = _shadows(evidence)
    if shadows:
        notes += scope.shadow_notes
        if scope.shadows_differ:
            flags.add(Flag.SHADOWS_DIFFER.value)
        if model.undeclared:
            flags.add(Flag.SHADOWS_DIFFER.value)
            notes.append(
                "How this file was compressed is not declared, so its shadow models are uncompressed: membership may "
                "be underestimated. Name its recipe."
            )
    # Shadows are trained on both sorts of records, the audited model on one: a large difference may tell on it alone.
    # A 99 % interval: DeLong's takes the records for independent, and cross-validation ties their scores together
    # (on 100 splits at random a 95 % interval excluded .5 in 15, a 99 % one in about 3).
    blind = ranking.auc(evidence.arrays["blind"], is_member, level=0.99)
    if blind.low > 0.5:
        told = (
            f"a classifier that never saw the model tells the two sets apart (AUC {blind.estimate:.3f}, 99 % interval "
            f"[{blind.low:.3f}, {blind.high:.3f}])."
        )
        by_auc, by_tpr = (
            evidence.summary["pseudo_targets"].get(evidence.summary[name], {}) for name in ("headline_auc", "headline")
        )
        auc, tpr = by_auc.get("untrained_auc"), by_tpr.get("untrained_tpr")
        unseen = auc is not None and tpr is not None and max(abs(auc - 0.5), abs(tpr - FPR)) <= SEEN
        if unseen and blind.high <= SMALL:
            notes.append(
                f"Training and test records differ: {told} The attack does not see it: of the records that a shadow "
                f"model was not trained on, those of the one set score as those of the other (on {by_auc['targets']} "
                f"shadow models AUC {auc:.3f}, sd {by_auc['untrained_auc_sd']:.3f}; {100 * tpr:.1f} %, sd "
                f"{100 * by_tpr['untrained_tpr_sd']:.1f}, at 1 %)."
            )
        else:
            flags.add(Flag.DISTRIBUTION_SHIFT.value)
            notes.append(f"Not attributable to membership: {told}")
    near = neighbourhood(scope.data.bounds, scope.data.shape) is not None
    if voted_under_noise(model.recipe) and near:
        notes.append(
            f"It answers by votes under noise. The attacker adds up those about {VOTES} neighbours of each record"
            + (", and compares with shadow models of as many votes." if shadows else ".")
        )
    if answers_noisy(model.recipe) and near:
        notes.append(
            "Noise on its answers is the same for the same record, so asking again tells nothing. The attacker "
            f"averages over {NEIGHBOURS} neighbours of each record"
            + (", and compares with shadow models without noise." if shadows else ".")
        )
    if answers_limited(model.recipe) or voted_under_noise(model.recipe):
        flags.add(Flag.ANSWERS_LIMITED.value)
    if REPEATED_MEMBERS in dict(scope.data.doubts):
        flags.add(REPEATED_MEMBERS)
    if (known := _test_known(evidence, is_member)) is not None:
        flags.add(Flag.TEST_KNOWN.value)
        notes.append(known)
    if model.void is not None:
        notes.append(model.void)
    return tuple(sorted(flags)), notes


def _test_known(evidence: Evidence, is_member: Bools) -> str | None:
    """What says that the model knows the test records better than those it was trained on; None: nothing does.

    Test records may be a little easier than the others: shadow models that were trained on neither say how much.
    """
    for name in dict.fromkeys(["loss", evidence.summary["headline_auc"]]):
        found = ranking.auc(evidence.arrays[f"score/{name}"], is_member, level=0.99)
        untrained = evidence.summary["pseudo_targets"].get(name, {}).get("untrained_auc")
        usual = 0.5 if untrained is None else min(untrained, 0.5)
        if found.high < max(usual - REVERSED, EASY):
            return (
                f"By {name} test records look more like members than the members do (AUC {found.estimate:.3f}, 99 % "
                f"interval [{found.low:.3f}, {found.high:.3f}]): the model was trained on them, or they are easier."
            )
    return None


def leak_seen(half: int, shadows: int) -> float | None:
    """See `Attack.leak_seen`; with so many records of each sort."""
    if shadows <= UNFOUND:
        return None
    try:
        return min(1.0, statistical_power.detectable_tpr(half, half, FPR) / (1 - UNFOUND / shadows))
    except ValueError:  # too few records for any
        return None


def unseen_leaks(scope: Scope, half: int) -> list[str]:
    """Which leak would have gone unseen with so many records of each sort."""
    auc = statistical_power.detectable_auc(half, half)
    sentence = f"Membership: with {half} members and {half} non-members an AUC below {auc:.3f}"
    try:
        tpr = statistical_power.detectable_tpr(half, half, FPR)
        sentence += f", or a true positive rate at 1 % false positives below {100 * tpr:.1f} %,"
    except ValueError:
        sentence += ", or any true positive rate at 1 % false positives,"
    return [
        sentence + " would not be told from no leak.",
        f"Shadow models: {scope.training_free} for the dense model and recipes that do not train, {scope.trained} for "
        "hardened models and recipes that do; more shadows find smaller leaks.",
        *few_found([scope.training_free, scope.trained]),
    ]
