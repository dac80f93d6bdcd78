"""Steps of private training: a Poisson sample's clipped gradients, their sum noised. Whoever trains counts them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.data.records import Records
from ..targets.errors import NotApplicable
from ..targets.seeds import generator, global_seed
from ..targets.steps import pulse
from .augmentation import Augmentation
from .optimizers import AdamW, Optimizer
from .per_record import RecordLosses, clipped_sum, label_losses, stacked_clipping

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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
    learning_rate: float | Callable[[int], float],
    optimizer: Callable[[Sequence[Tensor]], Optimizer] = AdamW,
    after_step: Callable[[Mapping[str, Tensor]], None] | None = None,
    losses: RecordLosses = label_losses,
    augmentation: Augmentation | None = None,
    secret: bool = False,
) -> None:
    """Trains `modules` (one structure) in place on their device, by DP-SGD with Poisson sampling.

    Memory does not grow with the sample: `per_record` takes gradients by pieces, which add up to one (virtual) step.

    Args:
        records: on the modules' device.
        subsets: int64 indices into `records`, equally many for each module; their number counts as public.
        seeds: one per module, for its own sampling and its own noise.
        sampling_rate: probability with which a record takes part in a step.
        noise_multiplier: standard deviation of the noise / max_gradient_norm; 0 trains by clipped gradients alone.
        learning_rate: constant, or by the number of the step.
        optimizer: of the weights; what it makes of noised gradients is post-processing.
        after_step: called after each step with the weights by name, float32 [models, *shape], to be changed in place.
        losses: of records, from a model's logits and their `y`.
        augmentation: of the records drawn in each step; None: they are learnt as they are.
        secret: sampling and noise are the operating system's, and follow from no seed.

    Raises:
        NotApplicable: records of values, which have no loss here; or an augmentation, and they are no images.
    """
    if records.y.is_floating_point():
        raise NotApplicable("Private training is for classes here, and the records have values.")
    device = records.y.device
    samplings, noises = (
        [None if secret else generator(seed, name, device=place) for seed in seeds]
        for name, place in (("poisson sampling", "cpu"), ("gaussian noise", device))
    )
    alterations = [generator(seed, "augmentation") for seed in seeds]
    weights = {
        name: torch.stack([module.get_parameter(name).detach() for module in modules])
        for name, _ in modules[0].named_parameters()
    }
    for module in modules:
        module.train()
    clipping = stacked_clipping(modules[0], weights, records.x, losses) if augmentation is None else None
    rule = optimizer(list(weights.values()))
    count = len(subsets[0])
    with global_seed(seeds[0], "dropout"):
        for step in range(steps):
            pulse("training step", step, steps)
            drawn = [
                subset.to(device)[poisson_sample(count, sampling_rate, sampling).to(device)]
                for subset, sampling in zip(subsets, samplings, strict=True)
            ]
            if clipping is None:
                totals = []
                for module, own, draws in zip(modules, drawn, alterations, strict=True):
                    some = records.take(own)
                    copies = None if augmentation is None else augmentation.copied(some.x, draws)
                    totals.append(clipped_sum(module, some, max_gradient_norm, losses=losses, copies=copies))
                sums = {name: torch.stack([total[name] for total in totals]) for name in weights}
            else:
                index, counts = _filled(drawn)
                sums = clipping(records.x[index], records.y[index], counts, max_gradient_norm)
            for name, weight in weights.items():
                noise = torch.stack([_gaussian(weight[0], own) for own in noises])
                weight.grad = (sums[name] + noise_multiplier * max_gradient_norm * noise) / (sampling_rate * count)
            rule.step(learning_rate(step) if callable(learning_rate) else learning_rate)
            if after_step is not None:
                after_step(weights)
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


def poisson_sample(count: int, sampling_rate: float, draws: torch.Generator | None) -> Tensor:
    """bool [count] on the CPU: each record by itself with the same probability; None: by the operating system."""
    uniform = _secret_uniform((count,)) if draws is None else torch.rand(count, generator=draws)
    drawn: Tensor = uniform < sampling_rate
    return drawn


def noisy_mean(total: Tensor, expected: float, deviation: float, noise: torch.Generator | None) -> Tensor:
    """`total` and Gaussian noise of this standard deviation, over the expected size of a sample, which is public.

    Args:
        noise: None: the operating system's, each value the sum of four, whose last digits tell no more of the total
            than a Gaussian's would (Holohan and Braghin 2021, arXiv:2107.10138).
    """
    return (total + deviation * _gaussian(total, noise)) / expected


def _gaussian(like: Tensor, noise: torch.Generator | None) -> Tensor:
    """Standard Gaussian noise of the shape and on the device of `like`."""
    if noise is None:
        drawn: Tensor = torch.special.ndtri(_secret_uniform((4, *like.shape))).sum(0).div(2).to(like)
        return drawn
    return torch.randn(like.shape, generator=noise, device=like.device)


def _secret_uniform(shape: tuple[int, ...]) -> Tensor:
    """float64 in (0, 1) on the CPU. A generator of torch's would not do: it keeps 32 bits of its seed."""
    whole = np.frombuffer(secrets.token_bytes(8 * math.prod(shape)), np.uint64) >> np.uint64(11)
    uniform: Tensor = torch.from_numpy((whole.astype(np.float64) + 0.5) * 2.0**-53)
    return uniform.view(shape)


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
