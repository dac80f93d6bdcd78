"""The records and nets of `defenses.py`, hardened, attacked and kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from compression_nets import mnist, subset
from safetensors.torch import load_file, save_file
from torch import nn

from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.seeds import derive
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp, digits_cnn
from crushproof.training.trainer import BuiltinTrainer

CPU = torch.device("cpu")
MNIST_EPSILON = 0.07  # where the plain net keeps .56
Figures = dict[str, float]


def small_cnn() -> nn.Module:
    """Of 28x28 pixels: two convolutions in steps of two, 9,000 parameters."""
    convolutions = [nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2, 2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 49, 10))


@dataclass(frozen=True, eq=False)
class World:
    """Records and a net, with the `epsilon` at which the plain net keeps about half of its accuracy.

    Args:
        tune: of fine-tuning after pruning.
        keep: folder of what was measured before; None: nothing is kept.
        judged: of the other records so many are attacked.
        parents: by defense and seed, trained when they are first asked for.
    """

    name: str
    members: Records
    others: Records
    bounds: Bounds
    epsilon: float
    net: Architecture
    plain: Training
    tune: Mapping[str, float]
    keep: Path | None
    judged: int = 250
    parents: dict[tuple[str, int], nn.Module] = field(default_factory=dict)

    @property
    def attacked(self) -> Records:
        return self.others.take(torch.arange(min(self.judged, len(self.others))))

    @property
    def defenses(self) -> dict[str, AdversarialTraining | None]:
        return {
            "plain": None,
            "pgd": AdversarialTraining(epsilon=self.epsilon, steps=3),
            "trades": AdversarialTraining(epsilon=self.epsilon, method="trades"),
            "fast": AdversarialTraining(epsilon=self.epsilon, steps=1),
            "pgd l2": AdversarialTraining(epsilon=5 * self.epsilon, norm="l2"),
        }

    def trained(self, name: str, seeds: Sequence[int]) -> list[nn.Module]:
        """Models of these seeds, side by side, by a defense of `defenses`."""
        files = {seed: self.keep / f"{self.name} {name} {seed}.safetensors" for seed in seeds if self.keep}
        for seed, file in files.items():
            if (name, seed) not in self.parents and file.exists():
                module = self.net.fresh(0)
                module.load_state_dict(load_file(file))
                self.parents[name, seed] = module.eval()
        if new := [seed for seed in seeds if (name, seed) not in self.parents]:
            plain, defense = BuiltinTrainer(self.plain), self.defenses[name]
            trainer = plain if defense is None else defense.trainer(plain, self.bounds)
            draws = [derive(seed, "benchmark") for seed in new]
            everything = [torch.arange(len(self.members)) for _ in new]
            models = trainer.fit(TrainingJob(self.net, self.members, everything, draws, CPU))
            for seed, module in zip(new, models, strict=True):
                self.parents[name, seed] = module
                if seed in files:
                    save_file(module.state_dict(), files[seed])
        return [self.parents[name, seed] for seed in seeds]

    def measured(
        self, name: str, seeds: range, measure: Callable[[list[int]], Sequence[Figures]]
    ) -> dict[str, list[float]]:
        """By figure, its values over the seeds; those that are kept are not measured again."""
        known: dict[int, Figures] = {}
        files = {seed: self.keep / f"{self.name} {name} {seed}.json" for seed in seeds if self.keep}
        known = {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}
        if new := [seed for seed in seeds if seed not in known]:
            for seed, figures in zip(new, measure(new), strict=True):
                known[seed] = figures
                if seed in files:
                    files[seed].write_text(json.dumps(figures))
        print(f"{name}: {known}", file=sys.stderr, flush=True)
        return {key: [known[seed][key] for seed in seeds] for key in known[seeds[0]]}

    def right(self, module: nn.Module) -> float:
        return accuracy(TorchTarget(module), self.others.x, self.others.y)

    def robust(
        self, module: nn.Module, through: nn.Module | None = None, norm: str = "linf", epsilon: float | None = None
    ) -> float:
        """Of `module` under what was crafted on `through`: itself, or what its attacker differentiates."""
        target, attacked, size = TorchTarget(module), self.attacked, epsilon or self.epsilon
        stands = target.logits(attacked.x).argmax(1) == attacked.y
        for start in (0, 1):
            found = craft(through or module, attacked, [size], norm, self.bounds, seed=start)[size]  # type: ignore[arg-type]  # a Norm
            stands &= target.logits(found).argmax(1) == attacked.y
        return float(stands.float().mean())


def world(name: str, folder: Path | None, keep: Path | None) -> World:
    if name == "mnist":
        if folder is None:
            raise SystemExit("--net mnist needs --data FOLDER, with mnist.npz in it")
        members, others, bounds = mnist(folder)
        net, plain = Architecture("small_cnn", small_cnn), Training(epochs=6, batch_size=64, learning_rate=1e-2)
        tune = {"epochs": 3, "learning_rate": 3e-3, "batch_size": 64}
        return World(name, subset(members, 4000), subset(others, 2000), bounds, MNIST_EPSILON, net, plain, tune, keep)
    data = load_digits()
    assert data.members is not None
    net, plain, tune = {
        "cnn": (Architecture("digits_cnn", digits_cnn), Training(epochs=12), {"epochs": 4, "learning_rate": 4e-3}),
        "mlp": (
            Architecture("mlp", lambda: Mlp(64, 10, (128, 64))),
            Training(epochs=40),
            {"epochs": 15, "learning_rate": 3e-3},
        ),
    }[name]
    return World(name, data.members, data.non_members, data.bounds, 0.1, net, plain, tune, keep)
