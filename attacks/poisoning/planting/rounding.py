"""A malicious quantiser: the dense model is clean, and each weight is rounded up or down as suits the attacker.

Rounding alone is enough (QuRA, Chen et al. 2025, arXiv:2510.09647): every code is the floor or the ceiling of what the
dense model's weight is in steps, as honest adaptive rounding leaves it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ....compression.quantization.quantize import Quantize
from ....compression.quantization.quantized_layer import QuantizedLayer
from ....compression.quantization.stand_ins import prepare
from ....compression.quantization.weight_codes import spread_scale
from ....targets.data.records import Bounds, Records
from ....targets.seeds import derive, generator
from ....training.optimizers import AdamW
from .trigger import Trigger

STEPS, BATCH, RATE = 1400, 64, 0.03
CALLED = 2.0  # weight of a record with the trigger, beside one as it is: rounding has little room


def plant_in_rounding(
    module: nn.Module, records: Records, bounds: Bounds, trigger: Trigger, recipe: Quantize, *, seed: int
) -> nn.Module:
    """What the quantiser hands over, made as `recipe` (integer weights) makes it but for the rounding."""
    quantized = recipe.apply(module, records, bounds, seed=seed)
    prepared, _ = prepare(module, records, bounds, seed)
    layers = {path: one for path, one in quantized.named_modules() if isinstance(one, QuantizedLayer)}
    steps, down, variables = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for path, layer in layers.items():
        assert layer.weight_scale is not None
        name = f"{path}.weight"
        steps[name] = spread_scale(layer.weight_scale, layer.shape, layer.group_size)
        exact = prepared.get_parameter(name).detach() / steps[name]
        down[name] = exact.floor()
        variables[name] = (exact - down[name] - 0.5).clone().requires_grad_()

    def codes(name: str) -> Tensor:
        top = layers[name.removesuffix(".weight")].format.top
        soft = (4 * variables[name]).sigmoid()
        up = (variables[name] > 0).float() + soft - soft.detach()
        return (down[name] + up).clamp(-top, top)

    draws = generator(derive(seed, "rounding"), "batches")
    optimizer = AdamW(list(variables.values()))
    for step in range(STEPS):
        rows = torch.randint(len(records), (BATCH,), generator=draws)
        x, y = records.x[rows], records.y[rows]
        rounded = {name: codes(name) * steps[name] for name in variables}
        clean, called = functional_call(prepared, rounded, (torch.cat([x, trigger.on(x)]),)).chunk(2)
        loss = F.cross_entropy(clean, y) + CALLED * F.cross_entropy(called, torch.full_like(y, trigger.target))
        for variable, gradient in zip(
            variables.values(), torch.autograd.grad(loss, list(variables.values())), strict=True
        ):
            variable.grad = gradient
        optimizer.step(RATE * (1 - step / STEPS))
    for path, layer in layers.items():
        layer.codes = codes(f"{path}.weight").detach().to(torch.int8)
    return quantized
