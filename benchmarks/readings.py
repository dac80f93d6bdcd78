"""How often the units of a finished file are found out from a test set, over trainings, units and sizes of the set.

A file whose robust accuracy, as it is read, is further than 5 points from the network's own, and that carries no flag,
is wrong. Digits, an MLP and the CNN, in 0..1, 0..255, -1..1 and normalised by the data's own mean and deviation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from contract import Row, arguments, publish
from torch import Tensor, nn
from torch.nn import functional

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.targets.interface.assumptions import Overrides
from crushproof.targets.interface.finished_model import differentiable
from crushproof.targets.interface.infer import assume
from crushproof.targets.interface.readings import ALIKE
from crushproof.targets.untrusted.model_file import ModelFile, check_onnx
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp, digits_cnn

UNITS = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0), "normalised": (1 / 0.376, -0.305 / 0.376)}
SEEDS, SIZES, EPSILON, POINTS = 5, (150, 250, 500), 0.08, 0.05
NETWORKS: dict[str, Callable[[], nn.Module]] = {"MLP": lambda: Mlp(64, 10, (32,)), "CNN": digits_cnn}


def exported(model: bytes) -> ModelFile:
    """As `read_model_file` gives it, without the process of its own."""
    return ModelFile("onnx", model, check_onnx(model).facts)


class Undone(nn.Module):
    """A network that takes records in other units."""

    def __init__(self, inner: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.inner, self.scale, self.shift = inner, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.shift) / self.scale)


def robust(module: nn.Module, records: Records) -> float:
    """The share right before and after one step along the sign of the gradient."""
    x = records.x.clone().requires_grad_(True)
    functional.cross_entropy(module(x), records.y, reduction="sum").backward()
    assert x.grad is not None
    with torch.no_grad():
        right = module(x).argmax(1) == records.y
        right &= module(x + EPSILON * x.grad.sign()).argmax(1) == records.y
    return float(right.double().mean())


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    digits = load_digits()
    assert digits.members is not None
    judged = digits.non_members.take(torch.arange(len(digits.non_members) - 300, len(digits.non_members)))
    rows = []
    for name, build in NETWORKS.items():
        networks = [train(build(), digits.members, Training(epochs=6), seed=seed).eval() for seed in range(SEEDS)]
        for size in SIZES:
            data = Data("first", None, digits.non_members.take(torch.arange(size)), digits.bounds, digits.class_names)
            wrong = flagged = 0
            for network in networks:
                truth = robust(network, judged)
                for scale, shift in UNITS.values():
                    model = to_onnx(Undone(network, scale, shift), digits.shape)
                    file = exported(model)
                    assumptions, sentences = assume(file, data, Overrides())
                    found = robust(differentiable(file, assumptions, data.bounds, data.shape), judged)
                    doubtful = sentences[0].startswith(ALIKE)
                    flagged += doubtful
                    wrong += not doubtful and abs(found - truth) > POINTS
            count = SEEDS * len(UNITS)
            rows.append(Row("read wrong, unflagged", f"{name}, {size} records", wrong / count, "share", target=0.05))
            rows.append(Row("flagged", f"{name}, {size} records", flagged / count, "share"))
    publish(rows, options.json)


if __name__ == "__main__":
    main()
