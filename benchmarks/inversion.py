"""Whether model inversion finds a model that memorised its members, and leaves alone what knows none of them.

    python benchmarks/inversion.py [--seeds 10] [--json FILE]

scikit-learn's digits, split anew by each seed. Planted: a softmax regression trained until it memorises one member of
each class (Fredrikson et al. 2015 rebuilt faces from such models), and an MLP that overfits ten of each. Honest: an MLP
on 449 members, 6 epochs. Null: that model judged on members it was not trained on. Each with the attack `inversion` by
gradients and by scores alone. Found is an AUC surely above 0.6, which fails under any policy; the share of intervals
above one half stands beside it. Compressed: what 4 bits and 80 % pruning change of the overfitted MLP, paired. About 8
CPU s a seed, one thread.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.inversion.inversion import Inversion, InversionCase
from crushproof.attacks.inversion.judged import judged
from crushproof.attacks.inversion.measure import MEAN, OTHER
from crushproof.attacks.inversion.preparations import space_of
from crushproof.attacks.inversion.rebuild import by_gradients
from crushproof.attacks.inversion.risk import GIVEN_AWAY
from crushproof.attacks.statistics.ranking import auc, auc_change
from crushproof.attacks.statistics.rates import clopper_pearson
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import Mlp

ATTACK = Inversion()
CPU = torch.device("cpu")
MLP = Architecture("mlp", lambda: Mlp(64, 10, (128, 64)))
SOFTMAX = Architecture("softmax", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
RECIPES: dict[str, Any] = {
    "int4": Quantize(weight_bits=4, activations="float", keep_ends_8bit=False),
    "80 % pruned": Prune(sparsity=0.8),
}
WAYS = ("white-box", "scores", MEAN, OTHER)


def few_of_each(records: Records, count: int) -> Records:
    rows = [(records.y == one).nonzero().flatten()[:count] for one in range(10)]
    return records.take(torch.cat(rows))


def trained(architecture: Architecture, records: Records, epochs: int, seed: int) -> nn.Module:
    training = Training(epochs=epochs, batch_size=min(32, len(records)))
    return train_many(TrainingJob.of_one(architecture, records, seed, CPU), training)[0]


class Judge:
    """The attack on models of one data set."""

    def __init__(self, members: Records, digits: Data, seed: int) -> None:
        self.data = Data("digits", members, digits.non_members, digits.bounds, digits.class_names, seed=seed)
        known, self.about = self.data.attacker, judged(self.data, ATTACK.classes, seed)
        network, space = trained(MLP, known, 20, seed), space_of(self.data)
        means = torch.stack([space.known[known.y == one].mean(0) for one in self.about.classes.tolist()])
        rebuilt = by_gradients(
            network, space, known.y, torch.from_numpy(self.about.classes),
            starts=ATTACK.starts, steps=ATTACK.steps, weight=ATTACK.prior, seed=seed, ledger=Ledger(),
        )  # fmt: skip
        controls: dict[str, Tensor] = {MEAN: means, OTHER: rebuilt}
        self.prepared = InversionCase(
            self.about, space, known, lambda: self.about.records(self.data), lambda: network, 0.9, controls
        )

    def ran(self, module: nn.Module, seed: int) -> Evidence:
        data = self.data
        case = Case(
            deployed=TorchTarget(module), twin=module, native=None, parent=None, evaluation=data.evaluation,
            ids=data.evaluation_ids.numpy(), attacker=data.attacker, bounds=data.bounds, classes=10,
            prepared=self.prepared,
        )  # fmt: skip
        return ATTACK.run(case, seed=seed)


def figures(evidence: Evidence) -> dict[str, Any]:
    """By way: AUC with its interval, and whether more classes than chance have a member nearest."""
    found: dict[str, Any] = {}
    for way in WAYS:
        one, nearest = (
            auc(evidence.arrays[f"near/{way}"], evidence.arrays["is_member"]),
            evidence.arrays[f"nearest/{way}"],
        )
        found[way] = one, clopper_pearson(int(nearest.sum()), len(nearest)).low > 0.5
    found["recognised"] = float(np.mean(evidence.arrays["recognised/white-box"]))
    return found


def one_seed(seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    digits = load_digits(seed)
    assert digits.members is not None
    half, rest = (digits.members.take(torch.arange(449 * at, 449 * at + 449)) for at in (0, 1))
    one, ten = few_of_each(half, 1), few_of_each(half, 10)
    alone, overfit, usual = Judge(one, digits, seed), Judge(ten, digits, seed), Judge(half, digits, seed)
    memory = trained(MLP, ten, 100, seed)
    dense = overfit.ran(memory, seed)
    found = {
        "memorised, 1 of each class": alone.ran(trained(SOFTMAX, one, 200, seed), seed),
        "overfitted, 10 of each class": dense,
        "honest, 449 members": usual.ran(trained(MLP, half, 6, seed), seed),
        "null, other members": usual.ran(trained(MLP, rest, 60, seed), seed),
    }
    changes: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        small = overfit.ran(recipe.apply(memory, ten, digits.bounds, seed=seed), seed)
        near = [run.arrays["near/white-box"] for run in (small, dense)]
        changes[name] = auc_change(near[0], near[1], dense.arrays["is_member"]), figures(small)["recognised"]
    return {name: figures(one) for name, one in found.items()}, changes


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=10)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    before = time.process_time()
    runs = [one_seed(seed) for seed in range(chosen.seeds)]
    seconds = (time.process_time() - before) / chosen.seeds
    rows = []
    asked: dict[str, tuple[float, Any]] = {
        "memorised, 1 of each class": (0.95, "higher"),
        "honest, 449 members": (0.0, "lower"),
        "null, other members": (0.0, "lower"),
    }
    for name in runs[0][0]:
        target, better = asked.get(name, (None, "lower"))
        for way in WAYS:
            every = [found[name][way] for found, _ in runs]
            mean = statistics.mean(one.estimate for one, _ in every)
            above = statistics.mean(float(one.low > 0.5) for one, _ in every)
            failed = statistics.mean(float(one.low > GIVEN_AWAY) for one, _ in every)
            single = statistics.mean(float(one) for _, one in every)
            recognised = statistics.mean(found[name]["recognised"] for found, _ in runs)
            setting = f"{way}; mean AUC {mean:.3f}, above one half {above:.2f}, singled out {single:.2f}"
            setting += f", recognised {recognised:.2f}" if way == WAYS[0] else ""
            wanted = target if way in WAYS[:2] else None
            rows.append(Row(f"found: {name}", setting, failed, "share", target=wanted, better=better))
            if name.startswith("null") and wanted is not None:
                chance = statistics.mean(float(one.low <= 0.5 <= one.high) for one, _ in every)
                rows.append(Row("null: chance covered", way, chance, "share", target=0.9, better="higher"))
    for name in RECIPES:
        moved = [changes[name] for _, changes in runs]
        surely = [sum(one.high < 0 for one, _ in moved), sum(one.low > 0 for one, _ in moved)]
        setting = f"surely less {surely[0]}, surely more {surely[1]} of {len(moved)}; recognised "
        setting += f"{statistics.mean(seen for _, seen in moved):.2f}"
        change = statistics.mean(one.estimate for one, _ in moved)
        rows.append(Row(f"AUC gained by {name}, overfitted MLP", setting, change, "AUC"))
    rows.append(Row("a seed", "6 models, 3 sets of controls", seconds, "CPU s"))
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
