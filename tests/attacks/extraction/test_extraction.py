"""Extraction: what a copy learns from answers, and that it learns from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.extraction.asking.queries import choose_labels, choose_queries
from crushproof.attacks.extraction.copying import at_least, match_answers
from crushproof.attacks.extraction.evidence_form import evidence_form
from crushproof.attacks.extraction.extraction import UNQUERIED, Extraction
from crushproof.attacks.measurement import Measurement, Rate
from crushproof.attacks.preparation import Audited, Results
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import MisfitError
from crushproof.targets.model import Target, TorchTarget
from crushproof.targets.seeds import generator
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp


def clusters(count: int, seed: int) -> Records:
    """Three well separated clouds in the unit square."""
    stream = generator(seed, "clusters")
    y = torch.randint(3, (count,), generator=stream)
    centres = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
    return Records((centres[y] + 0.05 * torch.randn(count, 2, generator=stream)).clamp(0, 1), y)


def case_of(target: Target, parent: nn.Module | None) -> Case:
    evaluation, attacker = clusters(120, 1), clusters(60, 2)
    ids = np.arange(len(evaluation))
    return Case(target, parent, parent, parent, evaluation, ids, attacker, Bounds.of(0, 1), 3)


class Spy:
    """Answers as the model within and keeps what it was asked."""

    def __init__(self, module: nn.Module) -> None:
        self.target, self.asked = TorchTarget(module), list[Tensor]()

    @property
    def queries(self) -> int:
        return self.target.queries

    @queries.setter
    def queries(self, value: int) -> None:
        self.target.queries = value

    def logits(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return self.target.logits(x)


class Arbitrary:
    """Answers each input with a label that has nothing to do with it, the same each time."""

    queries = 0

    def logits(self, x: Tensor) -> Tensor:
        labels = ((x * 1e5).round().long().sum(1) * 2654435761 // 65536) % 3
        return torch.nn.functional.one_hot(labels, 3).float() * 10


@pytest.fixture(scope="module")
def simple() -> nn.Module:
    torch.manual_seed(0)
    return train(Mlp(2, 3, (16,)), clusters(200, 0), Training(epochs=20, learning_rate=0.02), seed=0)


@pytest.fixture(scope="module")
def attack() -> Extraction:
    return Extraction(budgets=(20, 90), label_budgets=(90,))


@pytest.fixture(scope="module")
def spied(simple: nn.Module, attack: Extraction) -> tuple[Spy, Evidence]:
    spy = Spy(simple)
    return spy, attack.run(case_of(spy, simple.requires_grad_(False)), seed=0)


def test_a_simple_model_is_copied_faithfully(spied: tuple[Spy, Evidence]) -> None:
    _, evidence = spied
    assert evidence.summary["copies"] == ["scores/20", "scores/90", "labels/90", UNQUERIED]
    assert evidence.summary["architecture known"] is True
    for name in ("scores/90", "labels/90"):
        assert evidence.arrays[f"agrees/{name}"].mean() >= 0.97
        assert evidence.arrays[f"copy_correct/{name}"].mean() >= 0.97
        assert evidence.arrays[f"transfer/{name}"].shape == (120,)
        assert evidence.summary["queries"][name] == 90
    assert evidence.arrays["target_correct"].mean() >= 0.97
    assert evidence.summary["fidelity"]["scores/90"] == evidence.arrays["agrees/scores/90"].mean()


def test_arbitrary_answers_are_not_copied() -> None:
    attack = Extraction(budgets=(90,), answers=("scores",), least_steps=40, most_rounds=1, transfer_records=5)
    evidence = attack.run(case_of(Arbitrary(), None), seed=0)
    assert evidence.summary["architecture known"] is False
    for fidelity in evidence.summary["fidelity"].values():
        assert fidelity <= 0.55  # chance is 1/3


def test_every_query_is_counted(spied: tuple[Spy, Evidence]) -> None:
    spy, evidence = spied
    assert evidence.ledger.queries == len(spy.asked[0]) == 90
    assert evidence.summary["judging queries"] == 120 + 2 * 120
    assert spy.queries == 90 + 360 == sum(map(len, spy.asked))


def test_no_evaluation_record_is_asked_before_the_copies_are_finished(spied: tuple[Spy, Evidence]) -> None:
    spy, _ = spied
    evaluation = clusters(120, 1).x
    assert torch.equal(spy.asked[1], evaluation)  # the first judging answer
    distance = torch.cdist(spy.asked[0], evaluation)
    assert (distance > 0).all()
    assert torch.equal(spy.asked[0][:60].sort(0).values, clusters(60, 2).x.sort(0).values)  # the attacker's own first


def test_the_same_seed_gives_the_same_evidence_and_another_one_other_copies(simple: nn.Module) -> None:
    quick = Extraction(budgets=(20,), answers=("scores",), least_steps=5, training=Training(epochs=1))
    first, again, other = (quick.run(case_of(TorchTarget(simple), simple), seed=seed) for seed in (0, 0, 1))
    assert first.summary == again.summary
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert set(first.arrays) == {
        *("ids", "target_correct", "agrees/scores/20", "copy_correct/scores/20", "transfer/scores/20"),
        *("distances/scores", "distances/honest"),
        *(f"agrees/{UNQUERIED}", f"copy_correct/{UNQUERIED}"),
    }
    assert any(not np.array_equal(first.arrays[name], other.arrays[name]) for name in first.arrays)


def test_a_smaller_budget_asks_a_prefix_and_mixes_stay_within_the_bounds() -> None:
    attacker = clusters(30, 3)
    queries = choose_queries(attacker, 100, seed=5)
    assert torch.equal(queries[:40], choose_queries(attacker, 40, seed=5))
    assert len(torch.unique(queries, dim=0)) == 100
    low, high = attacker.x.amin(0), attacker.x.amax(0)
    assert ((queries >= low) & (queries <= high)).all()
    labels = {tuple(x.tolist()): int(y) for x, y in zip(attacker.x, attacker.y, strict=True)}
    own = choose_labels(attacker, 100, seed=5)
    assert [labels[tuple(x.tolist())] for x in queries[:30]] == own.tolist()


def test_matching_scores_is_a_stable_kl_divergence() -> None:
    answers = torch.tensor([[2.0, 0.0, -1.0], [900.0, 0.0, -900.0]])
    objective = match_answers(torch.softmax(answers / 3, 1), torch.full((2,), 3.0), Ledger())
    index = torch.tensor([[1, 0]])

    def losses(learnt: Tensor) -> Tensor:
        return objective(lambda x: learnt, torch.zeros(1, 2, 2), index, index, [])

    assert losses(answers[index] + 7).abs().max() < 1e-5  # logits count up to a constant
    learnt = torch.tensor([[[0.3, 0.1, 0.0], [1.0, 2.0, 3.0]]])
    p, q = torch.softmax(answers.double() / 3, 1)[0], torch.softmax(learnt.double()[0, 1] / 3, 0)
    assert losses(learnt)[0, 1].item() == pytest.approx(9 * (p * (p / q).log()).sum().item(), rel=1e-5)
    assert torch.isfinite(losses(learnt)).all()


def test_few_queries_get_more_epochs() -> None:
    training = Training(epochs=10, batch_size=32)
    assert at_least(training, 120, 500).epochs == 10
    assert at_least(training, 120, 150).epochs == 30
    assert at_least(training, 120, 20).epochs == 120


def judged(attack: Extraction, evidence: Evidence, baseline: Evidence | None = None) -> list[Measurement]:
    """What is measured of a model's evidence, and of that of the dense model where it is given."""
    known = {"small": evidence, "dense": baseline}
    model = SimpleNamespace(name="small", baselines=("dense",))
    results = SimpleNamespace(
        model=model, evidence=lambda ran: known[ran.model], flags=lambda name: set(), why=lambda ran: "it did not run"
    )
    return attack.measure(cast(Results, results))


@pytest.fixture(scope="module")
def coarse() -> Extraction:
    return Extraction(
        budgets=(30, 110),
        label_budgets=(110,),
        answers=("labels", "top1", "rounded"),
        strategy="adaptive",
        decimals=1,
        least_steps=20,
        most_rounds=1,
        transfer_records=40,
    )


@pytest.fixture(scope="module")
def coarsely(simple: nn.Module, coarse: Extraction) -> Evidence:
    return coarse.run(case_of(TorchTarget(simple), simple.requires_grad_(False)), seed=0)


def test_coarse_answers_to_chosen_queries_have_rows_of_their_own(coarse: Extraction, coarsely: Evidence) -> None:
    assert coarsely.ledger.queries == 3 * 110, "each attacker chooses by what it sees"
    fidelity, transfer = judged(coarse, coarsely, coarsely)
    assert [one.detail for one in (fidelity, transfer)] == list(coarse.details(cast(Audited, None)))
    assert [part.name for part in fidelity.parts if part.headline] == ["rounded/110"]
    assert {part.name for part in fidelity.parts} == {
        f"{one}/{n}" for one in ("top1", "rounded") for n in (30, 110)
    } | {"labels/110"}
    assert "adaptive queries" in fidelity.attack
    assert isinstance(transfer.outcome, Rate)
    assert len(transfer.outcome.successes) == 40
    assert np.array_equal(coarsely.arrays["transfer/rounded/110"], transfer.outcome.successes)
    assert [one.baseline for one in transfer.comparisons] == ["dense"]
    notes = " ".join(fidelity.notes)
    assert notes.count("A fidelity of 90 % takes") == 3
    assert "To answer with labels instead of rounded changes the copy's fidelity after 110 queries by" in notes
    assert "threshold" in notes


def test_the_figure_is_of_the_copy_that_the_attacker_keeps(coarse: Extraction, coarsely: Evidence) -> None:
    arrays = {**coarsely.arrays, f"transfer/{UNQUERIED}": ~coarsely.arrays["transfer/rounded/110"]}
    owner = replace(coarsely, arrays=arrays, summary={**coarsely.summary, "kept": UNQUERIED})
    fidelity, transfer = judged(coarse, owner, coarsely)
    assert "own labels" in fidelity.attack
    for found, sort in ((fidelity, "agrees"), (transfer, "transfer")):
        assert isinstance(found.outcome, Rate)
        assert np.array_equal(found.outcome.successes, arrays[f"{sort}/{UNQUERIED}"])
        (against,) = found.comparisons
        assert np.array_equal(against.theirs.successes, arrays[f"{sort}/rounded/110"]), "the best of each is compared"
    assert [part.name for part in fidelity.parts if part.headline] == [UNQUERIED]


def test_stored_evidence_is_of_its_form(coarse: Extraction, coarsely: Evidence) -> None:
    spent = {"labels/110": 110, "top1/30": 30, "top1/110": 110, "rounded/30": 30, "rounded/110": 110, UNQUERIED: 0}
    form = evidence_form(spent, coarse.budgets, np.arange(120), 40)

    def check(arrays: dict[str, Any]) -> None:
        stored = json.dumps(coarsely.summary, sort_keys=True)  # 110 before 30, as names
        form.check(stored.encode(), json.loads(stored), arrays, {})

    check(coarsely.arrays)
    for name in ("distances/labels", "distances/honest"):
        assert (coarsely.arrays[name] == -1).sum() == 3, "the first of each class"
        for forged in (coarsely.arrays[name][:-1], coarsely.arrays[name] - 1):
            with pytest.raises(MisfitError, match=name):
                check({**coarsely.arrays, name: forged})


def test_what_did_not_run_is_said_twice(coarse: Extraction) -> None:
    found = judged(coarse, cast(Evidence, None))
    assert [(one.metric.name, one.outcome, one.reason) for one in found] == [
        ("fidelity", None, "it did not run"),
        ("copy_transfer", None, "it did not run"),
    ]


def test_answers_that_are_not_numbers_are_refused(attack: Extraction) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), torch.nan)

    with pytest.raises(NotApplicable, match="NaN"):
        attack.run(case_of(TorchTarget(Broken()), None), seed=0)


@pytest.mark.parametrize(
    "fields",
    [{"budgets": (150, 50)}, {"budgets": ()}, {"label_budgets": (5, 5)}, {"steps": 1}, {"answers": ("top1", "top1")}],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Extraction.model_validate(fields)


def test_the_digits_model_is_extracted(digits: Data, dense: nn.Module) -> None:
    ids = digits.evaluation_ids.numpy()
    target = TorchTarget(dense)
    case = Case(target, dense, dense, dense, digits.evaluation, ids, digits.attacker, digits.bounds, digits.classes)
    attack = Extraction(budgets=(150,), answers=("scores",), most_rounds=1, transfer_records=50)
    evidence = attack.run(case, seed=0)  # more queries: benchmarks/extraction.py
    assert evidence.summary["fidelity"]["scores/150"] >= 0.93
    clean_errors = 1 - evidence.arrays["target_correct"].mean()
    assert evidence.summary["transfer"]["scores/150"] > clean_errors + 0.05
