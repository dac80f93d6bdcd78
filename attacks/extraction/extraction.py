"""Extraction: a copy of the deployed model, trained from its answers alone, and what the copy is good for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Records
from ...targets.data.structure import PLAIN, Structure
from ...targets.errors import NotApplicable
from ...targets.form import Array, Form
from ...targets.model import TorchTarget, device_of
from ...targets.seeds import derive, generator
from ...targets.steps import Arrays, pulse
from ...training.architecture import Architecture, unresettable
from ...training.loop import Forward, Objective, Training, cross_entropy
from ...training.networks import Mlp, ResidualCnn, TokenGru
from ..access import Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import FORWARD, Effort
from ..evasion.blocks import kept_at_cost
from ..evasion.categories import known_structure
from ..evasion.gradient.pgd import craft
from ..measurement import Measurement
from ..preparation import Audited, Basis, Results, Scope
from ..risk import Metric, Risk
from .copying import Lesson, Tutor, check_copy, with_state
from .evidence_form import evidence_form
from .measure import measure_extraction
from .mixing import mixed
from .risk import EXTRACTION, FIDELITY

Answers = Literal["scores", "labels"]

Queries = Annotated[int, Field(gt=0, le=10_000_000)]
TRAINED = 2.0  # gradients of inputs that a record costs in training: weights and statistics of batches have some, too
UNQUERIED = "without-queries"  # the copy that shows what the queries bought
WEIGHTS = {"built-in": Array("bool", (1,)), "*": Array(finite=False)}  # of a copy that is kept


@ATTACKS.register
class Extraction(Attack):
    """Trains a copy of the model from its answers to chosen queries (Tramèr et al. 2016; Orekondy et al. 2019).

    The attacker asks for the records it owns and, beyond them, for mixes of two of them (`mixing.mixed`). It knows the
    architecture of the uncompressed model when that is at hand, and trains a built-in one otherwise, or where that
    learns the answers it held out better (`Tutor.better`). A copy from more queries goes on from the one from fewer.
    A copy is judged by its fidelity (it gives the deployed model's label), its accuracy, and by whether adversarial
    examples crafted on it fool the deployed model. A copy trained on the attacker's own labels, without a query, shows
    what the queries bought. Each copy is kept as it is finished (`targets.steps.kept`).

    Evidence on all evaluation records, n of them; C is `<answers>/<budget>` or `without-queries`:
        `ids` int64 [n]; `target_correct` bool [n]; `agrees/C` and `copy_correct/C` bool [n], the copy's label against
        the deployed model's and the true one; `transfer/C` bool [m], for the largest budget of each sort of answers:
        the deployed model misclassifies the copy's adversarial example of evaluation record 0 .. m - 1, or the record
        itself (clean errors count, as in robust accuracy); not for token ids.
    Summary: `copies` (every C in order), `budgets`, `queries` (spent on each copy), `fidelity` and `copy accuracy` by
    copy, `fidelity without queries`, `transfer` by copy, `architecture known`, `built-in architecture` (the copies for
    which that was better than the known one), `records owned`, `judging queries` (asked to judge the copies; no
    attacker spends them, so the ledger leaves them out).
    """

    risk: ClassVar[Risk] = EXTRACTION
    metrics: ClassVar[tuple[Metric, ...]] = (FIDELITY,)

    kind: Literal["extraction"] = "extraction"
    budgets: tuple[Queries, ...] = Field((50, 150, 500), min_length=1, max_length=100, description="queries, ascending")
    answers: tuple[Answers, ...] = Field(
        ("scores", "labels"), min_length=1, description="what the attacker sees of an answer: all logits, or the class"
    )
    label_budgets: tuple[Queries, ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="queries of the attacker who sees labels only; default: the largest budget",
    )
    training: Training = Field(
        Training(epochs=8, batch_size=16, learning_rate=5e-3),
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

    def budgets_of(self, answers: Answers) -> tuple[int, ...]:
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
        for size in (*sizes, *[max(sizes)] * 3):
            passes += max(self.training.epochs * size, self.least_steps * min(batch, size))
        return Effort(answers=max(sizes) + 2 * self.transfer_records, gradients=TRAINED * passes + crafted)

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
        return measure_extraction(results, max(self.budgets), self.transfer_epsilon)

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

        most = max(budget for answers in self.answers for budget in self.budgets_of(answers))
        x = choose_queries(case.attacker, most, seed=seed, structure=structure)
        logits = case.deployed.logits(x)
        ledger.queries += len(x)
        if not torch.isfinite(logits).all():
            raise NotApplicable("The deployed model answers some queries with NaN or infinity; nothing can be learnt.")

        def fresh(kind: Architecture, *labels: str | int) -> nn.Module:
            return kind.fresh(derive(seed, *labels)).to(device).requires_grad_(True)

        def lesson(answers: str, budget: int) -> Lesson:
            queried, told = Records(x[:budget], logits[:budget].argmax(1)).to(device), logits[:budget].to(device)
            if answers == "scores":
                softened = torch.softmax(told / self.temperature, 1)
                return Lesson(queried, softened, match_scores(told, self.temperature), self.temperature)
            return Lesson(queried, F.one_hot(queried.y, told.shape[1]).float(), cross_entropy(self.training))

        total = 1 + sum(len(self.budgets_of(answers)) for answers in self.answers)
        copies: dict[str, nn.Module] = {}
        spent: dict[str, int] = {}
        chosen: list[str] = []
        for answers in self.answers:
            before = fresh(architecture, answers)
            budgets = self.budgets_of(answers)
            for budget in budgets:
                name = f"{answers}/{budget}"
                pulse("copy", len(copies), total)
                # labels alone say too little of how well a copy does, and smaller copies are gone on from
                whole = answers == "scores" and budget == budgets[-1]
                rival = fresh(builtin, name, "built-in") if known and whole else None
                rounds = self.most_rounds if whole else 1
                train = partial(self._copy, before, rival, lesson(answers, budget), rounds, derive(seed, "train", name))
                kept = kept_at_cost(f"copy/{name}", ledger, train, WEIGHTS, partial(check_copy, before, rival))
                if bool(kept["built-in"].item()):
                    chosen.append(name)
                copies[name] = with_state(rival if name in chosen and rival is not None else before, kept, "copy")
                before, spent[name] = with_state(before, kept, "before"), budget
        pulse("copy", total - 1, total)
        owned = Records(x, choose_labels(case.attacker, most, seed=seed)).take(
            torch.arange(min(most, len(case.attacker)))
        )
        owned = owned.to(device)
        truth = Lesson(owned, F.one_hot(owned.y, logits.shape[1]).float(), cross_entropy(self.training))
        start = fresh(architecture, UNQUERIED)
        train = partial(self._copy, start, None, truth, 1, derive(seed, "train", UNQUERIED))
        kept = kept_at_cost(f"copy/{UNQUERIED}", ledger, train, WEIGHTS, partial(check_copy, start, None))
        copies[UNQUERIED] = with_state(start, kept, "copy")
        spent[UNQUERIED] = 0
        pulse("copy", total, total)

        held = structure.held_in(tuple(x.shape[1:]))
        arrays, judging = self._judge(replace(case, bounds=replace(case.bounds, held=held)), copies, ledger, seed=seed)
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

    def _copy(
        self, start: nn.Module, rival: nn.Module | None, lesson: Lesson, rounds: int, seed: int, ledger: Ledger
    ) -> Arrays:
        """The weights of a copy (`copy/...`), of what the next one goes on from, and whether the rival was better."""
        tutor = Tutor(self.training, self.least_steps, rounds, ledger)
        own = tutor.copy(start, lesson, seed)
        best = own if rival is None else tutor.better(own, rival, lesson, seed)
        arrays = {"built-in": np.array([best is not own])}
        for prefix, module in (("copy", best.module), ("before", own.before)):
            for name, tensor in module.state_dict().items():
                arrays[f"{prefix}/{name}"] = tensor.detach().cpu().numpy().copy()
        return arrays

    def _judge(
        self, case: Case, copies: dict[str, nn.Module], ledger: Ledger, *, seed: int
    ) -> tuple[dict[str, np.ndarray[Any, Any]], int]:
        """The evidence arrays, and how many answers of the deployed model they took."""
        evaluation = case.evaluation
        truth = case.deployed.logits(evaluation.x).argmax(1)
        judging = len(evaluation)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "ids": case.ids,
            "target_correct": (truth == evaluation.y).cpu().numpy(),
        }
        for name, module in copies.items():
            labels = TorchTarget(module).logits(evaluation.x).argmax(1)
            arrays[f"agrees/{name}"] = (labels == truth).cpu().numpy()
            arrays[f"copy_correct/{name}"] = (labels == evaluation.y).cpu().numpy()
        attacked = evaluation.take(torch.arange(min(self.transfer_records, len(evaluation))))
        held = case.bounds.held
        for answers in () if held is not None and bool(held.all()) else self.answers:  # no epsilon changes an id
            name = f"{answers}/{self.budgets_of(answers)[-1]}"
            epsilon = self.transfer_epsilon
            crafted = craft(
                copies[name],
                attacked,
                [epsilon],
                "linf",
                case.bounds,
                seed=derive(seed, "transfer"),
                steps=self.transfer_steps,
                ledger=ledger,
                name=f"transfer/{name}",
            )[epsilon]
            wrong = (case.deployed.logits(crafted).argmax(1) != attacked.y) | (truth != evaluation.y)[: len(attacked)]
            judging += len(attacked)
            arrays[f"transfer/{name}"] = wrong.cpu().numpy()
        return arrays, judging


def surrogate_architecture(
    parent: nn.Module | None, records: Records, classes: int, *, tokens: bool = False
) -> tuple[Architecture, bool]:
    """What the attacker trains, and whether it is the parent's own architecture."""
    if parent is not None and unresettable(parent) is None:  # else the attacker falls back on its own
        return Architecture.like(parent, "parent"), True
    shape = tuple(records.x.shape[1:])
    if tokens:
        words = int(records.x.max()) + 1
        return Architecture("token gru", lambda: TokenGru(words, classes)), False
    if len(shape) == 3 and min(shape[1:]) >= 4:
        return Architecture("residual cnn", lambda: ResidualCnn(classes, in_channels=shape[0])), False
    return Architecture("mlp", lambda: Mlp(math.prod(shape), classes)), False


def _own_order(attacker: Records, seed: int) -> Tensor:
    return torch.randperm(len(attacker), generator=generator(seed, "own records")).to(attacker.y.device)


def choose_queries(attacker: Records, count: int, *, seed: int, structure: Structure = PLAIN) -> Tensor:
    """What is asked: the attacker's records in random order, then mixes of two of them; a smaller budget is a prefix.

    Args:
        count: queries to choose.
        structure: of the records; a mix is one as well.

    Returns:
        float32 [count, *shape].
    """
    x = attacker.x[_own_order(attacker, seed)[:count]]
    more = count - len(x)
    if more <= 0:
        return x
    chance = torch.rand(more, 3, generator=generator(seed, "mixes"), dtype=torch.float64).to(x.device)
    first = (chance[:, 0] * len(attacker)).long()
    second = (first + 1 + (chance[:, 1] * (len(attacker) - 1)).long()) % len(attacker)  # another one, where there is
    share = 0.5 + 0.5 * chance[:, 2]
    return torch.cat([x, mixed(attacker.x[first], attacker.x[second], share, structure, seed=seed)])


def choose_labels(attacker: Records, count: int, *, seed: int) -> Tensor:
    """The true labels of the attacker's own records among the queries, int64 [min(count, own)], in their order."""
    return attacker.y[_own_order(attacker, seed)[:count]]


def match_scores(logits: Tensor, temperature: float) -> Objective:
    """KL divergence from the answered to the copy's distribution, both softened (Hinton et al. 2015).

    It is scaled by temperature^2, as distillation is, and computed from logits: an answer of probability 1 is no
    trouble.

    Args:
        logits: the answers, float32 [n, classes], looked up by index.
    """
    answered = F.log_softmax(logits / temperature, 1)

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        learnt = F.log_softmax(forward(x) / temperature, -1)
        target = answered[index.to(answered.device)]
        return temperature**2 * F.kl_div(learnt, target, reduction="none", log_target=True).sum(-1)

    return objective
