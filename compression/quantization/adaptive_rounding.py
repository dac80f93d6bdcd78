"""Adaptive rounding: each weight up or down, as keeps what the layer computes rather than the weight itself.

And the same against what an attacker hid in nearest rounding: away from the nearest code where that costs least.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...targets.model import BATCH
from ...targets.steps import pulse
from ...training.optimizers import AdamW
from .calibration import watch
from .quantized_layer import Activations, quantize_layer
from .weight_codes import WeightFormat, spread_scale, weight_codes

ZETA, GAMMA = 1.1, -0.1  # how far the rectified sigmoid is stretched beyond [0, 1]
LEARNING_RATE = 0.1  # ten times the paper's, for a thirtieth of its steps
REGULARISATION = 1.0  # of undecided weights, against an error in units of that of nearest rounding
WARM_UP = 0.2  # share of the steps without regularisation
BETA = (20.0, 2.0)  # the regulariser's exponent, from first to last step
RECORDS = 32  # per step
FLIPPING = 1.0  # of weights left at their nearest code, against an error in units of that of nearest rounding


def layer_calls(module: nn.Module, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """What enters `layer` while `module` runs on `x`: one tensor [n * calls, *shape] per shape that occurs."""
    calls: dict[tuple[int, ...], list[Tensor]] = {}

    def keep(_: int, entering: Tensor) -> None:  # a copy: the model may go on to change the tensor in place
        calls.setdefault(tuple(entering.shape[1:]), []).append(entering.clone())

    watch(module, [layer], x, keep)
    return [torch.cat(parts) for parts in calls.values()]


def adaptive_codes(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d,
    format: WeightFormat,
    activations: Activations,
    entering: Sequence[Tensor],
    wanted: Sequence[Tensor],
    *,
    steps: int,
    generator: torch.Generator,
    flipped: bool = False,
) -> tuple[Tensor, Tensor]:
    """AdaRound (Nagel et al. 2020, arXiv:2004.10568): codes that each are floor or ceil of weight / scale.

    Scales are those of nearest rounding. A variable per weight says how far up it goes, through a rectified sigmoid;
    Adam minimises the mean squared error of the layer's output and, more and more, what is left undecided between up
    and down. Unlike the paper, the error does not look through the activation function that may follow. Nearest
    rounding is kept where it errs less on `entering`.

    Args:
        format: integer or fixed-point.
        activations: what the layer will do with its input.
        entering: the layer's inputs in the model quantised so far, [n, *shape] each (see `layer_calls`).
        wanted: what the float layer computes from its inputs in the float model, for each of `entering`.
        steps: of 32 records each, drawn by `generator` (a CPU generator).
        flipped: error-guided flipped rounding (EFRAP, Li et al. 2024, arXiv:2405.12725): it starts from the code on the
            other side of each weight, and staying at the nearest one costs the more the larger its rounding error is.
            Nearest rounding is never kept as a whole.

    Returns:
        codes int8 and scale float32, as `weight_codes` does.
    """
    probe = quantize_layer(layer, format, activations=activations)
    entering = [probe.round_input(x).detach() for x in entering]
    weight = layer.weight.detach()
    nearest, scale = weight_codes(weight, format)
    spread = spread_scale(scale, tuple(weight.shape), format.group_size)
    down = (weight / spread).floor()
    fraction = weight / spread - down
    between = fraction > 0  # a weight on the grid (a pruned one: zero) stays where it is

    def error(codes: Tensor, x: Tensor, y: Tensor) -> Tensor:
        rounded = codes.clamp(-format.top, format.top) * spread
        output: Tensor = functional_call(layer, {"weight": rounded}, (x,))
        return (output - y).square().mean()

    def total(codes: Tensor) -> float:
        summed = 0.0
        with torch.no_grad():
            for x, y in zip(entering, wanted, strict=True):
                for few, few_wanted in zip(x.split(BATCH), y.split(BATCH), strict=True):
                    summed += float(error(codes, few, few_wanted)) * few_wanted.numel()
        return summed

    of_nearest = total(nearest.float())
    unit = max(of_nearest / sum(y.numel() for y in wanted), 1e-30)
    start = 1 - fraction if flipped else fraction
    share = ((start - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1 - 1e-4)
    nearest_up, off = fraction >= 0.5, 2 * torch.minimum(fraction, 1 - fraction)  # off: 0 .. 1
    variable = torch.logit(share).requires_grad_()
    optimizer = AdamW([variable])
    for step in range(steps):
        pulse("rounding step", step, steps)
        x, y = entering[step % len(entering)], wanted[step % len(wanted)]
        chosen = torch.randint(len(x), (min(RECORDS, len(x)),), generator=generator).to(x.device)
        up = (variable.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1) * between
        loss = error(down + up, x[chosen], y[chosen]) / unit
        progress = (step / steps - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 + torch.cos(torch.tensor(torch.pi * progress))) / 2
            loss = loss + REGULARISATION * (1 - (2 * up - 1).abs().pow(beta)).mean()
        if flipped:
            loss = loss + FLIPPING * (off * torch.where(nearest_up, up, 1 - up) * between).mean()
        (variable.grad,) = torch.autograd.grad(loss, variable)
        optimizer.step(LEARNING_RATE)
    learned = (down + ((variable.detach() >= 0) & between)).clamp(-format.top, format.top)
    if not flipped and total(learned) >= of_nearest:
        return nearest, scale
    return learned.to(torch.int8), scale
