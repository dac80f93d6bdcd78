"""Shadow models: a stack against the loop that trains one after the other, and recipes that train, replayed on them.

    python benchmarks/shadows.py [--json FILE]

Digits, one thread, CPU seconds, ours and the peer's in turns, median of three. The loop of the peers is our own for one
model, which has torch's fused Adam; `plain torch` is the loop as it is usually written, with torch.optim.AdamW.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from contract import Row, alternate, arguments, publish
from torch import nn

from crushproof.attacks.membership.population import PopulationPlan, plan_population
from crushproof.attacks.membership.signals import shadow_signals
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many, train_stack
from crushproof.training.networks import Mlp, ResidualCnn, digits_cnn, digits_mlp

CPU = torch.device("cpu")
EPOCHS = 5
TUNE = {"epochs": 3, "learning_rate": 4e-3}
REPLAYS = {
    "prune 80 % + fine-tune": {"kind": "prune", "sparsity": 0.8, "fine_tune": TUNE},
    "half the channels + fine-tune": {"kind": "prune", "structure": "channels", "sparsity": 0.5, "fine_tune": TUNE},
    "low rank + fine-tune": {"kind": "factorize", "convolution": "channel", "energy": 0.7, "fine_tune": TUNE},
    "distilled": {"kind": "distill", "training": {"epochs": 8, "batch_size": 32, "learning_rate": 1e-2}},
}


class Cnn(nn.Module):
    """Two convolutions of 16 and 32 channels on 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            x = torch.max_pool2d(torch.relu(layer(x)), 2)
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


def plain(job: TrainingJob, training: Training) -> None:
    """As it is usually written."""
    for subset, seed in zip(job.subsets, job.seeds, strict=True):
        module, own = job.architecture.fresh(seed), job.records.take(subset)
        optimizer = torch.optim.AdamW(module.parameters(), training.learning_rate)
        for _ in range(training.epochs):
            order = torch.randperm(len(own))
            for first in range(0, len(own) // training.batch_size * training.batch_size, training.batch_size):
                index = order[first : first + training.batch_size]
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(own.x[index]), own.y[index]).backward()
                optimizer.step()


def one_by_one(job: TrainingJob, training: Training) -> list[nn.Module]:
    modules = [job.architecture.fresh(seed) for seed in job.seeds]
    for module, subset, seed in zip(modules, job.subsets, job.seeds, strict=True):
        train_stack([module], job.records, [subset], [seed], training)
    return modules


def trained(name: str, data: Data, architecture: Architecture, count: int, batch: int, target: float) -> list[Row]:
    plan = plan_population(data, count, seed=0)
    subsets = [plan.subset(shadow) for shadow in range(count)]
    job, training = TrainingJob(architecture, plan.records, subsets, plan.seeds, CPU), Training(batch_size=batch)
    training = training.model_copy(update={"epochs": EPOCHS})
    ours, loop, usual = alternate(
        partial(train_many, job, training), partial(one_by_one, job, training), partial(plain, job, training)
    )
    stacked, alone = train_many(job, training), one_by_one(job, training)
    apart = max(
        float((one - other).detach().abs().max())
        for mine, theirs in zip(stacked, alone, strict=True)
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True)
    )
    x, y = data.non_members.x, data.non_members.y
    with torch.no_grad():
        rates = [
            np.mean([float((module(x).argmax(1) == y).float().mean()) for module in modules])
            for modules in (stacked, alone)
        ]
    setting = f"N={count}, batch {batch}"
    return [
        Row(name, f"{setting}: best loop", ours, "s", peer=loop, target=target),
        Row(name, f"{setting}: plain torch", ours, "s", peer=usual),
        Row(name, f"{setting}: largest difference of a weight after {EPOCHS} epochs", apart, "", target=1e-5),
        Row(name, f"{setting}: difference of mean accuracy", 100 * abs(float(rates[0] - rates[1])), "points"),
    ]


def replayed(name: str, data: Data, architecture: Architecture) -> list[Row]:
    plan: PopulationPlan = plan_population(data, 16, seed=0)
    subsets = [plan.subset(shadow) for shadow in range(16)]
    job = TrainingJob(architecture, plan.records, subsets, plan.seeds, CPU)
    modules = [module.requires_grad_(False) for module in train_many(job, Training(epochs=EPOCHS))]
    rows = []
    for words, spec in REPLAYS.items():
        recipe = RECIPES.parse(spec)

        def together(recipe: object = recipe) -> np.ndarray:
            return shadow_signals(plan, modules, recipe=recipe, bounds=data.bounds).phi

        def apart(recipe: object = recipe) -> np.ndarray:
            rows = [
                shadow_signals(plan, [one], first=at, recipe=recipe, bounds=data.bounds).phi
                for at, one in enumerate(modules)
            ]
            return np.concatenate(rows)

        ours, loop = alternate(together, apart)
        difference = float(np.median(np.abs(together() - apart())))
        rows.append(Row(name, f"{words}, replayed on 16", ours, "s", peer=loop, target=1 / 2))
        rows.append(Row(name, f"{words}: median difference of phi", difference, ""))
    return rows


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    data = load_digits(0)
    large = Architecture("large mlp", lambda: Mlp(64, 10, (512, 256)))
    wide = Architecture("wide cnn", lambda: ResidualCnn(channels=32))
    rows = [
        *trained("MLP 64-64-128-10", data, Architecture("mlp", digits_mlp), 64, 32, 1 / 4.5),
        *trained("CNN 16/32 channels", data, Architecture("cnn", Cnn), 16, 16, 1 / 2.4),
        *trained("residual CNN of the built-in audit", data, Architecture("residual", digits_cnn), 16, 32, 1 / 0.95),
        *trained("MLP of 170,000 weights", data, large, 4, 32, 1 / 0.95),
        *trained("residual CNN, 32 channels", data, wide, 4, 32, 1 / 0.95),
        *replayed("MLP 64-64-128-10", data, Architecture("mlp", digits_mlp)),
        *replayed("residual CNN of the built-in audit", data, Architecture("residual", digits_cnn)),
    ]
    publish(rows, options.json)


if __name__ == "__main__":
    main()
