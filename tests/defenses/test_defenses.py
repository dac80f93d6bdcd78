"""Defenses: adversarial training resists, DP-SGD keeps its promise, stochastic rounding is averaged over."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy.stats import norm as normal
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.dp_audit.accounting import pld_epsilon, prv_epsilon, smallest_noise
from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.quantize import Quantize
from crushproof.defenses.adversarial_training import AdversarialTraining, perturbed
from crushproof.defenses.defense import DEFENSES
from crushproof.defenses.dp_sgd import DpSgd
from crushproof.defenses.stochastic_rounding import ExpectationTwin, StochasticRounding
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp, ResidualCnn, digits_cnn
from crushproof.training.private_steps import train_privately
from crushproof.training.trainer import BuiltinTrainer, UserTrainer

CPU = torch.device("cpu")
TINY = Architecture("mlp", lambda: Mlp(4, 3, (8,)))


def noise_records(count: int, *shape: int, classes: int = 3) -> Records:
    stream = generator(0, "records")
    return Records(torch.rand(count, *shape, generator=stream), torch.randint(classes, (count,), generator=stream))


def robust_accuracy(model: nn.Module, records: Records, bounds: Bounds) -> float:
    crafted = craft(model, records, [0.1], "linf", bounds, seed=0, steps=20)[0.1]
    right = TorchTarget(model).logits(crafted).argmax(1) == records.y
    clean = TorchTarget(model).logits(records.x).argmax(1) == records.y
    return float((right & clean).float().mean())


# Adversarial training


def test_adversarial_training_resists_where_plain_training_does_not(digits: Data, dense: nn.Module) -> None:
    assert digits.members is not None
    training = Training(epochs=5, learning_rate=1e-2, batch_size=64)
    trainer = AdversarialTraining(training=training).trainer(BuiltinTrainer(Training()), digits.bounds)
    (hardened,) = trainer.fit(TrainingJob.of_one(Architecture("digits_cnn", digits_cnn), digits.members, 0, CPU))
    attacked = digits.evaluation.take(torch.arange(80))
    assert accuracy(TorchTarget(hardened), digits.evaluation.x, digits.evaluation.y) >= 0.96
    assert robust_accuracy(hardened, attacked, digits.bounds) >= 0.7
    assert robust_accuracy(dense, attacked, digits.bounds) <= 0.6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_perturbed_inputs_stay_in_the_ball_and_raise_the_loss(norm: str) -> None:
    bounds = Bounds(torch.tensor([0.0, -1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 255.0, 1.0]))
    records = noise_records(12, 4)
    x = (bounds.low + records.x * bounds.scale).view(2, 6, 4)
    y = records.y.view(2, 6)
    module = TINY.fresh(0)
    seen: list[Tensor] = []

    def forward(batch: Tensor) -> Tensor:
        seen.append(batch.detach())
        return module((batch / bounds.scale).flatten(0, 1)).view(2, 6, 3)

    defense = AdversarialTraining.model_validate({"norm": norm, "steps": 3})
    objective = perturbed(Training(), defense, bounds)
    streams = [generator(0, "a"), generator(0, "b")]
    losses = objective(forward, x, y, torch.arange(12).view(2, 6), streams)
    assert losses.shape == (2, 6)
    assert len(seen) == 4  # three inner steps and the step itself
    perturbed_x = seen[-1]
    change = (perturbed_x - x) / bounds.scale
    distance = change.abs().amax(-1) if norm == "linf" else change.norm(dim=-1)
    assert distance.max() <= 0.1 + 1e-5
    assert distance.min() > 0
    assert torch.equal(bounds.clamp(perturbed_x), perturbed_x)
    clean = F.cross_entropy(forward(x).flatten(0, 1), y.flatten(), reduction="none").view(2, 6)
    assert (losses > clean).float().mean() >= 0.9


def test_a_stack_learns_what_each_model_learns_alone() -> None:
    records = noise_records(40, 4)
    trainer = AdversarialTraining().trainer(BuiltinTrainer(Training(epochs=2, batch_size=8)), Bounds.of(0, 1))
    subsets = [torch.arange(0, 32), torch.arange(8, 40)]
    together = trainer.fit(TrainingJob(TINY, records, subsets, [3, 4], CPU))
    for position, seed in enumerate((3, 4)):
        (alone,) = trainer.fit(TrainingJob(TINY, records, subsets[position : position + 1], [seed], CPU))
        for a, b in zip(alone.parameters(), together[position].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_training_function_of_ones_own_needs_hyper_parameters() -> None:
    own = UserTrainer(lambda module, x, y, seed: module, "mine")
    with pytest.raises(NotApplicable, match="training"):
        AdversarialTraining().trainer(own, Bounds.of(0, 1))
    trainer = AdversarialTraining(training=Training()).trainer(own, Bounds.of(0, 1))
    other = AdversarialTraining(training=Training(), epsilon=0.2).trainer(own, Bounds.of(0, 1))
    wider = AdversarialTraining(training=Training()).trainer(own, Bounds.of(0, 255))
    assert len({trainer.identity, other.identity, wider.identity}) == 3


# DP-SGD


def group_norm_net() -> nn.Module:
    torch.manual_seed(0)
    return DpSgd().adapt(ResidualCnn(classes=3, channels=4))


def naive_clipped_sum(module: nn.Module, records: Records, max_norm: float) -> list[Tensor]:
    """One record at a time, by ordinary back-propagation."""
    total = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for x, y in zip(records.x, records.y, strict=True):
        loss = F.cross_entropy(module(x[None]), y[None])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        length = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        for place, gradient in zip(total, gradients, strict=True):
            place += gradient * min(1.0, max_norm / length)
    return total


def test_noise_and_sampling_equal_a_naive_loop() -> None:
    module, records = TINY.fresh(1), noise_records(30, 4)
    naive = copy.deepcopy(module)
    settings = {"sampling_rate": 0.4, "noise_multiplier": 0.8, "max_gradient_norm": 0.5, "learning_rate": 0.05}
    train_privately([module], records, [torch.arange(30)], [7], steps=5, **settings)
    sampling, noise = generator(7, "poisson sampling"), generator(7, "gaussian noise")
    optimizer = torch.optim.Adam(naive.parameters(), lr=0.05)
    for _ in range(5):
        drawn = torch.rand(30, generator=sampling) < 0.4
        for parameter, total in zip(
            naive.parameters(), naive_clipped_sum(naive, records.take(drawn), 0.5), strict=True
        ):
            total = total + 0.8 * 0.5 * torch.randn(parameter.shape, generator=noise)
            parameter.grad = total / (0.4 * 30)
        optimizer.step()
    for a, b in zip(module.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_without_noise_clipping_or_sampling_it_is_ordinary_training() -> None:
    module, records = TINY.fresh(1), noise_records(30, 4)
    plain = copy.deepcopy(module)
    train_privately(
        [module],
        records,
        [torch.arange(30)],
        [0],
        sampling_rate=1.0,
        steps=6,
        noise_multiplier=0.0,
        max_gradient_norm=1e6,
        learning_rate=0.05,
    )
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(plain(records.x), records.y).backward()
        optimizer.step()
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def promise() -> dict[str, float]:
    return DpSgd().statement(898)


def test_the_promised_epsilon_is_kept_and_two_accountants_agree(promise: dict[str, float]) -> None:
    assert 7.9 <= promise["epsilon"] <= 8.0
    assert promise["epsilon_pld_check"] == pytest.approx(promise["epsilon"], rel=0.01)
    assert promise["sampling_rate"] == 256 / 898
    assert promise["steps"] == 43  # twelve passes


def test_epsilon_of_one_full_step_is_that_of_the_analytic_gaussian_mechanism() -> None:
    sigma = 1.3
    epsilon = prv_epsilon(sigma, 1e-5, 1.0, 1)
    delta = normal.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * normal.cdf(-0.5 / sigma - epsilon * sigma)
    assert delta == pytest.approx(1e-5, rel=0.15)  # Balle & Wang 2018, theorem 5; the accountant rounds epsilon up
    assert pld_epsilon(sigma, 1e-5, 1.0, 1) == pytest.approx(epsilon, rel=0.01)


def test_dp_sgd_learns_digits_at_epsilon_8(digits: Data, promise: dict[str, float]) -> None:
    assert digits.members is not None
    defense = DpSgd()
    architecture = Architecture.like(defense.adapt(digits_cnn()), "digits_cnn with group norm")
    trainer = defense.trainer(BuiltinTrainer(Training()), digits.bounds)
    everything = torch.arange(len(digits.members))
    (model,) = trainer.fit(TrainingJob(architecture, digits.members, [everything], [0], CPU))
    assert accuracy(TorchTarget(model), digits.non_members.x, digits.non_members.y) >= 0.88
    assert smallest_noise.cache_info().hits >= 1  # the accountant costs seconds; it ran for the statement already


def test_batch_norm_is_refused_and_adapted() -> None:
    defense = DpSgd()
    trainer = defense.trainer(BuiltinTrainer(Training()), Bounds.of(0, 1))
    records = noise_records(20, 1, 8, 8)
    with pytest.raises(NotApplicable, match="BatchNorm2d"):
        trainer.fit(TrainingJob(Architecture("cnn", digits_cnn), records, [torch.arange(20)], [0], CPU))
    adapted = defense.adapt(digits_cnn())
    norms = [layer for layer in adapted.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == 5
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in adapted.modules())
    plain = Mlp(4, 3)
    assert defense.adapt(plain) is plain


def test_features_survive_the_exchange_of_their_batch_norm() -> None:
    adapted = DpSgd().adapt(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    assert adapted(torch.rand(5, 4, generator=generator(0, "x"))).std() > 0.1  # a group per channel would give zeros


def test_a_delta_that_promises_nothing_is_refused() -> None:
    with pytest.raises(NotApplicable, match="delta"):
        DpSgd(delta=0.01).statement(898)


# Stochastic rounding


def test_draws_are_distinct_stored_and_repeatable(digits: Data, dense: nn.Module) -> None:
    assert digits.members is not None
    recipes = StochasticRounding().recipes(Quantize(weight_bits=4, activations="float"))
    assert len({recipe.model_dump_json() for recipe in recipes}) == 5
    first, again, second = (
        recipe.apply(dense, digits.members, digits.bounds, seed=0) for recipe in (recipes[0], recipes[0], recipes[1])
    )
    x = digits.evaluation.x[:50]
    with torch.no_grad():
        assert torch.equal(first(x), again(x))
        assert not torch.equal(first(x), second(x))


def test_only_quantisation_is_hardened() -> None:
    with pytest.raises(NotApplicable, match="prune"):
        StochasticRounding().recipes(Prune(sparsity=0.5))


def test_the_expectation_twin_averages_values_and_gradients() -> None:
    draws = [TINY.fresh(seed) for seed in range(3)]
    twin = ExpectationTwin(draws)
    x = noise_records(6, 4).x.requires_grad_()
    expected = torch.stack([draw(x) for draw in draws]).mean(0)
    torch.testing.assert_close(twin(x), expected)
    (gradient,) = torch.autograd.grad(twin(x)[:, 0].sum(), x)
    each = [torch.autograd.grad(draw(x)[:, 0].sum(), x)[0] for draw in draws]
    torch.testing.assert_close(gradient, torch.stack(each).mean(0))
    log_probabilities = torch.stack([F.log_softmax(draw(x), 1) for draw in draws]).mean(0)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(F.cross_entropy(twin(x), y), F.cross_entropy(log_probabilities, y))
    with pytest.raises(ValueError, match="at least one"):
        ExpectationTwin([])


def test_every_defense_names_its_adaptive_attack() -> None:
    attack = Extraction()
    for defense in (AdversarialTraining(), DpSgd(), StochasticRounding()):
        assert defense.adapted(attack) == attack
        assert type(DEFENSES.parse(defense.kind)) is type(defense)
