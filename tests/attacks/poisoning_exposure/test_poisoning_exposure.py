"""Poisoning exposure: what is planted, that the error rises with the share, that an identity changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.case import Evidence
from crushproof.attacks.measurement import Crossed, Measurement
from crushproof.attacks.poisoning_exposure.calibration import Method, calibrated_answers
from crushproof.attacks.poisoning_exposure.measure import CALIBRATION, FLIPS, PATCHED, records_to_break
from crushproof.attacks.poisoning_exposure.planting import PATCH, RANDOM, TARGETED, Pair, Poisoning, changes, patched
from crushproof.attacks.poisoning_exposure.poisoning_exposure import PoisoningExposure
from crushproof.attacks.poisoning_exposure.preparations import PoisonedAnswers, PoisonedCalibration
from crushproof.attacks.preparation import Preparation, Prepared, Scope
from crushproof.attacks.statistics.crossed import crossed_change, crossed_rate
from crushproof.attacks.statistics.rates import clopper_pearson, tango
from crushproof.audit.findings.estimates import change, estimate
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import Recipe
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.form import check_arrays
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

CLASSES, SIDE = 3, 4
BOUNDS = Bounds.of(0, 1)


def images(n: int, seed: int) -> Records:
    """A row of each image is bright, by which its class is told."""
    stream = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = 0.5 * torch.rand((n, 1, SIDE, SIDE), generator=stream)
    x[torch.arange(n), 0, y] += 0.4
    return Records(x, y)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data("rows", images(120, 1), images(180, 2), BOUNDS, tuple("abc"))


class Identity(Recipe):
    kind: Literal["identity"] = "identity"
    touches_records: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    phrase: ClassVar[str] = "as it is"

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        return module


@dataclass
class World:
    """Stands for the audit: computes what is declared, once, and answers as `Inputs` and `Results` do."""

    scope: Any
    dense: nn.Module
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    level: float = 0.95
    model: Any = None
    done: dict[str, Prepared] = field(default_factory=dict)
    found: dict[str, Evidence] = field(default_factory=dict)

    def deployed(self, model: str) -> TorchTarget:
        return TorchTarget(self.dense)

    def weights(self, dense: str) -> nn.Module:
        return self.dense

    def prepared(self, one: Preparation) -> Prepared:
        if one.name not in self.done:
            for need in one.needs:
                if isinstance(need, Preparation):
                    self.prepared(need)
            self.done[one.name] = one.compute(self)
        return self.done[one.name]

    def evidence(self, ran: Any) -> Evidence | None:
        return self.found.get(ran.model)

    def why(self, ran: Any) -> str:
        return "it failed"

    def flags(self, model: str) -> set[str]:
        return set()

    def run(self, attack: PoisoningExposure, name: str) -> dict[str, Measurement]:
        model = self.scope.models[name]
        (run,) = attack.runs(model, self.scope)
        case = replace(case_of(self.scope.data, self.dense), prepared=run.prepare and run.prepare(self))
        self.found[name] = attack.run(case, seed=0)
        self.model = model
        return {one.detail: one for one in attack.measure(self)}


@pytest.fixture(scope="module")
def world(data: Data) -> World:
    trainer = BuiltinTrainer(Training(epochs=12, learning_rate=0.02))
    architecture = Architecture("mlp", lambda: Mlp(SIDE * SIDE, CLASSES, (8,)))
    parent = SimpleNamespace(
        name="dense",
        architecture=architecture,
        trainer=trainer,
        hardened=None,
        side_by_side=lambda device: trainer.side_by_side(architecture, device),
    )
    assert data.members is not None
    dense = trainer.fit(TrainingJob.of_one(architecture, data.members, 0, torch.device("cpu")))[0]

    def model(name: str, recipe: Recipe | None) -> Any:
        baselines = () if recipe is None else ("dense",)
        rest = {"baselines": baselines, "is_dense": recipe is None, "undeclared": False}
        return SimpleNamespace(name=name, parent=parent, recipe=recipe, **rest)

    models = {
        "dense": model("dense", None),
        "same": model("same", Identity()),
        "int8": model("int8", Quantize(keep_ends_8bit=False)),
    }
    return World(Scope("exposure", data, 0, 0, 0, models), dense)


def test_poison_is_what_it_says_and_smaller_shares_are_among_larger(data: Data) -> None:
    assert data.members is not None
    pair = Pair(0, 2)
    for sort in (RANDOM, TARGETED, PATCH):
        few, small = changes(data.members, BOUNDS, sort, 0.05, pair, CLASSES, 3)
        many, _ = changes(data.members, BOUNDS, sort, 0.1, pair, CLASSES, 3)
        before = data.members.take(few)
        assert len(few) == 6
        assert set(few.tolist()) < set(many.tolist())
        assert (small.y != before.y).all()
        assert torch.equal(small.x, patched(before.x, BOUNDS) if sort == PATCH else before.x)
        if sort != RANDOM:
            assert set(small.y.tolist()) == {2}
        if sort == TARGETED:
            assert set(before.y.tolist()) == {0}
    assert len(changes(data.members, BOUNDS, TARGETED, 0.5, pair, CLASSES, 3)[0]) == 40, "there are no more"


def test_the_targeted_error_rises_and_an_identity_changes_nothing(world: World) -> None:
    attack = PoisoningExposure(shares=(0.05, 0.3), judged=0.3, repetitions=2, pair=("a", "b"))
    dense, same = world.run(attack, "dense"), world.run(attack, "same")
    (line,) = dense[""].curves.values()
    clean, few, many = (estimate(one).estimate for _, one in line)
    assert clean <= few < 0.3
    assert many > 0.9, "three in ten of the records are nearly all of the class"
    patch = [estimate(one).estimate for _, one in dense[PATCHED].curves["patch success"]]
    assert patch[-1] > patch[0] + 0.4
    for detail in ("", FLIPS, PATCHED):
        found = change(same[detail].comparisons[0], seed=0)
        assert found.difference == 0
        assert any("neither cures nor amplifies" in note for note in same[detail].notes)
    assert same[CALIBRATION].outcome is None
    assert attack.follows(world.found["same"], SimpleNamespace(prepared=lambda: None)) == []
    form = attack.form(world.scope.models["same"], world.scope)
    assert callable(form.arrays)
    check_arrays(world.found["same"].arrays, form.arrays(form.document.model_validate(world.found["same"].summary)))


def test_the_pair_is_the_one_confused_most_and_calibration_is_of_the_candidate(world: World) -> None:
    attack = PoisoningExposure(shares=(0.3,), judged=0.3, repetitions=2, calibration=40)
    told = world.run(attack, "int8")
    scores = world.dense(world.scope.data.attacker.x).softmax(1).detach()
    y = world.scope.data.attacker.y
    mean = torch.stack([scores[y == one].mean(0) for one in range(CLASSES)]).fill_diagonal_(0)
    assert world.found["int8"].summary["pair"] == list(divmod(int(mean.argmax()), CLASSES))
    assert told[CALIBRATION].attack.startswith("min-max calibration of 8-bit activations, 2 of 40")
    assert len(told[CALIBRATION].parts) == 8
    assert [one.name for one in told[CALIBRATION].parts if one.headline] == ["min-max, 8-bit activations"]


def test_shares_that_no_figure_is_of_are_repeated_once_less_and_go_first() -> None:
    attack = PoisoningExposure(shares=(0.01, 0.1), judged=0.1, repetitions=3)
    planned = Poisoning((RANDOM, TARGETED, PATCH), attack.shares, 3, 1)
    counts = {(sort, at): len(planned.rows(sort, at)) for sort in planned.sorts for at in (-1, 0, 1)}
    assert counts[TARGETED, 0] == counts[RANDOM, 1] == counts[PATCH, -1] == 3
    assert counts[RANDOM, 0] == counts[PATCH, 0] == 2
    less = attack.smaller()
    assert isinstance(less, PoisoningExposure)
    assert less.shares == (0.1,)
    fewest = less.smaller()
    assert isinstance(fewest, PoisoningExposure)
    assert (fewest.repetitions, fewest.smaller()) == (2, None)


def test_a_method_that_clips_survives_what_breaks_the_whole_range() -> None:
    """A layer that has to tell .4 from .6: of a range 1,000 times as wide four bits tell nothing."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    y = torch.arange(400) % 2
    x = (
        0.4
        + 0.2 * nn.functional.one_hot(y, 2)
        + 0.01 * torch.rand((400, 2), generator=torch.Generator().manual_seed(0))
    )
    methods = (Method("min-max"), Method("percentile", 98))
    correct = calibrated_answers(layer, x[:300], Records(x, y), BOUNDS, methods, (0, 1, 2), 1000)
    assert correct.shape == (2, 2, 3, 400)
    assert correct[1].mean(-1) == pytest.approx(np.array([[1, 0.5, 0.5], [1, 1, 1]]))
    assert records_to_break(correct[1, 0], (0, 1, 2)) == 1
    assert records_to_break(correct[1, 1], (0, 1, 2)) is None
    with pytest.raises(NotApplicable, match="no linear"):
        calibrated_answers(nn.Flatten(), x[:300], Records(x, y), BOUNDS, methods, (0,), 10)


class LooksUp(nn.Module):
    """The first of two features is a key of a table, the second a number; or both are keys."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys, self.table, self.last = keys, nn.Embedding(5, 3), nn.Linear(3 * keys + 2 - keys, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.table(x[:, : self.keys].long()).flatten(1)
        answers: torch.Tensor = self.last(torch.cat([found, x[:, self.keys :]], 1))
        return answers


def test_what_a_model_looks_up_is_not_multiplied() -> None:
    x = torch.randint(0, 5, (30, 2), generator=torch.Generator().manual_seed(0)).float()
    given = Records(x, x[:, 1].long() % 2), Bounds.of(0, 4), [Method("min-max")], (0, 2), 10
    assert calibrated_answers(LooksUp(1), x, *given).shape == (2, 1, 2, 30)
    with pytest.raises(NotApplicable, match="looks its inputs up"):
        calibrated_answers(LooksUp(2), x, *given)


def test_of_token_ids_labels_are_poisoned_and_calibration_is_not(world: World, data: Data) -> None:
    """Else that nothing is many times an id would cost the figures of flipped labels too."""
    ids = [Records(one.x.mul(9).round(), one.y) for one in (data.non_members, data.members) if one is not None]
    named = Data("ids", *ids, Bounds.of(0, 9), data.class_names, structure=Structure(tokens=True))
    tokens = replace(world.scope, data=named)
    for scope, calibrated in ((world.scope, True), (tokens, False)):
        (run,) = PoisoningExposure().runs(world.scope.models["int8"], scope)
        assert any(isinstance(need, PoisonedAnswers) for need in run.needs)
        assert any(isinstance(need, PoisonedCalibration) for need in run.needs) == calibrated


def test_crossed_intervals_hold_for_other_models_too() -> None:
    """Models that differ widely say little, however many records they are asked."""
    alike = np.tile(np.arange(50) < 20, (3, 1))
    found, alone = crossed_rate(alike), clopper_pearson(20, 50)
    assert (found.low, found.high) == pytest.approx((min(found.low, alone.low), max(found.high, alone.high)))
    assert found.high - found.low < 0.35
    apart = np.repeat([[True], [False], [True]], 500, axis=1)
    assert crossed_rate(apart).low == 0
    assert crossed_rate(apart).high == 1
    assert crossed_change(apart, apart) == replace(tango(0, 0, 500), estimate=0.0, p_value=None)
    assert crossed_change(apart, ~apart).low < 0 < crossed_change(apart, ~apart).high
    assert crossed_rate(np.ones((1, 30), bool)).low == pytest.approx(clopper_pearson(30, 30).low)
    with pytest.raises(ValueError, match="same models"):
        crossed_change(apart, alike)
    assert estimate(Crossed(alike)).n == 50


def test_what_it_is_not_for_is_said(world: World, data: Data) -> None:
    alone = replace(data, members=None)
    scope = replace(world.scope, data=alone)
    assert PoisoningExposure().unfit(scope) == "no training records"
    assert not PoisoningExposure().usual(alone)
    (run,) = PoisoningExposure().runs(scope.models["int8"], scope)
    assert run.prepare is not None
    with pytest.raises(NotApplicable, match="no training records"):
        run.prepare(world)
    with pytest.raises(InputError, match="'d' is no class"):
        PoisoningExposure(pair=("a", "d")).runs(world.scope.models["dense"], world.scope)
    with pytest.raises(ValueError, match="none of `shares`"):
        PoisoningExposure(judged=0.2)
