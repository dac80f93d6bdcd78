"""Shadow models: a stack against the loop that trains one after the other, and recipes that train, replayed on them.

    python benchmarks/shadows.py [--json FILE]

Digits, one thread, CPU seconds, ours and the peer's in turns, median of two or three. `best loop` is our own for one
model, which has torch's fused Adam; `plain torch` is the loop as it is usually written, with torch.optim.AdamW; two
processes, by the clock, want two free cores. DP-SGD is opacus's GradSampleModule and DPOptimizer, one
model after the other.

Weights of a stack and of the loop differ by the order in which float32 sums are taken, which Adam's division by the
root of a small number enlarges. The rows beside tell how far the loop differs from itself when it adds up a batch in
another order, and how far stack and loop are apart in float64.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from contract import Row, alternate, arguments, cpu_seconds, publish
from torch import Tensor, nn

from crushproof.attacks.membership.population import PopulationPlan, plan_population
from crushproof.attacks.membership.signals import settled, shadow_signals
from crushproof.compression.recipe import RECIPES
from crushproof.defenses.dp_sgd import DpSgd
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Forward, Training, TrainingJob, cross_entropy, train_many, train_stack
from crushproof.training.networks import Mlp, ResidualCnn, digits_cnn, digits_mlp
from crushproof.training.private_steps import train_privately

CPU = torch.device("cpu")
EPOCHS = 5
PRIVATE = {"noise_multiplier": 0.8, "max_gradient_norm": 1.0, "learning_rate": 0.02}
STEPS = 8  # of DP-SGD, at 256 records
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


def one_by_one(job: TrainingJob, training: Training, reversed_batches: bool = False) -> list[nn.Module]:
    """Our own loop; with the records of each batch in another order the same sums, added up differently."""
    plainly = cross_entropy(training)

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        return plainly(forward, x.flip(1), y.flip(1), index.flip(1), generators)

    modules = [job.architecture.fresh(seed) for seed in job.seeds]
    for module, subset, seed in zip(modules, job.subsets, job.seeds, strict=True):
        own = objective if reversed_batches else None
        train_stack([module], job.records, [subset], [seed], training, objective=own)
    return modules


def apart(some: Sequence[nn.Module], others: Sequence[nn.Module]) -> float:
    """The largest difference of a weight."""
    return max(
        float((one - other).detach().abs().max())
        for mine, theirs in zip(some, others, strict=True)
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True)
    )


def in_float64(job: TrainingJob) -> TrainingJob:
    """The same initial weights and records, in more digits."""
    build = job.architecture.build
    wider = Architecture(job.architecture.name, lambda: build().double())
    return TrainingJob(wider, Records(job.records.x.double(), job.records.y), job.subsets, job.seeds, job.device)


def half(number: int, network: Callable[[], nn.Module], count: int, training: Training, gate: object) -> None:
    """One of two processes that share the models of a plain loop; it begins when both are there."""
    torch.set_num_threads(1)
    job = job_of(load_digits(0), Architecture("half", network), count)
    own = slice(number * count // 2, (number + 1) * count // 2)
    mine = TrainingJob(job.architecture, job.records, job.subsets[own], job.seeds[own], CPU)
    brief = training.model_copy(update={"epochs": 1})
    plain(TrainingJob(job.architecture, job.records, job.subsets[:1], job.seeds[:1], CPU), brief)
    gate.wait()  # type: ignore[attr-defined]  # a barrier, whose class multiprocessing does not export
    plain(mine, training)
    gate.wait()  # type: ignore[attr-defined]


def two_processes(network: Callable[[], nn.Module], count: int, training: Training) -> float:
    """Seconds by the clock."""
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    workers = [context.Process(target=half, args=(one, network, count, training, gate)) for one in (0, 1)]
    for worker in workers:
        worker.start()
    gate.wait()
    started = time.monotonic()
    gate.wait()
    seconds = time.monotonic() - started
    for worker in workers:
        worker.join()
    return seconds


def by_the_clock(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def job_of(data: Data, architecture: Architecture, count: int) -> TrainingJob:
    plan = plan_population(data, count, seed=0)
    return TrainingJob(architecture, plan.records, [plan.subset(one) for one in range(count)], plan.seeds, CPU)


def trained(
    name: str,
    data: Data,
    network: Callable[[], nn.Module],
    count: int,
    batch: int,
    *,
    of_plain: float | None = None,
    of_loop: float | None = None,
    epochs: int = EPOCHS,
    closely: bool = False,
) -> list[Row]:
    """`closely`: also by the clock and in float64."""
    job, training = job_of(data, Architecture(name, network), count), Training(batch_size=batch, epochs=epochs)
    made: dict[str, list[nn.Module]] = {}
    ours, loop, usual = alternate(
        lambda: made.update(stack=train_many(job, training)),
        lambda: made.update(alone=one_by_one(job, training)),
        partial(plain, job, training),
        rounds=3 if closely else 2,
    )
    setting = f"N={count}, batch {batch}"
    weights = f"{setting}: largest difference of a weight after {epochs} epochs"
    x, y = data.non_members.x, data.non_members.y
    with torch.no_grad():
        rates = [
            100 * float(np.mean([float((module(x).argmax(1) == y).float().mean()) for module in modules]))
            for modules in (made["stack"], made["alone"])
        ]
    rows = [
        Row(name, f"{setting}: plain torch", ours, "s", peer=usual, target=of_plain),
        Row(name, f"{setting}: best loop", ours, "s", peer=loop, target=of_loop),
        Row(name, f"{setting}: mean accuracy", rates[0], "%", peer=rates[1], target=0.995, better="higher"),
        Row(name, weights, apart(made["stack"], made["alone"]), ""),
    ]
    if closely:
        few = TrainingJob(job.architecture, job.records, job.subsets[:16], job.seeds[:16], CPU)
        other = one_by_one(few, training, reversed_batches=True)
        exact = in_float64(few)
        difference = apart(train_many(exact, training), one_by_one(exact, training))
        rows += [
            Row(
                name,
                f"{weights}, loop against itself, batches added up backwards",
                apart(made["alone"][:16], other),
                "",
            ),
            Row(name, f"{weights}, in float64", difference, "", target=1e-5),
        ]
    return rows


def against_two_processes(name: str, data: Data, network: Callable[[], nn.Module], count: int, batch: int) -> list[Row]:
    job, training = job_of(data, Architecture(name, network), count), Training(batch_size=batch, epochs=EPOCHS)
    ours = by_the_clock(partial(train_many, job, training))
    peer = two_processes(network, count, training)
    return [Row(name, f"N={count}, batch {batch}: two processes, by the clock", ours, "s", peer=peer, target=1 / 2)]


def replayed(name: str, data: Data, architecture: Architecture) -> list[Row]:
    plan: PopulationPlan = plan_population(data, 16, seed=0)
    job = job_of(data, architecture, 16)
    modules = [module.requires_grad_(False) for module in train_many(job, Training(epochs=EPOCHS))]
    rows = []
    for words, spec in REPLAYS.items():
        recipe = settled(plan, modules[0], RECIPES.parse(spec), data.bounds)
        phi: dict[str, np.ndarray] = {}

        def signals(first: int, last: int, recipe: object = recipe) -> np.ndarray:
            return shadow_signals(plan, modules[first:last], first=first, recipe=recipe, bounds=data.bounds).phi

        def together(phi: dict[str, np.ndarray] = phi, signals: Callable[..., np.ndarray] = signals) -> None:
            phi["together"] = signals(0, 16)

        def each(phi: dict[str, np.ndarray] = phi, signals: Callable[..., np.ndarray] = signals) -> None:
            phi["each"] = np.concatenate([signals(one, one + 1) for one in range(16)])

        ours, loop = alternate(together, each, rounds=2)
        difference = float(np.median(np.abs(phi["together"] - phi["each"])))
        rows.append(Row(name, f"{words}, replayed on 16", ours, "s", peer=loop, target=1 / 2))
        rows.append(Row(name, f"{words}: median difference of phi", difference, ""))
    return rows


def private(name: str, data: Data, network: Callable[[], nn.Module]) -> list[Row]:
    """Sixteen shadows side by side; opacus trains two of them, and its figure is eight times that."""
    architecture = Architecture.like(DpSgd().adapt(network()), name)
    job = job_of(data, architecture, 16)
    rate = 256 / len(job.subsets[0])

    def ours() -> None:
        modules = [architecture.fresh(seed) for seed in job.seeds]
        train_privately(modules, job.records, job.subsets, job.seeds, sampling_rate=rate, steps=STEPS, **PRIVATE)

    def theirs() -> None:
        for subset, seed in zip(job.subsets[:2], job.seeds, strict=False):
            with_opacus(architecture.fresh(seed), job.records.take(subset), rate)

    with_opacus(architecture.fresh(0), job.records.take(job.subsets[0]), rate)
    mine, peer = (min(cpu_seconds(work) for _ in range(3)) for work in (ours, theirs))
    return [Row(name, f"DP-SGD, N=16, {STEPS} steps of 256: opacus", mine, "s", peer=8 * peer, target=1 / 3)]


def with_opacus(module: nn.Module, records: Records, rate: float) -> None:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    warnings.filterwarnings("ignore")
    wrapped = GradSampleModule(module.train())
    optimizer = DPOptimizer(
        torch.optim.Adam(wrapped.parameters(), lr=PRIVATE["learning_rate"]),
        noise_multiplier=PRIVATE["noise_multiplier"],
        max_grad_norm=PRIVATE["max_gradient_norm"],
        expected_batch_size=256,
    )
    for _ in range(STEPS):
        drawn = torch.rand(len(records)) < rate
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(records.x[drawn]), records.y[drawn]).backward()
        optimizer.step()


def small_cnn() -> nn.Module:
    return Cnn()


def large_mlp() -> nn.Module:
    return Mlp(64, 10, (512, 256))


def wide_cnn() -> nn.Module:
    return ResidualCnn(channels=32)


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    data = load_digits(0)
    mlp, cnn, residual = "MLP 64-64-128-10", "CNN 16/32 channels", "residual CNN of the built-in audit"
    worst = 1 / 0.95
    rows = [
        *trained(mlp, data, digits_mlp, 64, 32, of_plain=1 / 4.5, closely=True),
        *against_two_processes(mlp, data, digits_mlp, 64, 32),
        *trained(cnn, data, small_cnn, 16, 16, of_plain=1 / 2.4, closely=True),
        *trained(residual, data, digits_cnn, 16, 32, of_loop=worst, epochs=2),
        *trained("MLP of 170,000 weights", data, large_mlp, 4, 32, of_loop=worst),
        *trained("residual CNN, 32 channels", data, wide_cnn, 4, 32, of_loop=worst, epochs=2),
        *replayed(mlp, data, Architecture("mlp", digits_mlp)),
        *replayed(residual, data, Architecture("residual", digits_cnn)),
        *private(mlp, data, digits_mlp),
        *private(cnn, data, small_cnn),
        *private(residual, data, digits_cnn),
    ]
    publish(rows, options.json)


if __name__ == "__main__":
    main()
