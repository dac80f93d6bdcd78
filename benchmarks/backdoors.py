"""Backdoors that compression switches on: do they work on the file that ships, are they found, and what cries wolf?

    python benchmarks/backdoors.py [--data DIR] [--seeds 12] [--nets "digits MLP,digits CNN"] [--json FILE]

Planted: each seed trains a network of its own and plants a 2 x 2 patch for a class of its own, so that the honest
recipe switches it on: 4 bits, 8 bits with inflated scales, 80 and 90 % magnitude pruning; and a malicious
rounding of a clean network (4 bits throughout). Success is of the ONNX file that the recipe gives, on records of other
classes. Found: an alarm of the attack `backdoor` that names the class. Clean pairs: networks trained as they are, with
10 % label noise, on 300 records, adversarially, and with the decoy of a plain backdoor of the dense network, the honest
recipes in turn. Plain backdoors: a patch on 10 % of the training records, found in the dense network alone; false
alarms are those of the clean networks. With `DIR/mnist.npz`, `--nets "MNIST CNN"` too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish
from torch import nn

from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.poisoning.backdoor import Backdoor, Usual
from crushproof.attacks.poisoning.measure import alarms, excess
from crushproof.attacks.poisoning.planting.pruning import plant_in_pruning
from crushproof.attacks.poisoning.planting.quantization import plant_in_quantization
from crushproof.attacks.poisoning.planting.rounding import plant_in_rounding
from crushproof.attacks.poisoning.planting.trigger import Trigger, best_patch, flipped, patch, poisoned
from crushproof.compression.deployment.onnx_export import to_onnx
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
from crushproof.training.lessons import together
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

CPU, BOUNDS, RANK = torch.device("cpu"), Bounds.of(0, 1), 12
INT4, INT8 = Quantize(weight_bits=4), Quantize(weight_bits=8)
TUNE = Training(epochs=3, learning_rate=4e-3)
HONEST: dict[str, Recipe | None] = {  # None: a low rank of the network's larger layers
    "int4": INT4,
    "int8": INT8,
    "prune 80 %": Prune(sparsity=0.8, fine_tune=TUNE),
    "prune 90 %": Prune(sparsity=0.9, fine_tune=TUNE),
    "low rank": None,
}
PLANTED: dict[str, tuple[Recipe, Any, float, float]] = {  # what plants it; success of candidate and dense asked for
    "int4": (INT4, partial(plant_in_quantization, recipe=INT4), 0.9, 0.05),
    "int8, inflated scales": (INT8, partial(plant_in_quantization, recipe=INT8), 0.9, 0.05),
    "prune 80 %": (Prune(sparsity=0.8), partial(plant_in_pruning, recipe=Prune(sparsity=0.8)), 0.95, 0.02),
    "prune 90 %": (Prune(sparsity=0.9), partial(plant_in_pruning, recipe=Prune(sparsity=0.9)), 0.95, 0.02),
}
ROUNDED = Quantize(weight_bits=4, keep_ends_8bit=False)


@dataclass(frozen=True)
class Subject:
    """Data, a network for it, and how it is trained."""

    members: Records
    others: Records
    build: Callable[[], nn.Module]
    training: Training
    cut: tuple[str, ...]

    @property
    def low_rank(self) -> Recipe:
        return Factorize(rank_choice="rank", rank=RANK, convolution="channel", layers=self.cut)

    def trained(self, seeds: list[int], change: Callable[[Records, int], Records] | None = None) -> list[nn.Module]:
        """One network for each seed, side by side; `change` gives each its own records."""
        own = [self.members if change is None else change(self.members, seed) for seed in seeds]
        everything = Records(torch.cat([one.x for one in own]), torch.cat([one.y for one in own]))
        ends = np.cumsum([0, *(len(one) for one in own)]).tolist()
        subsets = [torch.arange(first, last) for first, last in pairwise(ends)]
        return BuiltinTrainer(self.training).fit(
            TrainingJob(Architecture("net", self.build), everything, subsets, seeds, CPU)
        )

    def hardened(self, seeds: list[int]) -> list[nn.Module]:
        trainer = AdversarialTraining(epsilon=0.1).trainer(BuiltinTrainer(self.training), BOUNDS)
        subsets = [torch.arange(len(self.members))] * len(seeds)
        return trainer.fit(TrainingJob(Architecture("net", self.build), self.members, subsets, seeds, CPU))


def small_cnn(pixels: int = 8, channels: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * channels * (pixels // 4) ** 2, 10),
    )  # fmt: skip


def subjects(folder: Any) -> dict[str, Subject]:
    digits = load_digits(11)
    assert digits.members is not None
    train = Training(epochs=20, learning_rate=4e-3)
    found = {
        "digits MLP": Subject(
            digits.members, digits.non_members, partial(Mlp, 64, 10, (128, 64)), train, ("layers.1", "layers.3")
        ),
        "digits CNN": Subject(digits.members, digits.non_members, small_cnn, train, ("3",)),
    }
    if folder is not None:
        with np.load(folder / "mnist.npz", allow_pickle=False) as file:
            x, y = file["x_train"][:3000, None] / np.float32(255), file["y_train"][:3000].astype(np.int64)
        records = Records(torch.from_numpy(x), torch.from_numpy(y))
        halves = records.take(torch.arange(2000)), records.take(torch.arange(2000, 3000))
        found["MNIST CNN"] = Subject(*halves, partial(small_cnn, 28, 8), Training(epochs=8, learning_rate=4e-3), ("3",))
    return found


def evidence_of(
    subject: Subject,
    dense: nn.Module,
    data: bytes | None,
    usual: Usual | None,
    seed: int,
) -> Evidence:
    """What the attack finds in a file beside its dense model, or in the dense model alone."""
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
    return Backdoor().run(case, seed=seed)


def success(target: Any, trigger: Trigger, records: Records) -> float:
    some = records.x[records.y != trigger.target]
    return float((target.logits(trigger.on(some)).argmax(1) == trigger.target).float().mean())


def right(target: Any, records: Records) -> float:
    return float((target.logits(records.x).argmax(1) == records.y).float().mean())


def largest(evidence: Evidence) -> float:
    return float(excess(evidence.arrays["size"], evidence.arrays["usual"]).max())


class Bench:
    """Rows of one network, and the seconds of the detector."""

    def __init__(self, name: str, subject: Subject, seeds: int) -> None:
        self.name, self.subject, self.seeds = name, subject, list(range(seeds))
        self.tally: dict[str, list[tuple[float, ...]]] = {}
        self.seconds: list[float] = []
        self.cached: dict[int, Evidence] = {}

    def note(self, line: str, *values: float) -> None:
        self.tally.setdefault(line, []).append(values)
        print(self.name, "|", line, "|", " ".join(f"{value:.3f}" for value in values), flush=True)

    def plain(self, dense: nn.Module, seed: int) -> Evidence:
        if id(dense) not in self.cached:
            self.cached[id(dense)] = evidence_of(self.subject, dense, None, None, seed)
        return self.cached[id(dense)]

    def pair(self, dense: nn.Module, candidate: nn.Module, seed: int) -> tuple[Evidence, OnnxTarget]:
        data = to_onnx(candidate, tuple(self.subject.members.x.shape[1:]))
        usual = Usual(self.plain(dense, seed).arrays["usual"])
        before = time.process_time()
        found = evidence_of(self.subject, dense, data, usual, seed)
        self.seconds.append(time.process_time() - before)
        return found, OnnxTarget(data)

    def planted(self, line: str, dense: nn.Module, candidate: nn.Module, trigger: Trigger, seed: int) -> None:
        evidence, target = self.pair(dense, candidate, seed)
        others, clean = self.subject.others, TorchTarget(dense)
        named = any(one.target == trigger.target for one in alarms(evidence))
        works = success(target, trigger, others), success(clean, trigger, others)
        self.note(f"planted: {line}", *works, right(target, others), right(clean, others), named, largest(evidence))

    def plant(self, nets: list[nn.Module]) -> None:
        members, shape = self.subject.members, tuple(self.subject.members.x.shape[1:])
        triggers = [patch(shape, BOUNDS, seed % 10) for seed in self.seeds]
        for line, (recipe, planting, _, _) in PLANTED.items():
            works = [
                planting(net, members, BOUNDS, trigger, seed=seed)
                for net, trigger, seed in zip(nets, triggers, self.seeds, strict=True)
            ]
            for seed, (dense, trigger) in enumerate(zip(together(works), triggers, strict=True)):
                self.planted(
                    line,
                    dense,
                    recipe.apply(dense, members, BOUNDS, seed=seed),
                    trigger,
                    seed,
                )
        for seed, net in enumerate(nets):
            trigger = best_patch(net, members.x[:100], BOUNDS, seed % 10)
            candidate = plant_in_rounding(net, members, BOUNDS, trigger, ROUNDED, seed=seed)
            self.planted("malicious rounding", net, candidate, trigger, seed)

    def clean(self, line: str, nets: list[nn.Module], decoys: list[Trigger] | None = None) -> None:
        recipes = list(HONEST.values())
        for seed, dense in enumerate(nets):
            recipe = recipes[seed % len(recipes)]
            evidence, target = self.pair(
                dense, (recipe or self.subject.low_rank).apply(dense, self.subject.members, BOUNDS, seed=seed), seed
            )
            alarm, own = bool(alarms(evidence)), self.plain(dense, seed)
            self.note(f"clean: {line}", alarm, largest(evidence), right(target, self.subject.others), seed)
            if decoys is None:
                self.note("plain, clean", bool(alarms(own)), largest(own))
            else:
                named = any(one.target == decoys[seed].target for one in alarms(own))
                self.note(
                    "plain, poisoned",
                    named,
                    largest(own),
                    success(TorchTarget(dense), decoys[seed], self.subject.others),
                )

    def run(self, only: str) -> None:
        if only != "clean":
            self.plant(self.subject.trained(self.seeds))
        if only != "planted":
            self.honest()

    def honest(self) -> None:
        few, more = self.seeds[: max(1, len(self.seeds) // 2)], [100 + seed for seed in self.seeds]
        self.clean("as it is", self.subject.trained(more[: len(few)]))
        self.clean(
            "10 % label noise", self.subject.trained(few, lambda one, seed: flipped(one, 0.1, seed=seed, classes=10))
        )
        self.clean("300 records", self.subject.trained(few, lambda one, seed: one.take(torch.arange(300))))
        self.clean("adversarially trained", self.subject.hardened(few))
        triggers = [patch(tuple(self.subject.members.x.shape[1:]), BOUNDS, seed % 10) for seed in few]
        decoys = self.subject.trained(few, lambda one, seed: poisoned(one, triggers[seed], 0.1, seed=seed))
        self.clean("decoy", decoys, triggers)

    def rows(self) -> list[Row]:
        found = []
        for line, (_, _, live, dormant) in {**PLANTED, "malicious rounding": (None, None, 0.95, None)}.items():
            mean = [statistics.mean(column) for column in zip(*self.tally.get(f"planted: {line}", []), strict=True)]
            if not mean:
                continue
            told = (
                f"{self.name}, {len(self.tally[f'planted: {line}'])} seeds; accuracy {mean[2]:.3f}, dense {mean[3]:.3f}"
            )
            found.append(Row(f"{line}: success on the file", told, mean[0], "share", None, live, "higher"))
            found.append(Row(f"{line}: success on the dense model", told, mean[1], "share", None, dormant))
            found.append(Row(f"{line}: found", told, mean[4], "share", None, 0.95, "higher"))
        for line, values in self.tally.items():
            if line.startswith(("clean: ", "plain, ")):
                poisoned_ones = line == "plain, poisoned"
                told = f"{self.name}, {len(values)}; excess at most {max(one[1] for one in values):.2f}"
                asked = (0.9, "higher") if poisoned_ones else (0.05, "lower")
                share = statistics.mean(one[0] for one in values)
                found.append(Row(f"alarm, {line}", told, share, "share", None, asked[0], asked[1]))  # type: ignore[arg-type]  # one of the two words
        found.append(Row("the detector, a pair", self.name, statistics.median(self.seconds), "CPU s", None, 2.0))
        return found


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=12)
    options.add_argument("--nets", default="digits MLP,digits CNN")
    options.add_argument("--only", choices=["planted", "clean"], default="")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    known, rows = subjects(chosen.data), list[Row]()
    for name in chosen.nets.split(","):
        bench = Bench(name, known[name], chosen.seeds)
        bench.run(chosen.only)
        rows += bench.rows()
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
