"""DP-SGD: training whose result hardly depends on any single record, with the epsilon that proves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ..attacks.attack import Attack
from ..attacks.dp_audit.accounting import pld_epsilon, prv_epsilon, smallest_noise
from ..compression.layers.edit import replace_layers, working_copy
from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.seeds import generator, global_seed
from ..targets.steps import pulse
from ..training.architecture import Architecture
from ..training.loop import TrainingJob
from ..training.optimizers import AdamW
from ..training.per_record import clipped_sum, stacked_clipping
from ..training.privacy import PrivacyClaim
from ..training.stacked import group_size
from ..training.trainer import Trainer
from .defense import DEFENSES, TrainingDefense

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@DEFENSES.register
class DpSgd(TrainingDefense):
    """Differentially private training (Abadi et al. 2016, arXiv:1607.00133) at a promised epsilon.

    Every step draws each record with one probability (Poisson sampling), clips each record's gradient, adds Gaussian
    noise to their sum and takes an Adam step, which is post-processing. The noise follows from epsilon by the PRV
    accountant (Gopi et al. 2021, arXiv:2106.02848) for adding or removing one record. Batch norm mixes records and
    becomes group norm. It replaces the plain training, a user's own function included, and needs no tuning by it.

    The promise assumes that the noise is secret: it follows from the audit's seed, so whoever knows the seed can
    subtract it. Nor does it cover hyper-parameters that were tuned on the members.
    """

    title: ClassVar[str] = "DP-SGD"
    private: ClassVar[bool] = True
    void: ClassVar[str] = "Epsilon: void. The compression looked at training records after DP-SGD."

    kind: Literal["dp-sgd"] = "dp-sgd"
    epsilon: PositiveFloat = Field(8.0, le=1e6, description="the largest that the training may spend")
    delta: float = Field(1e-5, gt=0, lt=1, description="probability that epsilon fails; must be below 1 / members")
    max_gradient_norm: PositiveFloat = Field(
        1.0, le=1e6, description="L2 norm to which each record's gradient is clipped"
    )
    epochs: PositiveInt = Field(12, le=10_000, description="passes over the records, on average")
    batch_size: PositiveInt = Field(256, le=2**20, description="records per step, on average")
    learning_rate: PositiveFloat = Field(0.02, le=100, description="of Adam, constant")

    @classmethod
    def proposed(cls, metric: str, setting: Mapping[str, Any]) -> list[TrainingDefense]:
        return [cls()] if metric in ("auc", "tpr_at_1_percent_fpr") else []

    def trainer(self, plain: Trainer, bounds: Bounds) -> Trainer:
        return DpSgdTrainer(self)

    def adapt(self, module: nn.Module) -> nn.Module:
        """A copy with group norm (16 groups where the channels allow it) for batch norm; else the module itself."""
        norms = [layer for layer in module.modules() if isinstance(layer, BATCH_NORMS)]
        if not norms:
            return module
        adapted = working_copy(module)
        stand_ins: dict[nn.Module, nn.Module] = {}
        for layer in adapted.modules():
            if isinstance(layer, BATCH_NORMS):
                # A batch norm of plain features has one value per channel, and a group of one value would be erased.
                groups = 1 if isinstance(layer, nn.BatchNorm1d) else math.gcd(16, layer.num_features)
                device = layer.running_mean.device if layer.running_mean is not None else None
                stand_ins[layer] = nn.GroupNorm(groups, layer.num_features, layer.eps, layer.affine, device=device)
        return replace_layers(adapted, stand_ins).train(module.training)

    def adapted(self, attack: Attack) -> Attack:
        """The same attack: membership inference meets shadows trained by this defense, which is what adapts it."""
        return attack

    def phrase(self, statement: Mapping[str, Any]) -> str:
        if "epsilon" not in statement:
            return super().phrase(statement)
        if statement["epsilon"] == "void":
            return "DP-SGD, epsilon: void"
        return (
            f"DP-SGD, epsilon {statement['epsilon']:.2f} at delta {statement['delta']:.1e} "
            f"(sampling rate {statement['sampling_rate']:.3f}, {statement['steps']} steps, PRV accountant)"
        )

    def voided(self, statement: Mapping[str, Any]) -> dict[str, Any]:
        why = "the compression looked at training records after DP-SGD"
        return {**statement, "epsilon": "void", "why": why}

    def schedule(self, training_records: int) -> tuple[float, int]:
        """(sampling rate, steps) for so many records."""
        sampling_rate = min(1.0, self.batch_size / training_records)
        return sampling_rate, math.ceil(self.epochs / sampling_rate)

    def noise_multiplier(self, training_records: int) -> float:
        """Standard deviation of the noise in units of `max_gradient_norm`.

        Raises:
            NotApplicable: delta is not below 1 / records, where a promise means little.
        """
        if self.delta >= 1 / training_records:
            raise NotApplicable(
                f"DP-SGD's delta ({self.delta:g}) must be below 1 / {training_records} (the training records): at that "
                "size publishing a whole record would be allowed. Give a smaller delta."
            )
        return smallest_noise(self.epsilon, self.delta, *self.schedule(training_records))

    def statement(self, training_records: int) -> dict[str, Any]:
        """What is promised: `epsilon` (PRV, an upper bound), `delta`, `sampling_rate`, `steps`, `noise_multiplier`,
        `max_gradient_norm`, `accountant`, `neighbours`, `condition`, and `epsilon_pld_check`, the figure of
        dp-accounting's independent privacy-loss-distribution accountant (Doroshenko et al. 2022).
        """
        sampling_rate, steps = self.schedule(training_records)
        noise = self.noise_multiplier(training_records)
        return {
            "epsilon": prv_epsilon(noise, self.delta, sampling_rate, steps),
            "delta": self.delta,
            "sampling_rate": sampling_rate,
            "steps": steps,
            "noise_multiplier": noise,
            "max_gradient_norm": self.max_gradient_norm,
            "accountant": "prv",
            "neighbours": "one record added or removed",
            "condition": "the seed of the noise stays secret; this audit prints its own, so train the model that ships "
            "with another one",
            "epsilon_pld_check": pld_epsilon(noise, self.delta, sampling_rate, steps),
        }

    def privacy(self, training_records: int) -> PrivacyClaim:
        sampling_rate, steps = self.schedule(training_records)
        noise = self.noise_multiplier(training_records)
        step = gradient_step(
            noise_multiplier=noise, max_gradient_norm=self.max_gradient_norm, sampling_rate=sampling_rate
        )
        return PrivacyClaim(self.epsilon, self.delta, noise, sampling_rate, steps, step, void=self.void)


class DpSgdTrainer(Trainer):
    """Trains small models side by side, each with a generator of its own for its sampling and its noise."""

    def __init__(self, defense: DpSgd) -> None:
        self.defense = defense

    @property
    def identity(self) -> str:
        return f"dp-sgd:{self.defense.model_dump_json()}"

    def side_by_side(self, architecture: Architecture, device: torch.device) -> int:
        return group_size(architecture.blank(), 1, device)  # one step holds the gradients of every record anyway

    def fit(self, job: TrainingJob) -> list[nn.Module]:
        """See `Trainer.fit`.

        Raises:
            NotApplicable: the architecture mixes records (batch norm); `DpSgd.adapt` makes one that does not.
        """
        defense = self.defense
        modules = [job.architecture.fresh(seed).to(job.device).requires_grad_(True) for seed in job.seeds]
        refuse_mixing(modules[0])
        alike = len({len(subset) for subset in job.subsets}) == 1
        size = group_size(modules[0], 1, job.device) if alike else 1
        for first in range(0, len(modules), size):
            if len(modules) > size:
                pulse("model", first, len(modules))
            group = slice(first, first + size)
            sampling_rate, steps = defense.schedule(len(job.subsets[first]))
            train_privately(
                modules[group],
                job.records.to(job.device),
                job.subsets[group],
                job.seeds[group],
                sampling_rate=sampling_rate,
                steps=steps,
                noise_multiplier=defense.noise_multiplier(len(job.subsets[first])),
                max_gradient_norm=defense.max_gradient_norm,
                learning_rate=defense.learning_rate,
            )
        return [module.eval() for module in modules]


def refuse_mixing(module: nn.Module) -> None:
    """Raises NotApplicable if a layer lets records see each other, which no clipping per record can bound."""
    for path, layer in module.named_modules():
        if isinstance(layer, BATCH_NORMS) or getattr(layer, "track_running_stats", False):
            raise NotApplicable(
                f"DP-SGD bounds what each record contributes, and layer {path or type(module).__name__} "
                f"({type(layer).__name__}) mixes the records of a batch. Use the architecture that the defense's "
                "`adapt` returns (group norm), or one without batch statistics."
            )
        if isinstance(layer, nn.RNNBase):  # torch.func cannot batch them
            raise NotApplicable(
                "DP-SGD needs the gradient of each record by itself, which torch does not compute for recurrent "
                f"layers such as {path or type(module).__name__} ({type(layer).__name__})."
            )


def train_privately(
    modules: Sequence[nn.Module],
    records: Records,
    subsets: Sequence[Tensor],
    seeds: Sequence[int],
    *,
    sampling_rate: float,
    steps: int,
    noise_multiplier: float,
    max_gradient_norm: float,
    learning_rate: float,
) -> None:
    """Trains `modules` (one structure) in place on their device, by DP-SGD with Poisson sampling and Adam.

    Args:
        records: on the modules' device.
        subsets: int64 indices into `records`, equally many for each module; their number counts as public.
        seeds: one per module, for its own sampling and its own noise.
        sampling_rate: probability with which a record takes part in a step.
        noise_multiplier: standard deviation of the noise / max_gradient_norm; 0 trains by clipped gradients alone.
    """
    device = records.y.device
    samplings = [generator(seed, "poisson sampling") for seed in seeds]
    noises = [generator(seed, "gaussian noise", device=device) for seed in seeds]
    weights = {
        name: torch.stack([module.get_parameter(name).detach() for module in modules])
        for name, _ in modules[0].named_parameters()
    }
    for module in modules:
        module.train()
    clipping = stacked_clipping(modules[0], weights, records.x)
    optimizer = AdamW(list(weights.values()))
    count = len(subsets[0])
    with global_seed(seeds[0], "dropout"):
        for step in range(steps):
            pulse("training step", step, steps)
            drawn = [
                subset.to(device)[poisson_sample(count, sampling_rate, sampling).to(device)]
                for subset, sampling in zip(subsets, samplings, strict=True)
            ]
            if clipping is None:
                totals = [
                    clipped_sum(module, records.take(own), max_gradient_norm)
                    for module, own in zip(modules, drawn, strict=True)
                ]
                sums = {name: torch.stack([total[name] for total in totals]) for name in weights}
            else:
                index, counts = _filled(drawn)
                sums = clipping(records.x[index], records.y[index], counts, max_gradient_norm)
            for name, weight in weights.items():
                weight.grad = torch.stack(
                    [
                        noisy_mean(total, sampling_rate * count, noise_multiplier * max_gradient_norm, noise)
                        for total, noise in zip(sums[name], noises, strict=True)
                    ]
                )
            optimizer.step(learning_rate)
            if clipping is None or step == steps - 1:
                _write_back(weights, modules)


def _filled(drawn: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Each model's records as a row of one matrix, int64 [k, b], and which of it count: the rest is record 0."""
    index = torch.nn.utils.rnn.pad_sequence(list(drawn), batch_first=True)
    sizes = torch.tensor([len(own) for own in drawn], device=index.device)
    return index, torch.arange(index.shape[1], device=index.device) < sizes[:, None]


@torch.no_grad()
def _write_back(weights: dict[str, Tensor], modules: Sequence[nn.Module]) -> None:
    for name, weight in weights.items():
        for module, own in zip(modules, weight, strict=True):
            module.get_parameter(name).copy_(own)


def poisson_sample(count: int, sampling_rate: float, draws: torch.Generator) -> Tensor:
    """bool [count] on the CPU: each record by itself with the same probability."""
    return torch.rand(count, generator=draws) < sampling_rate


def noisy_mean(total: Tensor, expected: float, deviation: float, noise: torch.Generator) -> Tensor:
    """`total` and Gaussian noise of this standard deviation, over the expected size of a sample, which is public."""
    return (total + deviation * torch.randn(total.shape, generator=noise, device=total.device)) / expected


def private_gradient(
    module: nn.Module,
    records: Records,
    *,
    draws: torch.Generator,
    sampling_rate: float,
    noise_multiplier: float,
    max_gradient_norm: float,
) -> dict[str, Tensor]:
    """One step's gradient by parameter name: a Poisson sample's clipped sum and noise, over its expected size.

    Args:
        records: on the CPU.
        draws: for sampling and noise.
    """
    drawn = poisson_sample(len(records), sampling_rate, draws)
    total = clipped_sum(module, records.take(drawn), max_gradient_norm)
    expected, deviation = sampling_rate * len(records), noise_multiplier * max_gradient_norm
    return {name: noisy_mean(value, expected, deviation, draws) for name, value in total.items()}


def gradient_step(
    *, noise_multiplier: float, max_gradient_norm: float, sampling_rate: float
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """`private_gradient` as a function of gradients, for an audit: float32 [n, d] and a generator in, [d] out.

    A linear net of two classes at weight 0 has each record itself as its gradient, but for a rotation.
    """

    def step(gradients: Tensor, draws: torch.Generator) -> Tensor:
        net = nn.Linear(gradients.shape[1], 2, bias=False)
        nn.init.zeros_(net.weight)
        private = private_gradient(
            net,
            Records(math.sqrt(2) * gradients, torch.zeros(len(gradients), dtype=torch.int64)),
            draws=draws,
            sampling_rate=sampling_rate,
            noise_multiplier=noise_multiplier,
            max_gradient_norm=max_gradient_norm,
        )["weight"]
        return (private[1] - private[0]) / math.sqrt(2)

    return step
