"""Membership inference: was this record among those the model was trained on?"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from ...targets.errors import NotApplicable
from ...targets.form import Form
from ...targets.seeds import derive
from ..access import Access, Flag, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..measurement import Measurement
from ..preparation import Audited, Basis, Need, Ran, Results, Scope
from ..risk import Metric, Risk
from ..statistics.roc import placements, tpr_at_fpr
from . import scores
from .blind import blind_scores
from .case import MembershipCase, ShadowSignals
from .evidence_form import evidence_form
from .measure import AUC_DETAIL, FPR, measure_membership, unseen_leaks
from .preparations import membership_run, population_of, run_detail, shadow_count, shadow_counts
from .risk import AUC, MEMBERSHIP, TPR
from .signals import margin

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Margins = np.ndarray[Any, np.dtype[np.floating[Any]]]

SAME = 1e-3  # of margins, absolute and relative: another batch or processor adds up in another order
# Times that scores of a model may be spread more or less than its shadows' (see masked). MNIST, 2 layers, 8 models:
# models made alike .9 to 1.05, 8, 4 and 3 bits .9 to 1.1, trained four times as long 1.7, a temperature of 2 .5; masked
# by arg-max and 10 % of the logits .11, 1 % of them .01, probabilities in 8 bits .03.
LIKE_SHADOWS = 4.0
ENOUGH_SHADOWS = 16  # below it only RMIA may be the headline (LiRA's variances rest on too little), and a flag is set


@ATTACKS.register
class Membership(Attack):
    """LOSS, LiRA and RMIA against the scores of the deployed model, with shadow models; without, LOSS and population.

    Evidence arrays, per attacked record (members first): `ids` int64, `is_member` bool, `phi` float32 (the deployed
    model's logit margin), `blind` float64, and `score/<name>` float64 for each name of "loss", "lira/own", "rmia/own",
    "lira/dense" and "rmia/dense" (compressed and uncompressed shadows; the last two only where the case has both).
    Without shadows: "loss" and "population", of which the latter is the headline, named beforehand. Higher scores mean
    "more likely a member".

    Summary: `headline` and `headline_auc`, the names the findings report, by TPR and by AUC; `n`; `shadows` by kind;
    `pseudo_targets`: by name
    `targets`, `tpr_mean`, `tpr_sd`, `auc_mean`, `auc_sd` over the shadows of the own kind, each attacked in turn
    without itself and its complement ("leave pair out"). These measure the training procedure, not the audited model;
    a headline is the best of them, so the audited model has no say in it. `untrained_auc` and `untrained_tpr`, each
    with `_sd`: of the audited model's members against its non-members where the shadow was trained on neither; .5 and
    .01 unless the two sorts of records differ in what the attack sees. TPR is None below 100 non-members; all are empty
    below 4 own shadows.
    """

    kind: Literal["membership"] = "membership"
    risk: ClassVar[Risk] = MEMBERSHIP
    metrics: ClassVar[tuple[Metric, ...]] = (TPR, AUC)
    access: ClassVar[Access] = Access.SCORES

    def unfit(self, scope: Scope) -> str | None:
        return "no training records" if scope.data.members is None else None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        """The attack with every shadow there is; and on its baselines with no more than it has on this model.

        More shadows make a stronger attack, so a candidate attacked with 16 is compared with its parent under 16.
        """
        if scope.data.members is None:
            return ()
        runs = [membership_run(model, scope)]
        for name in model.baselines:
            baseline = scope.models[name]
            full = shadow_count(scope, baseline.parent, None)
            fewer = {count for count in shadow_counts(model, scope) if count < full}
            runs += [membership_run(baseline, scope, shadows=count) for count in sorted(fewer)]
        return tuple(runs)

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        found = [Ran(model.name)]
        for name in model.baselines:
            counts = sorted(set(shadow_counts(model, scope)))
            found += [Ran(name, run_detail(scope.models[name], scope, count)) for count in counts]
        return tuple(found)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", AUC_DETAIL)

    def form(self, model: Audited, scope: Scope) -> Form:
        return evidence_form(model, scope)

    def measure(self, results: Results) -> list[Measurement]:
        return measure_membership(results)

    def power(self, scope: Scope) -> list[str]:
        if scope.data.members is None:
            return []
        return unseen_leaks(scope, population_of(scope).attacked // 2)

    def limits(self, scope: Scope) -> list[str]:
        sentences = [
            "A passed membership test is evidence, never proof, of privacy: it speaks for the attacks and shadows "
            "listed."
        ]
        members = scope.data.members
        known = members is not None and not scope.data.regression
        rest = len(members) - population_of(scope).attacked // 2 if members is not None and known else 0
        if rest:
            sentences.append(
                f"The membership attacker knows {rest} members that are not attacked: every shadow is trained on them, "
                "so that shadows are as large as the target."
            )
        return sentences

    def run(self, case: Case, *, seed: int) -> Evidence:
        population = case.prepared
        if not isinstance(population, MembershipCase):
            raise NotApplicable("no training records: membership can only be audited against the training's records")
        if population.own is not None and len(population.own.phi) < 2:
            raise NotApplicable("fewer than two shadow models: there is nothing to compare the model's scores with")
        phi = margin(case.deployed.logits(population.records.x), population.records.y)
        if not all(np.isfinite(one).all() for one in (phi, *(one.phi for one in kinds_of(population).values()))):
            raise NotApplicable("the model or one of its shadows answers with numbers that are not finite")
        ledger = Ledger(queries=len(phi))
        alone = None
        if population.own is None:
            known = margin(case.deployed.logits(case.attacker.x), case.attacker.y)
            ledger.queries += len(known)
            labels = population.records.y.cpu().numpy()
            alone = scores.population(phi, labels, known, case.attacker.y.cpu().numpy())
        blind = population.blind
        if blind is None:
            blind = blind_scores(population.records, population.is_member, seed=derive(seed, "blind"))
        return self._evidence(phi, alone, blind, population, ledger)

    def _evidence(
        self,
        phi: np.ndarray[Any, np.dtype[np.float32]],
        alone: Floats | None,
        blind: Floats,
        population: MembershipCase,
        ledger: Ledger,
    ) -> Evidence:
        """All that follows from a model's margins `phi`; `alone`: the score that does without shadows."""
        kinds = kinds_of(population)
        flags = []
        figures: dict[str, dict[str, float | int | None]] = {}
        if population.own is None:
            found = {"loss": scores.loss(phi)} | ({} if alone is None else {"population": alone})
            headline = headline_auc = "population"
            flags.append(Flag.NO_SHADOWS.value)
        else:
            found = {name: score[0] for name, score in score_all(phi[None], kinds).items()}
            figures = self.pseudo_targets(kinds, population.is_member)
            few = len(population.own.phi) < ENOUGH_SHADOWS
            headline, headline_auc = choose(figures, "tpr_mean", few=few), choose(figures, "auc_mean", few=few)
            if few:
                flags.append(Flag.FEW_SHADOWS.value)
            if unlike(phi, population.is_member, population.own):
                flags.append(Flag.SHADOWS_DIFFER.value)
            if masked(phi, population.own.phi, population.records.y.cpu().numpy()):
                flags.append(Flag.SCORES_MASKED.value)
        if not self._tells_tpr(int((~population.is_member).sum())):
            flags.append(Flag.FEW_RECORDS.value)
        return Evidence(
            arrays={
                "ids": population.ids,
                "is_member": population.is_member,
                "phi": phi,
                "blind": blind,
                **{f"score/{name}": score for name, score in found.items()},
            },
            summary={
                "headline": headline,
                "headline_auc": headline_auc,
                "n": len(phi),
                "shadows": {kind: len(signals.phi) for kind, signals in kinds.items()},
                "pseudo_targets": figures,
            },
            flags={headline: flags} if flags else {},
            ledger=ledger,
        )

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        population, stored = case.prepared, evidence.arrays
        if not isinstance(population, MembershipCase) or not np.array_equal(stored["ids"], population.ids):
            return ["records were attacked that are none of the population"]
        phi = margin(case.deployed.logits(population.records.x), population.records.y)
        off = int((~np.isclose(phi, stored["phi"], rtol=SAME, atol=SAME)).sum())
        return [f"its margin on {off} of {len(phi)} records is another"] if off else []

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        population, stored = basis.prepared(), evidence.arrays
        if not isinstance(population, MembershipCase):
            return []
        outside, phi = ~stored["is_member"], stored["phi"]
        least = phi > SAME, phi > -np.log(max(int(population.records.y.max()), 1)) - SAME
        wrong = []
        if basis.contradicted(stored["ids"][outside], *(one[outside] for one in least)):
            wrong.append("its margins are not those of a model that classifies these records so")
        blind = stored["blind"] if population.blind is None else population.blind
        again = self._evidence(stored["phi"], stored.get("score/population"), blind, population, evidence.ledger)
        names = [name for name, array in again.arrays.items() if not _close(stored.get(name), array)]
        wrong += [f"{name} is not what follows from the margins" for name in names]
        wrong += [] if again.flags == evidence.flags else ["its trust flags are others than follow from the margins"]
        of_run = {name: value for name, value in again.summary.items() if name != "pseudo_targets"}
        told, known = again.summary["pseudo_targets"], evidence.summary["pseudo_targets"]
        same = told.keys() == known.keys() and all(_near(told[name], known[name]) for name in told)
        if not same or of_run != {name: evidence.summary[name] for name in of_run}:
            wrong.append("its summary is not what follows from the shadow models")
        return wrong

    def pseudo_targets(
        self, kinds: dict[str, ShadowSignals], is_member: Bools
    ) -> dict[str, dict[str, float | int | None]]:
        """Mean and standard deviation of TPR and AUC over own shadows as targets, by name; see the class."""
        own = kinds["own"]
        if len(own.phi) < 4:
            return {}
        kinds = {kind: signals for kind, signals in kinds.items() if len(signals.phi) >= 4}  # one pair is left out
        keep = {kind: ~related(own.inside, signals.inside) for kind, signals in kinds.items()}
        figures: dict[str, dict[str, float | int | None]] = {}
        for name, score in score_all(own.phi, kinds, keep).items():
            aucs = np.array([placements(row, inside)[0].mean() for row, inside in zip(score, own.inside, strict=True)])
            outside = [(row[~inside], is_member[~inside]) for row, inside in zip(score, own.inside, strict=True)]
            untrained = np.array([placements(row, sort)[0].mean() for row, sort in outside])
            tpr_mean = tpr_sd = untrained_tpr = untrained_tpr_sd = None
            if self._tells_tpr(min(int((~sort).sum()) for _, sort in outside)):
                tprs = [tpr_at_fpr(row, sort, FPR) for row, sort in outside]
                untrained_tpr, untrained_tpr_sd = float(np.mean(tprs)), float(np.std(tprs, ddof=1))
            if self._tells_tpr(int((~own.inside).sum(1).min())):
                tprs = [tpr_at_fpr(row, inside, FPR) for row, inside in zip(score, own.inside, strict=True)]
                tpr_mean, tpr_sd = float(np.mean(tprs)), float(np.std(tprs, ddof=1))
            figures[name] = {
                "targets": len(score),
                "tpr_mean": tpr_mean,
                "tpr_sd": tpr_sd,
                "auc_mean": float(aucs.mean()),
                "auc_sd": float(aucs.std(ddof=1)),
                "untrained_auc": float(untrained.mean()),
                "untrained_auc_sd": float(untrained.std(ddof=1)),
                "untrained_tpr": untrained_tpr,
                "untrained_tpr_sd": untrained_tpr_sd,
            }
        return figures

    def _tells_tpr(self, non_members: int) -> bool:
        return FPR * non_members + 1e-9 >= 1


def kinds_of(population: MembershipCase) -> dict[str, ShadowSignals]:
    """The signals of the shadows that there are: compressed as the model is ("own"), uncompressed ("dense")."""
    both = {"own": population.own, "dense": population.dense}
    return {kind: signals for kind, signals in both.items() if signals is not None}


def _close(stored: np.ndarray[Any, Any] | None, again: np.ndarray[Any, Any]) -> bool:
    return stored is not None and stored.shape == again.shape and np.allclose(stored, again, rtol=SAME, atol=SAME)


def _near(one: dict[str, float | int | None], other: dict[str, float | int | None]) -> bool:
    """Of figures that may be None."""
    pairs = [(one[name], other.get(name)) for name in one]
    return all(a == b or (a is not None and b is not None and abs(a - b) <= SAME) for a, b in pairs)


def unlike(phi: np.ndarray[Any, Any], is_member: Bools, own: ShadowSignals) -> bool:
    """Whether the audited model gets records right at another rate than its shadows do, on either sort of record.

    Shadows of another training (a wrong learning rate, a loop that does nothing) make an attack that finds nothing.
    Different means by more than 5 points and more than four standard deviations of the shadows' own rates.
    """
    right = own.phi > 0
    for target, side in ((phi[is_member] > 0, own.inside), (phi[~is_member] > 0, ~own.inside)):
        rates = np.array([row[chosen].mean() for row, chosen in zip(right, side, strict=True)])
        if abs(target.mean() - rates.mean()) > max(0.05, 4 * rates.std(ddof=1)):
            return True
    return False


def masked(phi: Margins, shadows: Margins, labels: Ids) -> bool:
    """Whether a model's scores differ far less, or far more, within a class than its shadows' do.

    "Arg-max plus a small share of the logits" keeps every label and blinds what is calibrated on shadows. The better
    half of each class is looked at, which a model that is any good gets right: how often it errs plays no part.

    Args:
        phi: [n]; shadows: [k, n]; labels: int64 [n].
    """
    own, theirs = _spread(phi, labels), [_spread(row, labels) for row in shadows]
    usual = float(np.median(theirs))
    return not usual / LIKE_SHADOWS <= own <= usual * LIKE_SHADOWS


def _spread(phi: Margins, labels: Ids) -> float:
    """Between the quartiles of phi among the better half of a class, less their median, over all classes."""
    centred = []
    for label in np.unique(labels):
        mine = np.sort(phi[labels == label])
        centred.append(mine[len(mine) // 2 :] - np.median(mine[len(mine) // 2 :]))
    low, high = np.quantile(np.concatenate(centred), (0.25, 0.75))
    return float(high - low)


def score_all(
    phi: np.ndarray[Any, Any], kinds: dict[str, ShadowSignals], keep: dict[str, Bools] | None = None
) -> dict[str, Floats]:
    """Every score of targets with margins phi [t, n]: float64 [t, n] by name; `keep` as in `scores.lira`, by kind."""
    found = {"loss": scores.loss(phi)}
    for kind, signals in kinds.items():
        chosen = keep[kind] if keep is not None else None
        found[f"lira/{kind}"] = scores.lira(phi, signals, chosen)
        found[f"rmia/{kind}"] = scores.rmia(phi, signals, chosen)
    return found


def related(targets: Bools, shadows: Bools) -> Bools:
    """bool [t, k]: the shadow was trained on the target's own half of the records, or on exactly the other half.

    The complement must go too: without it a record of the target's would be missing once more on the inside of the
    shadows that are left, and their number alone would give its membership away.
    """
    agreement = (targets[:, None, :] == shadows[None, :, :]).sum(2)
    result: Bools = (agreement == 0) | (agreement == targets.shape[1])
    return result


def choose(figures: dict[str, dict[str, float | int | None]], by: Literal["tpr_mean", "auc_mean"], *, few: bool) -> str:
    """The name with the largest mean over pseudo-targets (AUC breaks ties); with few shadows, among RMIA's only."""

    def merit(name: str) -> tuple[float, float]:
        first, auc = figures[name][by], figures[name]["auc_mean"]
        return (first if first is not None else 0.0, auc if auc is not None else 0.0)

    names = [name for name in figures if not few or name.startswith("rmia")]
    return max(names, key=merit, default="rmia/own")
