"""Evasion by exchange: whole features of a table or tokens of a sequence are changed, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Self

from torch import Tensor

from ....targets.data.data import Data
from ....targets.form import Form
from ...attack import ATTACKS, Run
from ...case import Case, Evidence
from ...elsewhere import elsewhere
from ...measurement import Measurement
from ...preparation import Audited, Basis, Inputs, Need, Preparation, Prepared, Results, Scope
from ..categories import by_categories
from ..compare import contradictions
from .choosing import ReachProbe, choose
from .exchanged import both_ways
from .measure import evidence_form, measure_substitution
from .parameters import Chosen, SubstitutionParameters
from .running import attack, on_device, part_flags, union_flags


@ATTACKS.register
class Substitution(SubstitutionParameters):
    """Inputs with a few features or tokens exchanged: robust accuracy, by how many of them may be others.

    Of a table, a one-hot block becomes another category, a code another one, a number moves within its range and its
    reach; immutable features stay. Of sequences of token ids, a token becomes another one of the data's vocabulary or
    of `allowed`; padding stays. Two parts search (beam search over single changes): one is led by gradients of the
    twin, at its inputs or embeddings (HotFlip, Ebrahimi et al. 2018, arXiv:1712.06751), the other by the deployed
    model's answers to single changes. Of tokens a third moves what is looked up for them, and tries the allowed tokens
    nearest to it (`embeddings`). All ask the deployed model about all they try, and it alone decides.

    What fools a dense model is tried on its candidates, and back (`exchanged`).

    Without a gate, `gate_changes: auto` and `reach: auto` take those at which the dense model keeps about half.

    Evidence arrays, n records each in the order of `ids`: `ids` int64; `clean_correct` bool; `fooled/<part>/<changes>`
    bool, what a part fooled with up to so many changes (clean errors included); `worst/<changes>` bool, any part;
    `adversarial` float32 [n, *shape]: what fooled the deployed model at the gate's changes, or came nearest to it;
    `change/<measure>`, how far that is from the record (`likeness.distances`).

    Summary: `changes`, `gate`, `reach`, `tokens` (whether features are tokens), `features` and `moves` (how many there
    are), `padding` (an id or None), `parts` (those that ran), `without_gradient` (records that withstood and gave
    none), `union_flags`.
    """

    def unfit(self, scope: Scope) -> str | None:
        data = scope.data
        if not data.structure.tokens and len(data.shape) != 1:
            return "neither a table nor declared tokens"
        return "no feature may change" if {*data.structure.immutable} >= {*range(data.shape[0])} else None

    def usual(self, data: Data) -> bool:
        return by_categories(data)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        probe = self._probe(scope)
        effort = replace(self.effort, through=model.name)
        return (Run(needs=probe, prepare=partial(_chosen, probe), effort=effort),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        again = elsewhere(scope, (model.name, *model.baselines), self.count)
        pairs = [both_ways(self, scope, model.name, name) for name in model.baselines]
        return *super().reads(model, scope), *self._probe(scope), *again, *pairs

    def _probe(self, scope: Scope) -> tuple[ReachProbe, ...]:
        """Nothing where the plan names gate and reach; the same for all rounds."""
        if not self.open:
            return ()
        return (ReachProbe(self.sharing().model_dump_json(), scope.reference.name),)

    def probes(self, scope: Scope) -> tuple[Preparation, ...]:
        return self._probe(scope)

    def settled(self, found: Mapping[Preparation, Prepared]) -> Self:
        mine = self.sharing().model_dump_json()
        for probe, result in found.items():
            if isinstance(probe, ReachProbe) and probe.told == mine:
                return self.settled_at(Chosen.model_validate(result.document["chosen"]))
        return self

    def form(self, model: Audited, scope: Scope) -> Form:
        return evidence_form(self, scope)

    def measure(self, results: Results) -> list[Measurement]:
        probe = self._probe(results.scope)
        found = results.prepared(probe[0]) if probe else None
        return measure_substitution(self if found is None else self.settled({probe[0]: found}), results)

    def power(self, scope: Scope) -> list[str]:
        return [f"Evasion by changed features or tokens: {self.unseen(scope)}."]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Robust accuracy after so many changed features or tokens is an upper bound: not all combinations were "
            "tried. A changed category or word may also change what is true of a record, which no attack can see."
        ]

    def run(self, case: Case, *, seed: int) -> Evidence:
        if self.open:
            chosen = case.prepared if isinstance(case.prepared, Chosen) else choose(case, self, seed=seed)
            return self.settled_at(chosen).run(case, seed=seed)
        return attack(case, self, seed=seed)

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        case, gate = on_device(case), int(evidence.summary["gate"])
        features = self.features(case, evidence.summary["reach"])

        def allowed(x: Tensor, records: Tensor) -> Tensor:
            changes: Tensor = features.changes(x.flatten(1), records.flatten(1))
            return changes <= gate

        return contradictions(evidence, case, f"worst/{gate}", allowed)

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        arrays, summary, wrong = evidence.arrays, evidence.summary, []
        if basis.contradicted(arrays["ids"], arrays["clean_correct"], arrays["clean_correct"]):
            wrong.append("the records that the model classifies right are others")
        due = part_flags(list(summary["parts"]), summary["without_gradient"], len(arrays["ids"]), basis.twin_agrees)
        if evidence.flags != due:
            wrong.append("the flags of the parts that follow gradients")
        exhaustive = summary["moves"] <= self.first
        if list(summary["union_flags"]) != union_flags(list(summary["parts"]), due, exhaustive=exhaustive):
            wrong.append("the flags of the worst case")
        return wrong


def _chosen(probe: tuple[ReachProbe, ...], inputs: Inputs) -> Chosen | None:
    """What a run finds in its case."""
    return Chosen.model_validate(inputs.prepared(probe[0]).document["chosen"]) if probe else None
