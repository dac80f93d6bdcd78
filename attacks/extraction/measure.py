"""Evidence of extraction -> fidelity of the copy at the largest budget, and how many inputs fooled through it fool the
model, with what the copy took and who would notice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from ...targets.serving.query_streams import DELTA, noticed_after, threshold
from ..case import Evidence
from ..measurement import Auc, Bools, Comparison, MeasuredPart, Measurement, Rate, ThreatModel
from ..preparation import Ran, Results
from ..statistics.rates import paired_change, percent
from .answers import ACCESS, SEEN
from .asking.strategies import USUAL, Strategy
from .risk import FIDELITY, TRANSFER
from .teaching import UNQUERIED

TRANSFERRED = "transfer"  # the detail of the second figure
LEVEL = 0.9  # fidelity to which queries are counted
NO_LIMIT = "not gated: no built-in limit on extraction"


def measure_extraction(results: Results, most: int, transfer_epsilon: float, strategy: Strategy) -> list[Measurement]:
    """Fidelity after `most` queries, of the attacker who sees most of an answer, and the transfer from that copy."""
    model = results.model.name
    evidence = results.evidence(Ran(model))
    copies = [] if evidence is None else [copy for copy in evidence.summary["copies"] if "/" in copy]
    last = {copy.partition("/")[0]: copy for copy in copies}  # by the sort of answers, from the most queries
    headline = next((last[sort] for sort in SEEN if sort in last), f"scores/{most}")
    answers, _, queries = headline.partition("/")
    setting: dict[str, str | float | int] = {"queries": int(queries)}
    beside: dict[str, str | float | int] = {**setting, "norm": "linf", "epsilon": transfer_epsilon}
    asked = "" if strategy == USUAL else f", {strategy} queries"
    attack = f"surrogate trained on {queries} answers ({answers}){asked}"
    kept = headline if evidence is None else str(evidence.summary["kept"])
    if kept == UNQUERIED:
        attack = f"surrogate trained on the attacker's own labels, better on held-out answers than one from {queries}"
    through = f"adversarial examples made on a {attack}"
    if evidence is None:
        why = results.why(Ran(model))
        return [
            Measurement(FIDELITY, "surrogate trained on answers", None, reason=why, setting=setting),
            Measurement(TRANSFER, "made on a surrogate", None, reason=why, detail=TRANSFERRED, setting=beside),
        ]
    threat = ThreatModel(
        next(ACCESS[sort] for sort in SEEN if sort == answers),
        "owns records of the same kind and knows the architecture family; sees answers only",
        f"{queries} queries",
    )
    flags = tuple(sorted(results.flags(model)))
    curves: dict[str, list[tuple[float, Rate]] | Auc] = {}
    for sort in last:
        names = [copy for copy in copies if copy.startswith(f"{sort}/")]
        for series, of in ((sort, "agrees"), (f"{sort}: accuracy", "copy_correct")):
            curves[series] = [(float(copy.partition("/")[2]), Rate(_told(evidence, f"{of}/{copy}"))) for copy in names]
    alone = _told(evidence, f"agrees/{UNQUERIED}")
    notes = [
        *(
            f"Adversarial examples made on the {copy.replace('/', ' copy of ')} queries fool the deployed model on "
            f"{percent(_told(evidence, f'transfer/{copy}'))} of {len(_told(evidence, f'transfer/{copy}'))} records "
            f"(L-inf epsilon {transfer_epsilon:g}; clean errors count)."
            for copy in copies
            if f"transfer/{copy}" in evidence.arrays
        ),
        f"Without any query, the attacker's own labels give a copy of fidelity {percent(alone)}, n = {len(alone)}.",
        *_guessed(str(evidence.summary["architecture guessed"])),
        *_until(evidence, copies, last),
        *_worth(evidence, last, headline),
        *_watched(evidence, last),
    ]
    transferred = f"transfer/{kept}"
    return [
        Measurement(
            FIDELITY,
            attack,
            Rate(_told(evidence, f"agrees/{kept}")),
            threat,
            reason=NO_LIMIT,
            setting=setting,
            comparisons=_comparisons(results, evidence, "agrees"),
            flags=flags,
            notes=tuple(notes),
            curves=curves,
            parts=tuple(
                MeasuredPart(
                    copy,
                    Rate(_told(evidence, f"agrees/{copy}")),
                    tuple(evidence.flags.get(copy, ())),
                    evidence.skipped.get(copy),
                    headline=copy == kept,
                )
                for copy in dict.fromkeys([*copies, kept])
            ),
        ),
        Measurement(
            TRANSFER,
            through,
            Rate(_told(evidence, transferred)) if transferred in evidence.arrays else None,
            threat,
            reason=NO_LIMIT if transferred in evidence.arrays else "not applicable: no epsilon changes an id",
            detail=TRANSFERRED,
            setting=beside,
            comparisons=_comparisons(results, evidence, "transfer"),
            flags=flags,
        ),
    ]


def _told(evidence: Evidence, name: str) -> Bools:
    return np.asarray(evidence.arrays[name], dtype=bool)


def _comparisons(results: Results, evidence: Evidence, sort: str) -> tuple[Comparison, ...]:
    """Of these arrays of the copy that is kept with those of the copies that attackers of the baselines keep."""
    found = []
    own = f"{sort}/{evidence.summary['kept']}"
    for baseline in results.model.baselines:
        other = results.evidence(Ran(baseline))
        if other is None or own not in evidence.arrays:
            continue
        theirs = f"{sort}/{other.summary['kept']}"
        if theirs in other.arrays:
            flags = tuple(sorted(results.flags(baseline)))
            found.append(Comparison(baseline, Rate(_told(evidence, own)), Rate(_told(other, theirs)), flags=flags))
    return tuple(found)


def queries_to(curve: Sequence[tuple[int, float]], level: float = LEVEL) -> float | None:
    """The queries at which a curve of (queries, fidelity) first reaches `level`, between two budgets by the logarithm
    of the queries; the smallest budget where that reaches it, None where none does.
    """
    if curve[0][1] >= level:
        return float(curve[0][0])
    for (less, below), (more, above) in pairwise(curve):
        if above >= level:
            share = (level - below) / (above - below)
            return math.exp(math.log(less) + share * (math.log(more) - math.log(less)))
    return None


def _guessed(words: str) -> list[str]:
    """A sentence: what the architecture was taken for."""
    if not words:
        return []
    return [f"The architecture is not known; by file size, inputs and held-out answers it was taken for a {words}."]


def _until(evidence: Evidence, copies: Sequence[str], sorts: Iterable[str]) -> list[str]:
    """Sentences: how many queries a fidelity of 90 % takes."""
    sentences = []
    for sort in sorts:
        curve = [
            (int(copy.partition("/")[2]), float(np.mean(_told(evidence, f"agrees/{copy}"))))
            for copy in copies
            if copy.startswith(f"{sort}/")
        ]
        reached = queries_to(curve)
        if reached is None:
            words = f"more than {curve[-1][0]} queries"
        elif curve[0][1] >= LEVEL:
            words = f"at most {curve[0][0]} queries"
        else:
            words = f"about {reached:.2g} queries" if reached < 100 else f"about {round(reached, -1):.0f} queries"
        sentences.append(f"A fidelity of 90 % takes {words} ({sort}).")
    return sentences


def _worth(evidence: Evidence, last: dict[str, str], headline: str) -> list[str]:
    """Sentences: what it buys the owner to answer less, after as many queries."""
    strongest, _, queries = headline.partition("/")
    sentences = []
    for sort in last:
        name = f"{sort}/{queries}"
        if name == headline or f"agrees/{name}" not in evidence.arrays:
            continue
        change = paired_change(_told(evidence, f"agrees/{name}"), _told(evidence, f"agrees/{headline}"))
        points = f"{100 * change.estimate:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
        sentences.append(
            f"To answer with {sort} instead of {strongest} changes the copy's fidelity after {queries} queries by "
            f"{points}."
        )
    return sentences


def _watched(evidence: Evidence, last: dict[str, str]) -> list[str]:
    """Sentences: who watches the distances between queries notices these after so many, or does not."""
    watched = [sort for sort in last if f"distances/{sort}" in evidence.arrays]
    if not watched:
        return []
    honest = evidence.arrays["distances/honest"]
    below = threshold(honest)
    limit = DELTA if below is None else below
    found = {sort: noticed_after(evidence.arrays[f"distances/{sort}"], limit) for sort in watched}
    words = [
        f"these queries after {queries}" if queries else f"none of these {len(evidence.arrays[f'distances/{sort}'])}"
        for sort, queries in found.items()
    ]
    told = [f"{one} ({sort})" for sort, one in zip(watched, words, strict=True)]
    against = (
        f"at which {len(honest)} evaluation records pass as an honest client's"
        if below is not None
        else "as usual: too few evaluation records to set it by"
    )
    return [
        f"Who watches the distances between a client's queries (PRADA) notices {' and '.join(dict.fromkeys(told))}; "
        f"threshold {limit:.3f}, {against}."
    ]
