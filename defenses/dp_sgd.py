"""DP-SGD: training whose result hardly depends on any single record, with the epsilon that proves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ..attacks.attack import Attack
from ..attacks.dp_audit.accounting import pld_epsilon, prv_epsilon, smallest_noise
from ..compression.layers.edit import replace_layers, working_copy
from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.seeds import generator, global_seed
from ..targets.steps import pulse
from ..training.loop import TrainingJob
from ..training.privacy import PrivacyClaim
from ..training.trainer import Trainer
from .defense import DEFENSES, TrainingDefense

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
GRADIENT_FLOATS = 2**26  # per-record gradients held at once (256 MiB); fixed, so that float sums are too
CHUNK = 256  # records whose gradients are computed side by side, at most


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
    """Trains one model after the other: stacking buys nothing, as a batch of per-record gradients fills the machine."""

    def __init__(self, defense: DpSgd) -> None:
        self.defense = defense

    @property
    def identity(self) -> str:
        return f"dp-sgd:{self.defense.model_dump_json()}"

    def fit(self, job: TrainingJob) -> list[nn.Module]:
        """See `Trainer.fit`.

        Raises:
            NotApplicable: the architecture mixes records (batch norm); `DpSgd.adapt` makes one that does not.
        """
        defense = self.defense
        modules = []
        for subset, seed in zip(job.subsets, job.seeds, strict=True):
            module = job.architecture.fresh(seed).to(job.device).requires_grad_(True)
            refuse_mixing(module)
            sampling_rate, steps = defense.schedule(len(subset))
            train_privately(
                module,
                job.records.take(subset).to(job.device),
                seed=seed,
                sampling_rate=sampling_rate,
                steps=steps,
                noise_multiplier=defense.noise_multiplier(len(subset)),
                max_gradient_norm=defense.max_gradient_norm,
                learning_rate=defense.learning_rate,
            )
            modules.append(module.eval())
        return modules


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
    module: nn.Module,
    records: Records,
    *,
    seed: int,
    sampling_rate: float,
    steps: int,
    noise_multiplier: float,
    max_gradient_norm: float,
    learning_rate: float,
) -> None:
    """Trains `module` in place on its device, by DP-SGD with Poisson sampling and Adam.

    Args:
        records: on the module's device; their number counts as public.
        sampling_rate: probability with which a record takes part in a step.
        noise_multiplier: standard deviation of the noise / max_gradient_norm; 0 trains by clipped gradients alone.
    """
    device = records.y.device
    sampling = generator(seed, "poisson sampling")
    noise = generator(seed, "gaussian noise", device=device)
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    module.train()
    with global_seed(seed, "dropout"):
        for step in range(steps):
            pulse("training step", step, steps)
            private = private_gradient(
                module,
                records,
                sampling=sampling,
                noise=noise,
                sampling_rate=sampling_rate,
                noise_multiplier=noise_multiplier,
                max_gradient_norm=max_gradient_norm,
            )
            for name, parameter in module.named_parameters():
                parameter.grad = private[name]
            optimizer.step()


def private_gradient(
    module: nn.Module,
    records: Records,
    *,
    sampling: torch.Generator,
    noise: torch.Generator,
    sampling_rate: float,
    noise_multiplier: float,
    max_gradient_norm: float,
) -> dict[str, Tensor]:
    """One step's gradient by parameter name: a Poisson sample's clipped sum and noise, over its expected size.

    Args:
        sampling: a generator on the CPU.
        noise: a generator on the records' device.
    """
    device = records.y.device
    drawn = torch.rand(len(records), generator=sampling) < sampling_rate
    total = clipped_sum(module, records.take(drawn.to(device)), max_gradient_norm)
    gradient = {}
    for name, parameter in module.named_parameters():
        gaussian = torch.randn(parameter.shape, generator=noise, device=device)
        noisy = total[name] + noise_multiplier * max_gradient_norm * gaussian
        gradient[name] = noisy / (sampling_rate * len(records))
    return gradient


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
            sampling=draws,
            noise=draws,
            sampling_rate=sampling_rate,
            noise_multiplier=noise_multiplier,
            max_gradient_norm=max_gradient_norm,
        )["weight"]
        return (private[1] - private[0]) / math.sqrt(2)

    return step


def clipped_sum(module: nn.Module, records: Records, max_norm: float) -> dict[str, Tensor]:
    """The sum over records of each one's cross-entropy gradient, clipped to L2 norm `max_norm` over all parameters.

    Returns:
        By parameter name, float32 like the parameter; zeros for no records.
    """
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, parameters, (x[None],))
        return F.cross_entropy(logits, y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    size = max(1, min(CHUNK, GRADIENT_FLOATS // sum(parameter.numel() for parameter in parameters.values())))
    for x, y in zip(records.x.split(size), records.y.split(size), strict=True):
        if len(y) == 0:
            continue
        gradients = each(parameters, x, y)
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0)
        factor = (max_norm / squares.sqrt().clamp_min(1e-12)).clamp_max(1)
        for name, gradient in gradients.items():
            total[name] += torch.tensordot(factor, gradient, 1)
    return total
