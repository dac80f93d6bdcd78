"""Extraction: a copy of the deployed model, trained from its answers alone, and what the copy is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Records
from ...targets.data.structure import Structure
from ...targets.errors import NotApplicable
from ...targets.form import Array, Form
from ...targets.model import device_of
from ...targets.seeds import derive
from ...targets.steps import Arrays, pulse
from ...training.architecture import Architecture
from ...training.loop import Training
from ..access import Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import FORWARD, Effort
from ..evasion.blocks import kept_at_cost
from ..evasion.categories import known_structure
from ..measurement import Measurement
from ..preparation import Audited, Basis, Results, Scope
from ..risk import Metric, Risk
from .answers import DECIMALS, Seen, as_logits, told
from .copying import Copy, Lesson, Pupil, Tutor, check_copy, with_state
from .detectability import shortest_distances
from .evidence_form import evidence_form
from .judging import judge
from .measure import TRANSFERRED, measure_extraction
from .queries import choose_labels, choose_queries
from .risk import EXTRACTION, FIDELITY, TRANSFER
from .strategies import ROUNDS, USUAL, Asked, Strategy, ask, rounds_of
from .surrogate import surrogate_architecture

Queries = Annotated[int, Field(gt=0, le=10_000_000)]
TRAINED = 2.0  # gradients of inputs that a record costs in training: weights and statistics of batches have some, too
UNQUERIED = "without-queries"  # the copy that shows what the queries bought
WEIGHTS = {"built-in": Array("bool", (1,)), "*": Array(finite=False)}  # of a copy that is kept


@ATTACKS.register
class Extraction(Attack):
    """Trains a copy of the model from its answers to chosen queries (Tramèr et al. 2016; Orekondy et al. 2019).

    What it asks follows from the strategy (`strategies.ask`): records it owns and, beyond them, mixes of two of them
    (`mixing.mixed`), or what it makes of them. It knows the architecture of the uncompressed model when that is at
    hand, and trains a built-in one otherwise, or where that learns the answers it held out better (`Tutor.better`).
    Copies are trained side by side (`Tutor.groups`). A copy is judged by its fidelity (it gives the deployed model's
    label), its accuracy, and by whether adversarial examples crafted on it fool the deployed model. A copy trained on
    the attacker's own labels, without a query, shows what the queries bought. Each copy is kept as it is finished
    (`targets.steps.kept`).

    Evidence on all evaluation records, n of them; C is `<answers>/<budget>` or `without-queries`, A a sort of answers:
        `ids` int64 [n]; `target_correct` bool [n]; `agrees/C` and `copy_correct/C` bool [n], the copy's label against
        the deployed model's and the true one; `transfer/C` bool [m], for the largest budget of each sort of answers:
        the deployed model misclassifies the copy's adversarial example of evaluation record 0 .. m - 1, or the record
        itself (clean errors count, as in robust accuracy); not for token ids. `distances/A` float32 [k], of the queries
        of the largest budget in their order, and `distances/honest`, of the evaluation records, the first 2,000: each
        one's distance to the nearest earlier one of its class (`detectability.shortest_distances`).
    Summary: `copies` (every C in order), `budgets`, `queries` (spent on each copy), `fidelity` and `copy accuracy` by
    copy, `fidelity without queries`, `transfer` by copy, `architecture known`, `built-in architecture` (the copies for
    which that was better than the known one), `records owned`, `judging queries` (asked to judge the copies; no
    attacker spends them, so the ledger leaves them out).
    """

    risk: ClassVar[Risk] = EXTRACTION
    metrics: ClassVar[tuple[Metric, ...]] = (FIDELITY, TRANSFER)

    kind: Literal["extraction"] = "extraction"
    budgets: tuple[Queries, ...] = Field((50, 150, 500), min_length=1, max_length=100, description="queries, ascending")
    answers: tuple[Seen, ...] = Field(
        ("scores", "labels"),
        min_length=1,
        description="what the attacker sees of an answer: all logits (scores), all probabilities to `decimals` places "
        "(rounded), the class and its probability (top1), or the class (labels); an attacker for each",
    )
    decimals: int = Field(DECIMALS, ge=1, le=6, description="of rounded probabilities")
    strategy: Strategy = Field(
        USUAL,
        description="what is asked: own records and mixes of them (random, or first those that stand for the others: "
        "representative); in rounds what a copy is least certain of (adaptive) or what its gradients make of earlier "
        "queries (jacobian); pieces of own records put together (composed); random values (noise)",
    )
    label_budgets: tuple[Queries, ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="queries of the attacker who sees labels only; default: the largest budget",
    )
    training: Training = Field(
        Training(epochs=8, batch_size=16, learning_rate=1e-2),
        description="of a copy, a round of passes over its queries; that from the most scores takes several while its "
        "answers to held-out ones improve",
    )
    least_steps: int = Field(
        200, ge=0, le=1_000_000, description="a copy from few queries gets more passes, to take so many steps"
    )
    most_rounds: PositiveInt = Field(3, le=1000, description="of the copy from the most scores, at most")
    temperature: PositiveFloat = Field(
        3.0, le=1000, description="scores are compared after dividing logits by it: small probabilities tell a lot"
    )
    transfer_epsilon: float = Field(0.1, gt=0, le=1, description="L-inf, in [0, 1] units")
    transfer_steps: PositiveInt = Field(10, le=10_000, description="PGD steps on the copy")
    transfer_records: PositiveInt = Field(
        300, le=10_000_000, description="evaluation records attacked through the copy, at most"
    )

    @field_validator("budgets", "label_budgets")
    @classmethod
    def _ascending(cls, budgets: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if budgets is not None and list(budgets) != sorted(set(budgets)):
            raise ValueError("budgets must ascend and differ, for example [50, 150, 500]")
        return budgets

    @field_validator("answers")
    @classmethod
    def _different(cls, answers: tuple[Seen, ...]) -> tuple[Seen, ...]:
        if len(set(answers)) < len(answers):
            raise ValueError("answers must differ, for example [scores, labels]")
        return answers

    def budgets_of(self, answers: Seen) -> tuple[int, ...]:
        """The budgets of the attacker who sees these answers."""
        if answers == "labels":
            return self.label_budgets or self.budgets[-1:]
        return self.budgets

    @property
    def effort(self) -> Effort:
        """A round for each copy, two more of the largest and one for another architecture, and the crafted inputs."""
        sizes = [budget for answers in self.answers for budget in self.budgets_of(answers)]
        crafted = len(self.answers) * self.transfer_records * (1 + self.transfer_steps)
        batch, passes = self.training.batch_size, 0
        on_the_way = [one for answers in self.answers for one in rounds_of(self.strategy, self.budgets_of(answers)[-1])]
        for size in (*sizes, *[max(sizes)] * 3, *on_the_way):
            passes += max(self.training.epochs * size, self.least_steps * min(batch, size))
        asked = max(sizes) if self.strategy not in ROUNDS else len(self.answers) * max(sizes)
        return Effort(answers=asked + 2 * self.transfer_records, gradients=TRAINED * passes + crafted)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        judged = len(scope.data.evaluation_ids)  # by every copy, and by the deployed model
        copies = 1 + sum(len(self.budgets_of(answers)) for answers in self.answers)
        own = self.effort
        judging = own.gradients + FORWARD * copies * judged
        return (Run(effort=replace(own, answers=own.answers + judged, gradients=judging)),)

    def form(self, model: Audited, scope: Scope) -> Form:
        queries = {f"{answers}/{budget}": budget for answers in self.answers for budget in self.budgets_of(answers)}
        ids = scope.data.evaluation_ids.numpy()
        return evidence_form({**queries, UNQUERIED: 0}, self.budgets, ids, min(self.transfer_records, len(ids)))

    def measure(self, results: Results) -> list[Measurement]:
        return measure_extraction(results, max(self.budgets), self.transfer_epsilon, self.strategy)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", TRANSFERRED)

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        right = evidence.arrays["target_correct"]
        if basis.contradicted(evidence.arrays["ids"], right, right):
            return ["the records that the model classifies right are others"]
        return []

    def limits(self, scope: Scope) -> list[str]:
        return [
            "The extraction attacker knows the architecture family and owns records of the same distribution; one "
            "without either would need more queries."
        ]

    def run(self, case: Case, *, seed: int) -> Evidence:
        ledger = Ledger()
        seed = derive(seed, "extraction")  # also keeps a copy's initial weights from being the target's own
        device = case.evaluation.x.device if case.parent is None else device_of(case.parent)
        structure = known_structure(case)
        architecture, known = surrogate_architecture(
            case.parent, case.evaluation, case.classes, tokens=structure.tokens
        )
        builtin, _ = surrogate_architecture(None, case.evaluation, case.classes, tokens=structure.tokens)

        def fresh(kind: Architecture, *labels: str | int) -> nn.Module:
            return kind.fresh(derive(seed, *labels)).to(device).requires_grad_(True)

        asked = self._ask(case, partial(fresh, architecture), structure, ledger, seed=seed)
        own = min(max(self.budgets_of(answers)[-1] for answers in self.answers), len(case.attacker))
        owned = Records(
            choose_queries(case.attacker, own, seed=seed, structure=structure),
            choose_labels(case.attacker, own, seed=seed),
        ).to(device)

        pupils: dict[str, Pupil] = {}
        rivals: dict[str, Pupil] = {}
        spent: dict[str, int] = {}
        for answers in self.answers:
            budgets = self.budgets_of(answers)
            for budget in budgets:
                name = f"{answers}/{budget}"
                # labels alone say too little of how well a copy does
                whole = answers != "labels" and budget == budgets[-1]
                rounds, seeds = self.most_rounds if whole else 1, derive(seed, "train", name)
                taught = self._lesson(answers, *asked[answers].within(budget), device)
                pupils[name] = Pupil(fresh(architecture, name), taught, seeds, rounds)
                if known and whole:
                    rivals[name] = replace(pupils[name], start=fresh(builtin, name, "built-in"))
                spent[name] = budget
        truth = Lesson(owned, F.one_hot(owned.y, asked[self.answers[0]].logits.shape[1]).float())
        pupils[UNQUERIED] = Pupil(fresh(architecture, UNQUERIED), truth, derive(seed, "train", UNQUERIED))
        spent[UNQUERIED] = 0
        copies, chosen = self._copies(pupils, rivals, ledger)

        held = structure.held_in(tuple(case.evaluation.x.shape[1:]))
        arrays, judging = judge(
            replace(case, bounds=replace(case.bounds, held=held)),
            copies,
            [f"{answers}/{self.budgets_of(answers)[-1]}" for answers in self.answers],
            ledger,
            epsilon=self.transfer_epsilon,
            steps=self.transfer_steps,
            records=self.transfer_records,
            seed=seed,
        )
        for answers in self.answers:
            x, logits = asked[answers].within(self.budgets_of(answers)[-1])
            arrays[f"distances/{answers}"] = shortest_distances(x, logits.argmax(1))
        fidelity = {name: float(arrays[f"agrees/{name}"].mean()) for name in copies}
        summary: dict[str, Any] = {
            "copies": list(copies),
            "budgets": list(self.budgets),
            "queries": spent,
            "fidelity": fidelity,
            "copy accuracy": {name: float(arrays[f"copy_correct/{name}"].mean()) for name in copies},
            "fidelity without queries": fidelity[UNQUERIED],
            "transfer": {
                name: float(arrays[f"transfer/{name}"].mean()) for name in copies if f"transfer/{name}" in arrays
            },
            "architecture known": known,
            "built-in architecture": chosen,
            "records owned": len(case.attacker),
            "judging queries": judging,
        }
        return Evidence(arrays, summary, ledger=ledger)

    def _lesson(self, answers: Seen, x: Tensor, logits: Tensor, device: torch.device) -> Lesson:
        smoothing = self.training.label_smoothing
        told_of = told(logits.to(device), answers, self.temperature, smoothing, self.decimals)
        return Lesson(Records(x, logits.argmax(1)).to(device), *told_of)

    def _ask(
        self, case: Case, fresh: Callable[..., nn.Module], structure: Structure, ledger: Ledger, *, seed: int
    ) -> dict[Seen, Asked]:
        """What each attacker asked; all the same where nobody chooses by what is answered.

        Args:
            fresh: an untrained copy, by labels that decide its weights.
        """

        def answer(x: Tensor) -> Tensor:
            ledger.queries += len(x)
            logits = as_logits(case.deployed.logits(x))
            if not torch.isfinite(logits).all():
                raise NotApplicable(
                    "The deployed model answers some queries with NaN or infinity; nothing can be learnt."
                )
            return logits

        def asked_by(answers: Seen, budgets: Sequence[int]) -> Asked:
            def teach(x: Tensor, logits: Tensor, number: int) -> nn.Module:
                labels = ("choice", answers, number)
                start = fresh(*labels)
                pupil = Pupil(start, self._lesson(answers, x, logits, device_of(start)), derive(seed, *labels))
                copy = Tutor(self.training, self.least_steps).copy(pupil)
                ledger.add(copy.spent)
                return copy.module

            return ask(self.strategy, case.attacker, budgets, answer, teach, seed=seed, structure=structure)

        if self.strategy in ROUNDS:
            return {answers: asked_by(answers, self.budgets_of(answers)) for answers in self.answers}
        every = sorted({budget for answers in self.answers for budget in self.budgets_of(answers)})
        return dict.fromkeys(self.answers, asked_by(self.answers[0], every))

    def _copies(
        self, pupils: dict[str, Pupil], rivals: dict[str, Pupil], ledger: Ledger
    ) -> tuple[dict[str, nn.Module], list[str]]:
        """The copies in the order of their pupils, and for which of them the rival was better. Each is kept."""
        tutor, names = Tutor(self.training, self.least_steps), list(pupils)
        copies: dict[str, nn.Module] = {}
        chosen: set[str] = set()
        for group in tutor.groups(list(pupils.values())):
            together = [names[position] for position in group]
            taught = cache(partial(tutor.copies, [pupils[name] for name in together]))
            for place, name in enumerate(together):
                pulse("copy", len(copies), len(pupils))
                rival = rivals.get(name)

                def train(
                    spent: Ledger,
                    own: Callable[[], list[Copy]] = taught,
                    place: int = place,
                    rival: Pupil | None = rival,
                ) -> Arrays:
                    return weights(tutor, own()[place], rival, spent)

                start = pupils[name].start
                check = partial(check_copy, start, None if rival is None else rival.start)
                kept = kept_at_cost(f"copy/{name}", ledger, train, WEIGHTS, check)
                if bool(kept["built-in"].item()) and rival is not None:
                    chosen.add(name)
                    start = rival.start
                copies[name] = with_state(start, kept, "copy")
        pulse("copy", len(pupils), len(pupils))
        return {name: copies[name] for name in names}, [name for name in names if name in chosen]


def weights(tutor: Tutor, own: Copy, rival: Pupil | None, spent: Ledger) -> Arrays:
    """The weights of a copy (`copy/...`), and whether the rival was better (`built-in`)."""
    best = own if rival is None else tutor.better(own, rival)
    spent.add(best.spent)
    state = best.module.state_dict().items()
    arrays = {f"copy/{name}": tensor.detach().cpu().numpy().copy() for name, tensor in state}
    return {"built-in": np.array([best.module is not own.module]), **arrays}
