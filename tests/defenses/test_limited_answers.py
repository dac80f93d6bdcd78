"""Limited answers: what is shown, the file that shows it, and the attacker who looks behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.attacks.attack import Attack
from crushproof.attacks.case import Case
from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.attacks.membership.averaging import VOTES, Averaged, neighbourhood
from crushproof.attacks.membership.case import MembershipCase, ShadowSignals
from crushproof.attacks.membership.membership import Membership
from crushproof.attacks.membership.replayed import signals_of
from crushproof.attacks.statistics.roc import area
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.audited import exported
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite
from crushproof.compression.answers import LimitAnswers, LimitedAnswers, limits_answers, without_noise
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.smoothed import VoteUnderNoise, asked_often
from crushproof.compression.wrapping import behind
from crushproof.defenses.defense import DEFENSES
from crushproof.defenses.limited_answers import LimitedAnswers as Defense
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.training.networks import Mlp, digits_cnn

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 3.0001, -2.0], [9.0, -9.0, 0.0, 0.0]])


def shown(**fields: object) -> torch.Tensor:
    layer = LimitedAnswers(
        **{"show": "labels", "temperature": 1.0, "decimals": 2, "count": 1, "noise": 1.0, "mixing": 0, **fields}
    )  # type: ignore[arg-type]  # by name
    probabilities: torch.Tensor = torch.softmax(layer(LOGITS), 1)
    assert torch.equal(probabilities.argmax(1), LOGITS.argmax(1))  # the class stays
    return probabilities


def test_what_is_shown() -> None:
    torch.testing.assert_close(shown(show="scores", temperature=2.0), torch.softmax(LOGITS / 2, 1))
    labels = torch.nn.functional.one_hot(LOGITS.argmax(1), 4).float()
    torch.testing.assert_close(shown(), labels, atol=1e-5, rtol=0)
    exact = torch.softmax(LOGITS, 1)
    torch.testing.assert_close(shown(show="rounded", decimals=1), exact, atol=0.07, rtol=0)
    assert len(shown(show="rounded", decimals=1)[1:2].unique().round(decimals=2).unique()) < 4
    top = shown(show="top", count=2)
    torch.testing.assert_close(top.topk(2).values, exact.topk(2).values, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(top.sort().values[:2, 0], top.sort().values[:2, 1])  # the rest is told its mean


@pytest.fixture(scope="module")
def limited(dense: nn.Module, digits: Data) -> nn.Module:
    assert digits.members is not None
    (recipe,) = Defense().recipes(Quantize(weight_bits=8, activations="float"))
    return recipe.apply(dense, digits.members, digits.bounds, seed=0)


def test_the_file_answers_so_and_is_stored_and_rebuilt(limited: nn.Module, digits: Data) -> None:
    description, arrays = save_module(limited)
    assert limits_answers(description)
    rebuilt = load_module(digits_cnn(), description, arrays)
    x = digits.evaluation.x[:20]
    with torch.no_grad():
        assert torch.equal(rebuilt(x), limited(x))
    opened = exported(to_onnx(limited, digits.shape), "onnx", lambda: limited, limited=True)
    answers = opened.target.logits(x)
    torch.testing.assert_close(answers, limited(x).detach(), atol=1e-4, rtol=1e-4)
    assert opened.twin() is behind(limited)


def test_it_only_looks_like_a_win(limited: nn.Module, digits: Data, dense: nn.Module) -> None:
    """A planted sham: the layer's gradients lead nowhere, those behind it lead where they led without it."""
    attacked = digits.evaluation.take(torch.arange(60))
    opened = exported(to_onnx(limited, digits.shape), "onnx", lambda: limited, limited=True)

    def withstood(through: nn.Module | None) -> float:
        assert through is not None
        found = craft(through, attacked, [0.15], "linf", digits.bounds, seed=0, steps=10)[0.15]
        return float((opened.target.logits(found).argmax(1) == attacked.y).float().mean())

    assert opened.naive is not None
    naive, knowing, without = withstood(opened.naive()), withstood(opened.twin()), withstood(dense)
    assert naive >= 0.8
    assert knowing <= without + 0.05 <= naive - 0.3


def test_thieves_and_all_others_face_what_is_shown() -> None:
    """The defense changes no attack: what attackers are handed follows from the file."""
    assert Defense().adapted(Extraction()) == Extraction()
    assert type(DEFENSES.parse("limited-answers")) is Defense
    assert Defense(show="top", count=3).phrase({}) == "limited answers: the 3 largest probabilities"


def test_regressions_and_mistakes_are_refused() -> None:
    recipe = LimitAnswers.model_validate({"recipe": {"kind": "prune", "sparsity": 0.5}, "show": "rounded"})
    assert recipe.phrase == "50 % of weights pruned; answers: probabilities of 2 decimals"
    records = Records(torch.rand(4, 2), torch.rand(4, 1))
    with pytest.raises(NotApplicable, match="predicts values"):
        recipe.apply(nn.Linear(2, 1), records, Bounds.of(0, 1), seed=0)
    with pytest.raises(ValueError, match="prune"):
        LimitAnswers.model_validate({"recipe": {"kind": "prun"}})


def test_a_number_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(
        InputError, match="decimals says how answers are rounded, and show is labels: write show: round"
    ):
        DEFENSES.parse({"kind": "limited-answers", "decimals": 1})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_on_answers_is_averaged_away(digits: Data, seed: int) -> None:
    """A planted sham: asked again the file answers the same, asked about neighbours it tells what it hides."""
    assert digits.members is not None
    noise, x = 2.0, digits.evaluation.x[:40]
    net = Mlp(64, 10, (8,)).eval()
    defense = Defense(show="noisy", noise=noise, noise_seed=seed)
    (recipe,) = defense.recipes(Prune(sparsity=0.1))
    module = recipe.apply(net, digits.members, digits.bounds, seed=0)
    file = exported(to_onnx(module, digits.shape), "onnx", lambda: module, limited=True).target
    hidden = behind(module)(x).detach()
    shown = file.logits(x)
    rebuilt = load_module(Mlp(64, 10, (8,)), *save_module(module))
    assert torch.equal(rebuilt(x), module(x))
    torch.testing.assert_close(shown, module(x).detach(), atol=1e-4, rtol=1e-4)
    assert torch.equal(file.logits(x), shown)
    assert torch.equal(shown.argmax(1), hidden.argmax(1))
    others = torch.ones_like(hidden, dtype=torch.bool).scatter_(1, hidden.argmax(1, keepdim=True), False)
    moved = (shown - hidden)[others]
    assert float(moved.std()) == pytest.approx(noise, rel=0.15)
    assert abs(float(moved.mean())) <= 0.3 * noise
    stream = torch.Generator().manual_seed(seed)
    near = [digits.bounds.clamp(x + 0.004 * torch.randn(x.shape, generator=stream)) for _ in range(30)]
    averaged = torch.stack([file.logits(one) for one in near]).mean(0)
    assert float((averaged - hidden)[others].square().mean().sqrt()) <= 0.35 * noise


class Spread(nn.Module):
    """Two classes, whose margin is four times the first value of a record."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([2 * x[:, 0], -2 * x[:, 0]], 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_on_answers_is_averaged_over_neighbours(seed: int) -> None:
    """A planted leak that noise hides from who asks once, and not from who asks about neighbours."""
    draw = torch.Generator().manual_seed(seed)
    bounds, inside = Bounds.of(-9, 9), np.random.default_rng(seed).random((9, 160)) < 0.5
    inside[0] = np.arange(160) < 80
    values = torch.randn(160, 3, generator=draw)
    margins = 4 * (values[:, 0] + 0.5 * torch.from_numpy(inside)) + 0.3 * torch.randn(9, 160, generator=draw)
    values[:, 0] = margins[0] / 4  # what the model is asked about: it is surer of its members
    records = Records(values, torch.zeros(160, dtype=torch.long))
    defense = Defense(show="noisy", noise=3.0)
    (recipe,) = defense.recipes(Prune(sparsity=0.1))
    assert isinstance(recipe, LimitAnswers)
    assert without_noise(recipe) == LimitAnswers(recipe=Prune(sparsity=0.1), show="scores")
    layer = recipe.wrapper(Spread(), records, bounds, seed=0)
    layer.inner = Spread()
    target = TorchTarget(layer)
    hidden = 3 * (torch.rand(2, 9, 160, generator=draw) * 2 - 1) * 3**0.5
    noisy = (margins + hidden[0] - hidden[1]).numpy()

    def found(attack: Attack, shadows: np.ndarray) -> float:
        own = ShadowSignals(inside[1:], shadows[1:].astype(np.float32))
        known = MembershipCase(records, inside[0], np.arange(160), own, None, np.zeros(160))
        case = Case(target, None, None, None, records, np.arange(160), records, bounds, 2, prepared=known)
        scores = attack.run(case, seed=0).arrays["score/lira/own"]
        return area(scores, inside[0])

    knowing = defense.adapted(Membership())
    naive, averaging = found(Membership(), noisy), found(knowing, margins.numpy())
    assert averaging >= naive - 0.02
    assert averaging >= 0.8
    again = [target.logits(values) for _ in range(2)]
    assert torch.equal(*again), "asking the same again tells nothing"
    assert defense.adapted(Extraction()) == Extraction()
    assert Defense(show="rounded").adapted(Membership()) == Membership()


class Noted(TorchTarget):
    """Keeps what it was asked last."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        self.asked = x
        return super().logits(x)


def test_neighbours_of_eight_bit_pixels_are_such_too_and_where_there_are_none_nobody_averages() -> None:
    everywhere = torch.ones(3, dtype=torch.bool)
    pixels, target = replace(Bounds.of(0, 255), whole=everywhere), Noted(Spread())
    step = neighbourhood(pixels, (3,))
    assert step is not None
    x = torch.tensor([[0.0, 7.0, 255.0], [100.0, 200.0, 50.0]])
    Averaged(target, pixels, step, 64, seed=0).logits(x)
    near = target.asked.view(64, 2, 3)
    assert torch.equal(near, pixels.clamp(near.round()))
    assert min(len(near[:, row].unique(dim=0)) for row in (0, 1)) > 8
    assert float((near - x).abs().max()) < 6
    mixed = neighbourhood(Bounds(torch.zeros(2), torch.tensor([0.1, 1e-4])), (2,))
    assert mixed is not None
    assert mixed.tolist() == pytest.approx([0.002, 2e-6]), "no feature is moved across its range"
    for bounds in (replace(pixels, held=everywhere), replace(Bounds.of(0, 5), whole=everywhere), Bounds.of(0, 1e-4)):
        assert neighbourhood(bounds, (3,)) is None


def test_a_baseline_is_attacked_alike_whatever_hides_the_answers_of_the_model_beside_it() -> None:
    """Else two candidates of few shadows, one of them noisy, ask for two different runs of one name."""
    student = {"kind": "distill", "width": 0.5, "training": {"epochs": 1}}
    raw = {
        "name": "students",
        "data": {"kind": "digits"},
        "model": {"architecture": "crushproof.training.networks:digits_mlp"},
        "candidates": {
            "open": student,
            "noisy": {"recipe": student, "defense": {"kind": "limited-answers", "show": "noisy"}},
            "voted": {"recipe": student, "defense": {"kind": "randomized-smoothing", "samples": 10}},
        },
        "attacks": ["membership"],
        "shadows": {"training_free": 4, "trained": 2},
    }
    plan = Plan.model_validate(raw)
    suite = Suite(plan, resolve(plan, Path()))
    assert suite.has("attack/membership/dense/2-shadows")
    noisy = suite.models["noisy"].recipe
    assert isinstance(noisy, LimitAnswers)
    assert suite.models["noisy"].parent is not None
    shadows = signals_of(suite.scope("membership"), suite.models["noisy"].parent, without_noise(noisy))
    assert shadows.name in suite.cell("attack/membership/noisy").needs, "shadow models have no noise"
    votes = asked_often(suite.models["voted"].recipe, VOTES)
    assert isinstance(votes, VoteUnderNoise)
    assert votes.samples == 10 * VOTES
    shadows = signals_of(suite.scope("membership"), suite.models["noisy"].parent, votes)
    assert shadows.name in suite.cell("attack/membership/voted").needs, "or as many votes as the attacker adds up"
