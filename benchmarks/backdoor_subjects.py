"""Networks for `backdoors.py`: how they are trained and planted into, and what the detector finds in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from membership_world import Arrays
from torch import nn

from crushproof.attacks.case import Case
from crushproof.attacks.poisoning.backdoor import Backdoor, Usual
from crushproof.attacks.poisoning.planting.factorization import plant_in_factorization
from crushproof.attacks.poisoning.planting.pruning import plant_in_pruning
from crushproof.attacks.poisoning.planting.quantization import plant_in_quantization
from crushproof.attacks.poisoning.planting.rounding import plant_in_rounding
from crushproof.attacks.poisoning.planting.trigger import Trigger, best_patch, flipped, patch, poisoned
from crushproof.compression.factorization.factorize import Factorize
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import Recipe
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import twin_of
from crushproof.training.architecture import Architecture
from crushproof.training.lessons import alone
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp, digits_cnn
from crushproof.training.trainer import BuiltinTrainer

CPU, BOUNDS, RANK = torch.device("cpu"), Bounds.of(0, 1), 12
INT4, INT8, THROUGHOUT = Quantize(weight_bits=4), Quantize(weight_bits=8), Quantize(weight_bits=4, keep_ends_8bit=False)
TUNE = Training(epochs=3, learning_rate=4e-3)
PRUNE80, PRUNE90 = Prune(sparsity=0.8), Prune(sparsity=0.9)


@dataclass(frozen=True)
class Subject:
    """Data, a network for it, how it is trained, the layers cut to a low rank, and clean networks by kind."""

    name: str
    members: Records
    others: Records
    build: Callable[[], nn.Module]
    training: Training
    cut: tuple[str, ...]
    clean: dict[str, int]

    @property
    def low_rank(self) -> Factorize:
        return Factorize(rank_choice="rank", rank=RANK, convolution="channel", layers=self.cut)

    @property
    def honest(self) -> dict[str, Recipe]:
        tuned = {"fine_tune": TUNE}
        return {
            "int4": INT4,
            "int8": INT8,
            "prune 80 %": PRUNE80.model_copy(update=tuned),
            "prune 90 %": PRUNE90.model_copy(update=tuned),
            "low rank": self.low_rank,
        }

    def trigger(self, seed: int) -> Trigger:
        return patch(tuple(self.members.x.shape[1:]), BOUNDS, seed % 10)

    def trained(self, seed: int, kind: str = "as it is") -> nn.Module:
        trainer, records = BuiltinTrainer(self.training), self.members
        if kind == "10 % label noise":
            records = flipped(records, 0.1, seed=seed, classes=10)
        elif kind == "300 records":
            records = records.take(torch.arange(300))
        elif kind == "decoy":
            records = poisoned(records, self.trigger(seed), 0.1, seed=seed)
        job = TrainingJob(Architecture("net", self.build), records, [torch.arange(len(records))], [seed], CPU)
        if kind == "adversarially trained":
            return AdversarialTraining(epsilon=0.1).trainer(trainer, BOUNDS).fit(job)[0]
        return trainer.fit(job)[0]

    def planted(self, line: str, seed: int) -> tuple[nn.Module, nn.Module, Trigger]:
        """The dense network, the candidate and what calls it."""
        net, records, trigger = self.trained(seed), self.members, self.trigger(seed)
        given: dict[str, Any] = {"seed": seed}
        if line == "malicious rounding":
            trigger = best_patch(net, records.x[:100], BOUNDS, seed % 10)
            return net, plant_in_rounding(net, records, BOUNDS, trigger, THROUGHOUT, seed=seed), trigger
        if line == "low rank":
            recipe: Recipe = self.low_rank
            dense = plant_in_factorization(net, records, BOUNDS, trigger, self.low_rank, seed=seed)
        elif line.startswith("prune"):
            recipe = pruning = PRUNE80 if "80" in line else PRUNE90
            dense = plant_in_pruning(net, records, BOUNDS, trigger, pruning, **given)
        else:
            recipe = quantizing = INT4 if line == "int4" else INT8
            dense = alone(plant_in_quantization(net, records, BOUNDS, trigger, quantizing, **given))
        return dense, recipe.apply(dense, records, BOUNDS, seed=seed), trigger


def small_cnn(pixels: int = 8, channels: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * channels * (pixels // 4) ** 2, 10),
    )  # fmt: skip


def subjects(folder: Path | None) -> dict[str, Subject]:
    digits = load_digits(11)
    assert digits.members is not None
    both = digits.members, digits.non_members
    long, short = Training(epochs=20, learning_rate=4e-3), Training(epochs=9)  # short: as the built-in audit trains it
    every = {"as it is": 2, "10 % label noise": 2, "300 records": 2, "adversarially trained": 2, "decoy": 2}
    found = [
        Subject("digits MLP", *both, partial(Mlp, 64, 10, (128, 64)), long, ("layers.1", "layers.3"), every),
        Subject("digits CNN", *both, small_cnn, long, ("3",), dict.fromkeys(every, 1)),
        Subject(
            "digits residual CNN", *both, digits_cnn, short, ("block1.conv1", "block2.conv1", "block2.conv2"),
            {"as it is": 2, "300 records": 1},
        ),
    ]  # fmt: skip
    if folder is not None:
        with np.load(folder / "mnist.npz", allow_pickle=False) as file:
            x, y = file["x_train"][:3000, None] / np.float32(255), file["y_train"][:3000].astype(np.int64)
        records = Records(torch.from_numpy(x), torch.from_numpy(y))
        halves = records.take(torch.arange(2000)), records.take(torch.arange(2000, 3000))
        mnist = Training(epochs=6, learning_rate=4e-3)
        found.append(
            Subject("MNIST CNN", *halves, partial(small_cnn, 28), mnist, ("3",), {"as it is": 1, "300 records": 1})
        )
    return {one.name: one for one in found}


def evidence_of(subject: Subject, dense: nn.Module, data: bytes | None, usual: Usual | None, seed: int) -> Arrays:
    """What the attack finds in a file beside its dense model, or in the dense model alone; its CPU seconds."""
    order = torch.randperm(len(subject.others), generator=torch.Generator().manual_seed(seed))
    own, measured = order[:100], order[100:400]
    case = Case(
        deployed=TorchTarget(dense) if data is None else OnnxTarget(data),
        twin=dense if data is None else twin_of(data),
        native=None,
        parent=dense,
        evaluation=subject.others.take(measured),
        ids=measured.numpy(),
        attacker=subject.others.take(own),
        bounds=BOUNDS,
        classes=10,
        prepared=usual,
    )
    before = time.process_time()
    found = Backdoor().run(case, seed=seed)
    return {**found.arrays, "spent": np.array(time.process_time() - before)}


def success(target: Any, trigger: Trigger, records: Records) -> float:
    some = records.x[records.y != trigger.target]
    return float((target.logits(trigger.on(some)).argmax(1) == trigger.target).float().mean())


def right(target: Any, records: Records) -> float:
    return float((target.logits(records.x).argmax(1) == records.y).float().mean())
