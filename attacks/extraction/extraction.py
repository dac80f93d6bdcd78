"""Extraction: a copy of the deployed model, trained from its answers alone, and what the copy is good for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from ...targets.form import Form
from ...targets.seeds import derive
from ...training.loop import Training
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import FORWARD, Effort
from ..evasion.categories import known_structure
from ..measurement import Measurement
from ..preparation import Audited, Basis, Results, Scope
from ..risk import Metric, Risk
from .answers import DECIMALS, Seen
from .asking.strategies import USUAL, Strategy
from .evidence_form import evidence_form
from .judging import judge
from .measure import TRANSFERRED, measure_extraction
from .preparations import TRAINED, copies_with
from .risk import EXTRACTION, FIDELITY, TRANSFER
from .teaching import UNQUERIED, Attacker, Taught, question, teach

Queries = Annotated[int, Field(gt=0, le=10_000_000)]


@ATTACKS.register
class Extraction(Attack):
    """Trains a copy of the model from its answers to chosen queries (Tramèr et al. 2016; Orekondy et al. 2019).

    What it asks follows from the strategy (`strategies.ask`): records it owns and, beyond them, mixes of two of them
    (`mixing.mixed`), or what it makes of them. It knows the architecture of the uncompressed model when that is at
    hand. Otherwise it trains a built-in one: of images that which fits the file's size and of which a short copy gives
    most held-out answers (`surrogate.guess`). So it does where a built-in one of other layers learns better
    (`Tutor.better`). Copies are trained side by side (`Tutor.groups`), in an audit those of several models (`Copies`).
    A copy is judged by its fidelity (it gives the deployed model's label), its accuracy, and by whether adversarial
    examples crafted on it fool the deployed model. A copy trained on the attacker's own labels, without a query, shows
    what the queries bought; the attacker keeps it where it gives more of the answers that both held out. Each copy is
    stored as it is finished (`targets.steps.kept`).

    Evidence on all evaluation records, n of them; C is `<answers>/<budget>` or `without-queries`, A a sort of answers:
        `ids` int64 [n]; `target_correct` bool [n]; `agrees/C` and `copy_correct/C` bool [n], the copy's label against
        the deployed model's and the true one; `transfer/C` bool [m], for the largest budget of each sort of answers
        and the copy kept: the deployed model misclassifies the copy's adversarial example of evaluation record
        0 .. m - 1, or the record itself (clean errors count, as in robust accuracy); not for token ids. `distances/A`
        float32 [k], of the queries of the largest budget in their order, and `distances/honest`, of the evaluation
        records, the first 2,000: each one's distance to the nearest earlier one of its class
        (`query_streams.shortest_distances`).
    Summary: `copies` (every C in order), `kept` (the one that the attacker keeps), `budgets`, `queries` (spent on each
    copy), `fidelity` and `copy accuracy` by copy, `fidelity without queries`, `transfer` by copy, `architecture known`,
    `architecture guessed` (in words, where it is not and there is a choice), `built-in architecture` (the copies for
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
    def attacker(self) -> Attacker:
        """How it asks and trains."""
        return Attacker(
            tuple((answers, self.budgets_of(answers)) for answers in self.answers),
            self.decimals,
            self.strategy,
            self.training,
            self.least_steps,
            self.most_rounds,
            self.temperature,
        )

    @property
    def effort(self) -> Effort:
        """What is asked, the copies, and the crafted inputs."""
        asked = self.attacker.asked + 2 * self.transfer_records
        return Effort(answers=asked, gradients=TRAINED * self.attacker.passes + self._crafted)

    @property
    def _crafted(self) -> int:
        return len(self.answers) * self.transfer_records * (1 + self.transfer_steps)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        judged = len(scope.data.evaluation_ids)  # by every copy, and by the deployed model
        judging, own = FORWARD * len(self.attacker.queries) * judged, self.effort
        shared = copies_with(self.attacker, model, scope)
        if shared is None:
            return (Run(effort=replace(own, answers=own.answers + judged, gradients=own.gradients + judging)),)
        effort = Effort(answers=2 * self.transfer_records + judged, gradients=self._crafted + judging)
        return (Run(needs=(shared,), prepare=partial(shared.taught, model.name), effort=effort),)

    def form(self, model: Audited, scope: Scope) -> Form:
        ids = scope.data.evaluation_ids.numpy()
        return evidence_form(self.attacker.queries, self.budgets, ids, min(self.transfer_records, len(ids)))

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
        taught = case.prepared
        if not isinstance(taught, Taught):
            taught = teach(self.attacker, {"": question(self.attacker, case, seed=seed)})[""]
        copies, spent = taught.copies, replace(taught.ledger)
        held = known_structure(case).held_in(tuple(case.evaluation.x.shape[1:]))
        arrays, judging = judge(
            replace(case, bounds=replace(case.bounds, held=held)),
            copies,
            list(
                dict.fromkeys(
                    [*(f"{answers}/{budgets[-1]}" for answers, budgets in self.attacker.budgets), taught.kept]
                )
            ),
            spent,
            epsilon=self.transfer_epsilon,
            steps=self.transfer_steps,
            records=self.transfer_records,
            seed=derive(seed, "extraction"),
        )
        arrays |= {f"distances/{answers}": distances for answers, distances in taught.distances.items()}
        fidelity = {name: float(arrays[f"agrees/{name}"].mean()) for name in copies}
        summary: dict[str, Any] = {
            "copies": list(copies),
            "budgets": list(self.budgets),
            "queries": self.attacker.queries,
            "kept": taught.kept,
            "fidelity": fidelity,
            "copy accuracy": {name: float(arrays[f"copy_correct/{name}"].mean()) for name in copies},
            "fidelity without queries": fidelity[UNQUERIED],
            "transfer": {
                name: float(arrays[f"transfer/{name}"].mean()) for name in copies if f"transfer/{name}" in arrays
            },
            "architecture known": taught.known,
            "architecture guessed": taught.guessed,
            "built-in architecture": taught.builtin,
            "records owned": len(case.attacker),
            "judging queries": judging,
        }
        return Evidence(arrays, summary, ledger=spent)
