"""Label-only membership inference: how far a record lies from the boundary, and how its altered copies fare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ...targets.seeds import derive
from ...targets.steps import pulse
from ...training.ball import Ball
from ..access import Access, Flag, Ledger
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..evasion.black_box.hop_skip_jump import HopSkipJump
from ..evasion.blocks import blocks, kept_at_cost
from ..evasion.categories import not_pixels
from ..evasion.engine import Search
from ..measurement import Floats, Measurement, ThreatModel
from ..membership.preparations import enough_for_all, population_of
from ..preparation import Audited, Basis, Ran, Results, Scope
from ..risk import Metric
from .altered import altered
from .attacked import Attacked, needs_of, preparing, rows_of
from .calibration import ENOUGH_FOR_LIRA, calibrated
from .risk import LABELS
from .rows import OnMembers, compared, doubts, rows, scores_of, unmeasured, why_not

OTHERWISE = 0.01  # of the answers, or one: another batch adds up in another order
DISTANCE, COPIES, CALIBRATED = "distance", "copies", "calibrated"


class Summary(Document):
    """`Evidence.summary`."""

    headline: str
    shadows: int = Field(ge=0)
    copies: int = Field(ge=0)
    queries_per_record: float = Field(ge=0)


@ATTACKS.register
class LabelOnly(OnMembers):
    """Membership from the answered class alone (Choquette-Choo et al. 2021, arXiv:2007.14321; Li & Zhang 2021).

    Whoever hides or rounds its scores hides nothing from this attacker. Two scores: how far the record lies from the
    decision boundary (L2, found by HopSkipJump; 0 where the answer is wrong), and how many of its altered copies keep
    the right answer (shifted images; else records with some features of others). Where shadow models are known, each is
    also read on their scale (`calibration`): they say how hard a record is. The headline is the distance, calibrated
    where it can be, or the copies where a distance means nothing (categories, tokens); it is named beforehand.

    Evidence on at most `records` of the records of the membership audit, n, members first: `ids` int64 [n]; `is_member`
    and `correct` bool [n]; `copies_right` int64 [n]; `distance` float64 [n], in [0, 1] units, the whole range where no
    boundary was found (with the distance only); `score/<name>` float64 [n].
    """

    kind: Literal["label-only"] = "label-only"
    metrics: ClassVar[tuple[Metric, ...]] = LABELS.both
    access: ClassVar[Access] = Access.LABELS

    records: int = Field(400, ge=4, le=1_000_000, description="attacked at most, half of them members")
    iterations: PositiveInt = Field(4, le=1000, description="steps of HopSkipJump along the boundary")
    first_probes: PositiveInt = Field(
        48, le=100_000, description="of its first step; the t-th takes the root of t as many, twice as many at most"
    )
    copies: int = Field(24, ge=0, le=500, description="altered copies of a record")

    @property
    def effort(self) -> Effort:
        return Effort(answers=self.records * (1 + self.copies + self._walk.effort.answers))

    @property
    def _walk(self) -> HopSkipJump:
        return HopSkipJump(iterations=self.iterations, probes=self.first_probes, most_probes=2 * self.first_probes)

    def run_on(self, model: Audited, scope: Scope) -> Run:
        return Run(
            needs=needs_of(model, scope),
            prepare=preparing(model, self.records),
            identity=enough_for_all(scope),
            uses_parent=False,
            effort=self.effort,
        )

    def form(self, model: Audited, scope: Scope) -> Form:
        population = population_of(scope)
        places = rows_of(population, self.records, scope.seed)
        count = len(places)

        def layout(found: Summary) -> Layout:
            kinds = [kind for kind in (DISTANCE, COPIES) if found.headline.startswith(DISTANCE) or kind != DISTANCE]
            names = [
                f"score/{kind}{end}" for kind in kinds for end in ("", f"/{CALIBRATED}")[: 1 + (found.shadows > 0)]
            ]
            walked: Layout = {DISTANCE: Array("float64", (count,), low=0)} if DISTANCE in kinds else {}
            return {
                "ids": Array("int64", (count,)),
                "is_member": Array("bool", (count,)),
                "correct": Array("bool", (count,)),
                "copies_right": Array("int64", (count,), low=0, high=found.copies),
                **walked,
                **{name: Array("float64", (count,)) for name in names},
            }

        def holds(found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(np.array_equal(arrays["ids"], population.ids[places]), "ids are not those of the records")
            require(np.array_equal(arrays["is_member"], population.is_member[places]), "is_member is not the truth")
            require(f"score/{found.headline}" in arrays, "a headline that there is not")
            require(found.copies == self.copies, "another number of copies")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        attacked = case.prepared
        if not isinstance(attacked, Attacked):
            raise NotApplicable("no training records: membership can only be audited against the training's records")
        x, y, ledger = attacked.records.x, attacked.records.y, Ledger()
        correct = (self._labels(case, x, ledger) == y).cpu().numpy()
        skipped: dict[str, str] = {}
        arrays: dict[str, np.ndarray[Any, Any]] = {"correct": correct}
        if (why := not_pixels(case)) is None:
            arrays[DISTANCE] = self._distances(case, attacked, correct, seed=derive(seed, DISTANCE), ledger=ledger)
        else:
            skipped[DISTANCE] = why
        arrays["copies_right"] = self._copies_right(case, attacked, seed=derive(seed, COPIES), ledger=ledger)
        return self._evidence(arrays, attacked, ledger, skipped)

    def _labels(self, case: Case, x: Tensor, ledger: Ledger) -> Tensor:
        ledger.queries += len(x)
        return case.deployed.logits(x).argmax(1).to(x.device)

    def _distances(
        self, case: Case, attacked: Attacked, correct: np.ndarray[Any, Any], *, seed: int, ledger: Ledger
    ) -> Floats:
        count, found = len(correct), []
        most = math.sqrt(attacked.records.x[0].numel())

        def walked(first: int, end: int, spent: Ledger) -> dict[str, np.ndarray[Any, Any]]:
            own = attacked.records.take(torch.arange(first, end, device=attacked.records.x.device))
            ids = attacked.rows[first:end]
            among = torch.from_numpy(correct[first:end]).to(own.x.device)
            ball = Ball("l2", 1.0, own.x, case.bounds.to(own.x.device))
            here = replace(case, evaluation=own, ids=ids)
            search = Search(case.deployed, own, ids, ball, among=among, seed=seed, ledger=spent)
            distance = np.zeros(end - first)
            if among.any():
                _, length = self._walk.walk(search, here, until=0.0)
                distance[correct[first:end]] = length.double().clamp_max(most).cpu().numpy()
            return {DISTANCE: distance}

        for first, end in blocks(count):
            pulse("record", first, count)
            form = {DISTANCE: Array("float64", (end - first,), low=0)}
            part = kept_at_cost(f"{DISTANCE}/{first}-{end}", ledger, partial(walked, first, end), form)
            found.append(part[DISTANCE])
        pulse("record", count, count)
        return np.concatenate(found)

    def _copies_right(
        self, case: Case, attacked: Attacked, *, seed: int, ledger: Ledger
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        x, y = attacked.records.x, attacked.records.y
        right = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        copies = altered(x, attacked.rows, self.copies, case.attacker, case.structure, attacked.blocks, seed)
        for copy in copies:
            right += self._labels(case, copy, ledger) == y
        return right.cpu().numpy()

    def _evidence(
        self, arrays: Mapping[str, np.ndarray[Any, Any]], attacked: Attacked, ledger: Ledger, skipped: dict[str, str]
    ) -> Evidence:
        """All that follows from the answers."""
        kinds: dict[str, Floats] = {}
        if DISTANCE in arrays:
            kinds[DISTANCE] = arrays[DISTANCE].astype(np.float64)
        kinds[COPIES] = (arrays["copies_right"] + self.copies * arrays["correct"]).astype(np.float64)
        main, shadows = next(iter(kinds)), attacked.shadows
        scores = dict(kinds)
        if shadows is not None:
            scores |= {f"{kind}/{CALIBRATED}": calibrated(one, shadows) for kind, one in kinds.items()}
        headline = main if shadows is None else f"{main}/{CALIBRATED}"
        count = 0 if shadows is None else len(shadows.phi)
        flags = [] if count >= ENOUGH_FOR_LIRA else [Flag.FEW_SHADOWS.value if count else Flag.NO_SHADOWS.value]
        return Evidence(
            {
                "ids": attacked.ids,
                "is_member": attacked.is_member,
                **arrays,
                **{f"score/{name}": score for name, score in scores.items()},
            },
            {
                "headline": headline,
                "shadows": count,
                "copies": self.copies,
                "queries_per_record": ledger.queries / len(attacked.ids),
            },
            flags={headline: flags} if flags else {},
            skipped=skipped,
            ledger=ledger,
        )

    def measure(self, results: Results) -> list[Measurement]:
        evidence = results.evidence(Ran(results.model.name))
        if evidence is None:
            return unmeasured(LABELS, "by labels alone", why_not(results))
        population, headline = population_of(results.scope), evidence.summary["headline"]
        is_member = np.asarray(evidence.arrays["is_member"], dtype=bool)
        places = rows_of(population, self.records, results.scope.seed)
        flags, notes = doubts(results, evidence, is_member, lambda every: every[places])
        right = np.asarray(evidence.arrays["correct"], dtype=bool)
        gap = 100 * (right[is_member].mean() - right[~is_member].mean())
        count = evidence.summary["shadows"]
        return rows(
            LABELS,
            "{}, named beforehand",
            scores_of(evidence.arrays),
            (headline, headline),
            is_member,
            ThreatModel(
                Access.LABELS,
                "sees the answered class alone"
                + (", knows training and recipe, trains shadow models" if count else ""),
                f"about {evidence.summary['queries_per_record']:.0f} queries a record, {count or 'no'} shadow models",
            ),
            beside=compared(results),
            skipped=evidence.skipped,
            flags=flags,
            notes=(*notes, f"The model is right on {gap:.1f} points more of these members than of the others."),
        )

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        attacked, stored = case.prepared, evidence.arrays
        if not isinstance(attacked, Attacked) or not np.array_equal(stored["ids"], attacked.ids):
            return ["records were attacked that are none of the population"]
        correct = (self._labels(case, attacked.records.x, Ledger()) == attacked.records.y).cpu().numpy()
        off = int((correct != stored["correct"]).sum())
        return [f"{off} of {len(correct)} answers are others"] if off > max(1, OTHERWISE * len(correct)) else []

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        attacked, stored = basis.prepared(), evidence.arrays
        if not isinstance(attacked, Attacked):
            return []
        wrong, outside, right = [], ~stored["is_member"], stored["correct"]
        if basis.contradicted(stored["ids"][outside], right[outside], right[outside]):
            wrong.append("the records that the model classifies right are others")
        if DISTANCE in stored and bool((stored[DISTANCE][~right] != 0).any()):
            wrong.append("a record that is answered wrong lies at a distance from the boundary")
        known = {name: stored[name] for name in ("correct", DISTANCE, "copies_right") if name in stored}
        again = self._evidence(known, attacked, evidence.ledger, evidence.skipped)
        names = [name for name, one in again.arrays.items() if not np.allclose(stored[name], one, rtol=1e-6, atol=1e-9)]
        wrong += [f"{name} is not what follows from the answers" for name in names]
        same = {**again.summary, "queries_per_record": evidence.summary["queries_per_record"]}
        if same != evidence.summary or again.flags != evidence.flags:
            wrong.append("its summary or flags are others than follow from the shadow models")
        return wrong

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Label-only membership is measured with a budget of queries and by the attacks named: whoever asks "
            "more may learn more."
        ]
