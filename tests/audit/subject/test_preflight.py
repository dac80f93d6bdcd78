"""Preflight: trials on a few records that refuse no honest model, what they cost, and models that answer with more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crushproof
from crushproof.attacks.effort import Effort
from crushproof.audit.plan.plan import DENSE, Plan
from crushproof.audit.subject.audited import DenseModel
from crushproof.audit.subject.preflight import Preflight, few_of, preflight, shortened
from crushproof.audit.subject.resolve import Subject
from crushproof.compression.recipe import RECIPES
from crushproof.targets.answers import answer_with_logits, answers_with_logits, as_written
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError
from crushproof.targets.plain import plain
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.trainer import BuiltinTrainer, Trainer, UserTrainer

CPU = torch.device("cpu")


def records(n: int, seed: int) -> Records:
    y = torch.arange(n) % 4
    x = torch.rand(n, 16, generator=torch.Generator().manual_seed(seed)) * 0.5
    x[torch.arange(n), y] += 0.5
    return Records(x, y)


def data(n: int = 300) -> Data:
    return Data("made", records(n, 0), records(80, 1), Bounds.of(0, 1), ("a", "b", "c", "d"))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def tried(trainer: Trainer, candidates: Any = None, build: Any = small, n: int = 300) -> Preflight:
    raw = {
        "data": {"kind": "memory", "name": "made"},
        "model": {"architecture": "memory:model"},
        "candidates": candidates or {"int8": "int8"},
    }
    dense = DenseModel(DENSE, Architecture("small", build), trainer)
    return preflight(Plan.model_validate(raw), Subject(data(n), dense, ""), CPU)


def test_a_function_that_needs_whole_batches_is_no_mistake() -> None:
    asked = []

    def whole_batches(module: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
        asked.append(len(x))
        losses = [
            nn.functional.cross_entropy(module(x[at : at + 1200]), y[at : at + 1200]).item()
            for at in range(0, len(x) - 1199, 1200)
        ]
        assert sum(losses) / len(losses) > 0
        return module

    found = tried(UserTrainer(whole_batches, "whole_batches"), n=1300)
    assert asked[:3] == [64, 1024, 1300]
    assert found.costs.training > 0


class Deciding(nn.Module):
    """Looks at values to decide its way, which no batched computation of several models can do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x * 2 if x.sum() > 1e9 else x)
        return logits


def test_a_forward_that_decides_by_values_is_trained_one_at_a_time() -> None:
    assert tried(BuiltinTrainer(Training(epochs=1)), build=Deciding).costs.training > 0
    subsets, seeds = [torch.arange(300)] * 2, [0, 1]
    fitted = [
        BuiltinTrainer(Training(epochs=1)).fit(
            TrainingJob(Architecture("one", Deciding), records(300, 0), subsets[:n], seeds[:n], CPU)
        )[0]
        for n in (1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(one.state_dict().values() for one in fitted), strict=True))


def test_the_price_of_a_training_is_that_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that takes 50 ms to set up and 1 ms for a step of one model: 6 epochs of 20 steps are 120 ms."""
    steps: list[int] = []

    def train_group(modules: list[nn.Module], records: Records, *rest: Any) -> None:
        steps.append(len(modules) * (len(records) // rest[-1].batch_size))

    def timed(work: Callable[[], object], device: torch.device) -> float:
        steps.clear()
        work()
        return 0.05 + 0.001 * sum(steps)

    monkeypatch.setattr("crushproof.audit.subject.prices.train_group", train_group)
    monkeypatch.setattr("crushproof.audit.subject.prices._timed", timed)
    found = tried(BuiltinTrainer(Training(epochs=6, batch_size=20)), n=400)
    assert found.costs.training == pytest.approx(0.12)


def test_a_recipe_that_cannot_is_told_and_the_others_go_on() -> None:
    heads = {"kind": "prune", "structure": "heads", "sparsity": 0.5}
    found = tried(BuiltinTrainer(Training(epochs=1)), {"int8": "int8", "heads": heads})
    assert [note.split()[0] for note in found.notes] == ["heads"]
    assert "its rows will say so" in found.notes[0]
    assert found.costs.twins.keys() == {"int8"}
    assert Effort(gradients=1e6, through="int8").at(found.costs) == 1e6 * found.costs.twins["int8"]
    assert Effort(gradients=1e6).at(found.costs) == 1e6 * found.costs.gradient
    with pytest.raises(InputError, match=r"No candidate can be made.*heads"):
        tried(BuiltinTrainer(Training(epochs=1)), {"heads": heads})


def test_a_recipe_is_tried_on_what_the_defense_makes_of_the_model() -> None:
    """DP-SGD puts group norm for batch norm, so that private fine-tuning works on what it trained."""
    private = {"epochs": 1, "private": {"noise_multiplier": 3.0}}
    tuned = {"kind": "prune", "sparsity": 0.5, "fine_tune": private}
    candidates = {name: {"recipe": tuned, "defense": name} for name in ("dp-sgd", "adversarial-training")}

    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    (note,) = tried(BuiltinTrainer(Training(epochs=1)), candidates, normed).notes
    assert note.startswith("adversarial-training cannot be made")
    assert "BatchNorm1d" in note


def test_preflight_leaves_no_trace() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    tried(BuiltinTrainer(Training(epochs=1)))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_trial_sees_every_class() -> None:
    made = data()
    assert made.members is not None
    order = torch.argsort(made.members.y)  # a file sorted by class
    sorted_by_class = Data("made", made.members.take(order), made.non_members, made.bounds, made.class_names)
    assert torch.bincount(few_of(sorted_by_class, 8).y).tolist() == [2, 2, 2, 2]


def test_every_training_in_a_recipe_is_made_short() -> None:
    prune = {"kind": "prune", "sparsity": 0.5, "fine_tune": {"epochs": 9}}
    chain = RECIPES.parse({"kind": "chain", "steps": [prune, {"kind": "quantize", "rounding": "adaptive"}]})
    short = shortened(chain).model_dump()
    assert short["steps"][0]["fine_tune"]["epochs"] == 1
    assert short["steps"][1]["rounding_steps"] == 1


class Answer(dict[str, Tensor]):
    """As Hugging Face's outputs: a dictionary whose values are attributes too."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Wordy(nn.Module):
    """Answers with more than its logits."""

    def __init__(self, sort: str = "mapping") -> None:
        super().__init__()
        self.sort, self.body = sort, small()

    def forward(self, x: Tensor) -> Any:
        logits = self.body(x)
        if self.sort == "object":
            return type("Output", (), {"logits": logits})()
        return Answer(logits=logits, hidden=x)


@pytest.mark.parametrize("sort", ["mapping", "object"])
def test_a_model_that_answers_with_more_is_made_to_answer_with_its_logits(sort: str) -> None:
    own = Wordy(sort)
    module, notes = plain(own, records(2, 0).x)
    x = records(5, 2).x
    for one in (module, copy.deepcopy(module)):
        assert answers_with_logits(one)
        assert isinstance(one, Wordy)
        assert type(one) is type(module)
        assert torch.equal(one(x), own.body(x))
        assert one.state_dict().keys() == own.state_dict().keys()
    assert "logits in it are audited" in notes[0]
    assert type(as_written(copy.deepcopy(module))) is Wordy
    assert not answers_with_logits(plain(small(), x)[0])
    assert answers_with_logits(answer_with_logits(module))


def wordy_training(module: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """A user's own function, which knows the model's answers as they are."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x).logits, y).backward()
        optimizer.step()
    return module


@pytest.mark.usefixtures("undrawn", "without_forests")
def test_such_a_model_is_audited_with_its_own_training() -> None:
    train, test = records(80, 0), records(80, 1)
    model = wordy_training(Wordy(), train.x, train.y, 0)
    result = crushproof.audit_model(
        model,
        (train.x, train.y),
        (test.x, test.y),
        ["int8"],
        training=wordy_training,
        attacks=["membership"],
        shadows={"training_free": 2, "trained": 2},
    )
    assert {row.name for row in result.audit.candidates} == {"dense", "int8"}
    assert not [gap for gap in result.audit.not_measured if "logits" in gap.reason]
    assert result.audit.candidates[0].accuracy.estimate > 0.7  # of four classes
