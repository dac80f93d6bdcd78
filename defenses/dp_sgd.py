"""DP-SGD: training whose result hardly depends on any single record, with the epsilon that proves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ..attacks.attack import Attack
from ..attacks.dp_audit.accounting import counted, prv_epsilon, smallest_noise
from ..attacks.dp_audit.bounds import MOST
from ..compression.layers.edit import replace_layers, working_copy
from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.steps import pulse
from ..training.architecture import Architecture
from ..training.augmentation import Augmentation
from ..training.loop import TrainingJob
from ..training.privacy import Noised, PrivacyClaim, schedule
from ..training.private_steps import BATCH_NORMS, private_gradient, refuse_mixing, train_privately
from ..training.stacked import group_size
from ..training.trainer import Trainer
from .defense import DEFENSES, TrainingDefense

SEEDED = (
    "the seed of the noise stays secret; this audit prints its own, so train the model that ships with secret_noise"
)
SECRET = "sampling and noise were the operating system's and are kept nowhere, so ship the weights that were audited"
COMPRESSED = "the compression's noise follows from the seed that this audit prints, which would have to stay secret"


@DEFENSES.register
class DpSgd(TrainingDefense):
    """Differentially private training (Abadi et al. 2016, arXiv:1607.00133) at a promised epsilon.

    Every step draws each record with one probability (Poisson sampling), clips each record's gradient, adds Gaussian
    noise to their sum and takes an Adam step, which is post-processing. The noise follows from epsilon by the PRV
    accountant (Gopi et al. 2021, arXiv:2106.02848) for adding or removing one record. Batch norm mixes records and
    becomes group norm. It replaces the plain training, a user's own function included, and needs no tuning by it.

    The promise assumes that the noise is secret. Unless `secret_noise` says otherwise it follows from the audit's seed,
    so whoever knows the seed, or tries the 2^32 that torch's generator tells apart, can subtract it. Nor does the
    promise cover hyper-parameters that were tuned on the members.
    """

    title: ClassVar[str] = "DP-SGD"
    private: ClassVar[bool] = True
    counts: ClassVar[bool] = True
    void: ClassVar[str] = "Epsilon: void. The compression looked at training records after DP-SGD."

    kind: Literal["dp-sgd"] = "dp-sgd"
    epsilon: float = Field(
        8.0, ge=0.01, le=MOST, description="the largest that the training may spend; more would promise nothing"
    )
    noise_multiplier: float | None = Field(
        None,
        ge=1e-3,
        le=1e6,
        description="standard deviation of the noise over max_gradient_norm; epsilon then follows, and what spends "
        "more than `epsilon` is refused. None: as little noise as keeps `epsilon`",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="probability that epsilon fails; must be below 1 / members")
    max_gradient_norm: PositiveFloat = Field(
        1.0, le=1e6, description="L2 norm to which each record's gradient is clipped"
    )
    epochs: PositiveInt = Field(12, le=10_000, description="passes over the records, on average")
    batch_size: PositiveInt = Field(256, le=2**20, description="records per step, on average")
    learning_rate: PositiveFloat = Field(0.02, le=100, description="of Adam, constant")
    augmentation: Augmentation | None = Field(
        None,
        description="of images: a record's gradient is the mean over that many altered copies before it is clipped, at "
        "the same epsilon and that many times the cost",
    )
    secret_noise: bool = Field(
        False,
        description="sampling and noise of the model that ships come from the operating system, and are kept nowhere. "
        "An audit that goes on takes the weights it stored, and not without them; one begun anew trains another model, "
        "with other findings, so the file that was audited is the one to ship. Shadow models follow from the audit's "
        "seed as ever",
    )

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
            f"(sampling rate {statement['sampling_rate']:.3f}, {statement['steps']} steps, PRV accountant"
            + (", with the compression)" if "compression" in statement else ")")
        )

    def composed(self, statement: Mapping[str, Any], spent: tuple[Noised, ...]) -> dict[str, Any]:
        own = (statement["noise_multiplier"], statement["sampling_rate"], statement["steps"])
        return {**statement, **counted((Noised("training", *own), *spent), statement["delta"])} | {
            "training_epsilon": statement["epsilon"],
            "compression": "; ".join(one.phrase for one in spent),
            **({"condition": f"{SECRET}; {COMPRESSED}"} if self.secret_noise and spent else {}),
        }

    def voided(self, statement: Mapping[str, Any]) -> dict[str, Any]:
        why = "the compression looked at training records after DP-SGD"
        return {**statement, "epsilon": "void", "why": why}

    def schedule(self, training_records: int) -> tuple[float, int]:
        """(sampling rate, steps) for so many records."""
        return schedule(self.epochs, self.batch_size, training_records)

    def noise(self, training_records: int) -> float:
        """Standard deviation of the noise in units of `max_gradient_norm`.

        Raises:
            NotApplicable: delta is not below 1 / records, where a promise means little; or the given noise spends more
                than `epsilon`.
        """
        if self.delta >= 1 / training_records:
            raise NotApplicable(
                f"DP-SGD's delta ({self.delta:g}) must be below 1 / {training_records} (the training records): at that "
                "size publishing a whole record would be allowed. Give a smaller delta."
            )
        if self.noise_multiplier is None:
            return smallest_noise(self.epsilon, self.delta, *self.schedule(training_records))
        spent = prv_epsilon(self.noise_multiplier, self.delta, *self.schedule(training_records))
        if spent > self.epsilon:
            raise NotApplicable(
                f"DP-SGD with noise_multiplier {self.noise_multiplier:g} spends epsilon {spent:.2f}, and may spend "
                f"{self.epsilon:g}: raise epsilon or the noise, or leave noise_multiplier out."
            )
        return self.noise_multiplier

    def statement(self, training_records: int) -> dict[str, Any]:
        """What is promised: `epsilon` (PRV, an upper bound), `delta`, `sampling_rate`, `steps`, `noise_multiplier`,
        `max_gradient_norm`, `accountant`, `neighbours`, `condition`, and `epsilon_pld_check`, the figure of
        dp-accounting's independent privacy-loss-distribution accountant (Doroshenko et al. 2022).
        """
        sampling_rate, steps = self.schedule(training_records)
        noise = self.noise(training_records)
        return {
            **counted((Noised("training", noise, sampling_rate, steps),), self.delta),
            "delta": self.delta,
            "sampling_rate": sampling_rate,
            "steps": steps,
            "noise_multiplier": noise,
            "max_gradient_norm": self.max_gradient_norm,
            "accountant": "prv",
            "neighbours": "one record added or removed",
            "condition": SECRET if self.secret_noise else SEEDED,
        }

    def privacy(self, training_records: int) -> PrivacyClaim:
        sampling_rate, steps = self.schedule(training_records)
        noise = self.noise(training_records)
        step = gradient_step(
            noise_multiplier=noise, max_gradient_norm=self.max_gradient_norm, sampling_rate=sampling_rate
        )
        epsilon = self.epsilon
        if self.noise_multiplier is not None:
            epsilon = prv_epsilon(noise, self.delta, sampling_rate, steps)
        return PrivacyClaim(epsilon, self.delta, noise, sampling_rate, steps, step, void=self.void)


class DpSgdTrainer(Trainer):
    """Trains small models side by side, each with a generator of its own for its sampling and its noise.

    Args:
        secret: without such generators, as `DpSgd.secret_noise` has it.
    """

    def __init__(self, defense: DpSgd, secret: bool = False) -> None:
        self.defense, self.secret, self.repeatable = defense, secret, not secret

    @property
    def of_shipped(self) -> Trainer:
        return DpSgdTrainer(self.defense, self.defense.secret_noise)

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
                noise_multiplier=defense.noise(len(job.subsets[first])),
                max_gradient_norm=defense.max_gradient_norm,
                learning_rate=defense.learning_rate,
                augmentation=defense.augmentation,
                secret=self.secret,
            )
        return [module.eval() for module in modules]


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
