"""DP-SGD whose noise follows from no seed, and whose records are learnt by several altered copies."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.audit.subject.audited import DenseModel
from crushproof.audit.suite.model_cells import train_dense
from crushproof.defenses import dp_sgd
from crushproof.defenses.defense import DEFENSES
from crushproof.defenses.dp_sgd import DpSgd
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.augmentation import Augmentation
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.privacy import Noised
from crushproof.training.private_steps import noisy_mean, poisson_sample, train_privately
from crushproof.training.trainer import BuiltinTrainer

CPU, UNIT = torch.device("cpu"), Bounds.of(0, 1)
NET = Architecture("mlp", lambda: Mlp(4, 3, (8,)))
SECRET = {"kind": "dp-sgd", "noise_multiplier": 2.0, "delta": 1e-3, "epochs": 1, "batch_size": 20, "secret_noise": True}


def records(count: int, *shape: int, classes: int = 3, seed: int = 0) -> Records:
    stream = generator(seed, "records")
    return Records(torch.rand(count, *shape, generator=stream), torch.randint(classes, (count,), generator=stream))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_secret_noise_is_gaussian_of_the_stated_size_and_secret_samples_have_their_rate() -> None:
    totals = torch.arange(6000, dtype=torch.float32).view(60, 100)
    drawn = (noisy_mean(totals, 4.0, 12.0, None) * 4 - totals) / 12
    assert drawn.dtype == torch.float32
    assert kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-6
    assert kstest(drawn[:30].flatten().numpy(), drawn[30:].flatten().numpy()).pvalue > 1e-6
    with torch.random.fork_rng():
        once, again = ((torch.manual_seed(0), poisson_sample(99, 0.5, None))[1] for _ in range(2))
    assert not torch.equal(once, again), "no generator of torch's decides"
    assert poisson_sample(20_000, 0.3, None).float().mean() == pytest.approx(0.3, abs=0.02)  # six deviations


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accountants take seconds, and are not what is looked at."""
    monkeypatch.setattr(dp_sgd, "counted", lambda parts, delta: {"epsilon": float(len(parts))})
    monkeypatch.setattr(dp_sgd, "prv_epsilon", lambda *_: 1.0)


@pytest.mark.usefixtures("quick")
def test_only_the_model_that_ships_has_noise_of_no_seed() -> None:
    members = records(60, 4)
    data = Data("d", members, records(20, 4, seed=1), UNIT, ("a", "b", "c"))
    for secret in (True, False):
        defense = DEFENSES.parse({**SECRET, "secret_noise": secret})
        assert isinstance(defense, DpSgd)
        trainer = defense.trainer(BuiltinTrainer(Training()), UNIT)
        dense = DenseModel("dense-dp-sgd", NET, trainer, defense)
        one, other = (train_dense(dense, data, 0, CPU) for _ in range(2))
        same = all((one.arrays[name] == value).all() for name, value in other.arrays.items())
        assert same is not secret
        assert trainer.of_shipped.repeatable is same
        assert one.document == other.document
        shadows = [trainer.fit(TrainingJob.of_one(NET, members, 5, CPU))[0] for _ in range(2)]
        assert torch.equal(*(weights(shadow) for shadow in shadows))
        said = one.document["statement"]
        assert ("kept nowhere" in said["condition"]) is secret
        composed = defense.composed(said, (Noised("fine-tuning", 3.0, 0.1, 5),))
        assert ("compression's noise follows from the seed" in composed["condition"]) is secret


def small_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def test_copies_are_averaged_before_the_clipping_as_in_a_naive_loop() -> None:
    augmentation = Augmentation(copies=3, shift=1, mirror=True)
    torch.manual_seed(0)
    module, own = small_cnn(), records(20, 1, 6, 5)
    naive = copy.deepcopy(module)
    settings = {"sampling_rate": 0.4, "noise_multiplier": 0.8, "max_gradient_norm": 0.3, "learning_rate": 0.05}
    train_privately([module], own, [torch.arange(20)], [7], steps=3, augmentation=augmentation, **settings)
    sampling, noise, altering = (generator(7, name) for name in ("poisson sampling", "gaussian noise", "augmentation"))
    optimizer = torch.optim.Adam(naive.parameters(), lr=0.05)
    for _ in range(3):
        drawn = torch.rand(20, generator=sampling) < 0.4
        total = [torch.zeros_like(parameter) for parameter in naive.parameters()]
        for copies, y in zip(augmentation.copied(own.x[drawn], altering), own.y[drawn], strict=True):
            each = [torch.autograd.grad(F.cross_entropy(naive(x[None]), y[None]), naive.parameters()) for x in copies]
            mean = [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]
            length = float(torch.cat([part.flatten() for part in mean]).norm())
            total = [a + b * min(1.0, 0.3 / length) for a, b in zip(total, mean, strict=True)]
        for parameter, one in zip(naive.parameters(), total, strict=True):
            parameter.grad = (one + 0.8 * 0.3 * torch.randn(one.shape, generator=noise)) / (0.4 * 20)
        optimizer.step()
    torch.testing.assert_close(weights(module), weights(naive), rtol=1e-3, atol=1e-5)


def test_copies_are_shifted_and_mirrored_images() -> None:
    x = torch.rand(5, 2, 4, 6, generator=generator(0, "x"))
    still = Augmentation(copies=2, shift=0).copied(x, generator(0, "draws"))
    assert torch.equal(still, x[:, None].expand(-1, 2, -1, -1, -1))
    found = Augmentation(copies=40, shift=1, mirror=True).copied(x, generator(0, "draws"))
    assert found.shape == (5, 40, 2, 4, 6)
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    possible = [wide[:, :, row : row + 4, column : column + 6] for row in range(3) for column in range(3)]
    possible += [one.flip(-1) for one in possible]
    each = torch.stack([(found == one[:, None]).flatten(2).all(2) for one in possible])
    assert bool(each.any(0).all())
    assert bool(each.any(2).any(1).all()), "all eighteen occur"


@pytest.mark.usefixtures("quick")
def test_what_costs_copies_costs_no_epsilon_and_is_for_images() -> None:
    plain = DpSgd(noise_multiplier=2.0)
    several = DpSgd.model_validate({"noise_multiplier": 2.0, "augmentation": {"copies": 8}})
    assert plain.statement(900) == several.statement(900)
    trainer = several.trainer(BuiltinTrainer(Training()), UNIT)
    with pytest.raises(NotApplicable, match="for images"):
        trainer.fit(TrainingJob.of_one(NET, records(60, 4), 0, CPU))
