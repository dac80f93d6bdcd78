"""The networks and the records of `compression.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp, digits_cnn

SEED = 0  # of every draw here: records, initial weights, training, recipes


@dataclass(frozen=True)
class Task:
    """A dense model with what recipes, accuracy and attacks need.

    Args:
        train: what recipes see: the records the dense model was trained on, or some of them.
        tune: one schedule of fine-tuning for every recipe that trains.
        school: the schedule of a student, which starts from nothing.
    """

    name: str
    dense: nn.Module
    train: Records
    test: Records
    bounds: Bounds
    tune: Training
    school: Training

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.test.x.shape[1:])


def digits_task() -> Task:
    """The residual CNN with batch norm of the built-in audit, on scikit-learn's digits."""
    data = load_digits()
    assert data.members is not None
    dense = trained(Architecture("digits_cnn", digits_cnn), data.members, Training(epochs=10))
    tune = Training(epochs=3, learning_rate=2e-3)
    return Task("digits CNN", dense, data.members, data.non_members, data.bounds, tune, Training(epochs=10))


def mnist_task(folder: Path) -> Task:
    """A CNN of 124,000 parameters, trained on 20,000 records of MNIST; judged on all 10,000 test records."""
    train_records, test, bounds = mnist(folder)
    few = subset(train_records, 20_000)
    dense = trained(Architecture("mnist_cnn", mnist_cnn), few, Training(epochs=3, batch_size=128))
    tune = Training(epochs=1, batch_size=64, learning_rate=1e-3)
    school = Training(epochs=4, batch_size=64)
    return Task("MNIST CNN", dense, subset(few, 5_000), test, bounds, tune, school)


def mnist(folder: Path) -> tuple[Records, Records, Bounds]:
    """All 60,000 training and 10,000 test records [n, 1, 28, 28] in [0, 1]."""
    data = load_npz(folder / "mnist.npz")
    assert data.members is not None
    scale, low = float(data.bounds.scale.max()), float(data.bounds.low.min())
    members, others = (Records((part.x - low) / scale, part.y) for part in (data.members, data.non_members))
    return _pictures(members), _pictures(others), Bounds.of(0, 1)


def _pictures(records: Records) -> Records:
    return Records(records.x.reshape(len(records), 1, 28, 28), records.y)


def subset(records: Records, count: int) -> Records:
    """`count` of them, drawn by the seed."""
    return records.take(torch.randperm(len(records), generator=generator(SEED, "subset", count))[:count])


def trained(architecture: Architecture, records: Records, training: Training) -> nn.Module:
    return train(architecture.fresh(SEED), records, training, seed=SEED)


def mnist_cnn() -> nn.Module:
    """Four convolutions of 32 to 64 channels with batch norm, the last two of equal shape, and a linear head."""

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    layers = [*block(1, 32, 2), *block(32, 64, 2), *block(64, 64, 1), *block(64, 64, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 10))


def lenet_300_100() -> nn.Module:
    """The multi-layer perceptron of Deep Compression's first table (arXiv:1510.00149)."""
    return Mlp(784, 10, (300, 100))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Bottleneck(nn.Module):
    """The block of ResNet-50 (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)),
        )
        fits = stride == 1 and before == after
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if fits else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet_50() -> nn.Module:
    """ResNet-50, untrained: 25.6 million parameters, 53 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for position in range(blocks):
            layers.append(Bottleneck(before, width, stride if position == 0 else 1))
            before = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))
