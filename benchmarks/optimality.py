"""How near `crushproof.evade` comes to the nearest adversarial inputs that anybody finds.

    python benchmarks/optimality.py [--net NAME ...] [--norm NORM ...] [--records 100] [--steps 200] [--json FILE]

Peers (`optimality_peers.py`; pip install --no-deps adv-lib==0.2.8 foolbox==3.3.4 eagerpy) and we attack six nets on
scikit-learn's digits, the first 100 records that none was trained on. Peers follow the gradients of the deployed
model's twin, as we do; whether an input is adversarial the deployed model says, of ours and theirs alike. One thread;
about ten minutes of CPU, most of it the peers'.

Optimality is AttackBench's (Cina et al. 2024, arXiv:2404.19460): of the area under the curve of robust accuracy over
the size of the perturbation, from 0 to the size e at which the best curve (per record the nearest input of all attacks)
reaches 0, what an attack takes away as a share of what the best takes away:

    (A * e - area(attack)) / (A * e - area(best)),    A: clean accuracy, area = mean of min(distance, e),

a distance being 0 where the clean record is wrong already and infinite where nothing was found. That is the integral of
the paper; its script joins the steps of the curve by straight lines, from the nearest distance on. The figure of an
attack is the mean over nets. AttackBench's best holds the attack's own results ("with ours"); beside it stands the one
against the peers alone, which may exceed 1.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from contract import Row, parser, publish
from optimality_peers import peers
from torch import Tensor, nn

from crushproof import evade
from crushproof.attacks.evasion.call.attackable import Attackable, attackable
from crushproof.attacks.evasion.nearest.found import Distance, norms
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp, digits_cnn
from crushproof.training.trainer import BuiltinTrainer

TARGETS: dict[Distance, float] = {"linf": 0.98, "l2": 0.95, "l1": 0.93, "l0": 0.97}
NETS = ("CNN", "MLP", "residual", "adversarially trained", "int8", "4-bit")
SEED = 0
ROBUST = 0.1  # radius of adversarial training


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def opened(name: str, data: Data) -> Attackable:
    """One of `NETS`, trained in seconds; int8 is the residual one's file, 4-bit the plain CNN's."""
    builds = {"MLP": partial(Mlp, 64, 10), "residual": digits_cnn, "int8": digits_cnn}
    assert data.members is not None
    job = TrainingJob.of_one(Architecture(name, builds.get(name, plain_cnn)), data.members, SEED, torch.device("cpu"))
    plain = BuiltinTrainer(Training(epochs=20))
    trainer = AdversarialTraining(epsilon=ROBUST).trainer(plain, data.bounds) if name == NETS[3] else plain
    module = trainer.fit(job)[0].eval()
    shape = tuple(data.non_members.x.shape[1:])
    if name not in ("int8", "4-bit"):
        return attackable(module, shape)
    recipe = Quantize(weight_bits=8 if name == "int8" else 4)
    return attackable(to_onnx(recipe.apply(module, data.members, data.bounds, seed=SEED), shape), shape)


def optimality(distances: Tensor, best: Tensor) -> float:
    """Of an attack, by the distances [n] that it and the best of all found; both 0 where the clean record is wrong."""
    clean, end = float((best > 0).double().mean()), float(best.max())
    area, least = (float(some.clamp_max(end).mean()) for some in (distances, best))
    return (clean * end - area) / (clean * end - least)


@dataclass(frozen=True)
class Result:
    """Distances [n] of one attack on one net, by the deployed model, and what it cost."""

    distances: Tensor
    seconds: float


def judged(model: Attackable, inputs: Tensor, x: Tensor, y: Tensor, norm: Distance) -> Tensor:
    """float64 [n]: the distances of those inputs that the deployed model gets wrong, else infinite; clean errors 0.

    One that only the twin gets wrong counts where the deployed model does so a hundredth farther from the record.
    """
    distances = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for stretch in (1.01, 1.0):
        stretched = (x + stretch * (inputs.detach() - x)).clamp(0, 1)
        wrong = model.deployed.logits(stretched).argmax(1) != y
        distances = torch.where(wrong, norms(stretched.double() - x.double(), norm), distances)
    return torch.where(model.deployed.logits(x).argmax(1) != y, 0.0, distances)


def timed(model: Attackable, attack: Any, x: Tensor, y: Tensor, norm: Distance) -> Result:
    torch.manual_seed(SEED)
    began = time.process_time()
    inputs = attack()
    seconds = time.process_time() - began
    return Result(judged(model, inputs, x, y, norm), seconds)


def theirs(model: Attackable, x: Tensor, y: Tensor, norm: Distance, steps: int) -> dict[str, Result]:
    """What each peer finds; one that stops with an error finds nothing, and says so."""
    assert model.twin is not None
    found = {}
    for name, attack in peers(norm, steps).items():
        try:
            found[name] = timed(model, lambda attack=attack: attack(model.twin, x.clone(), y.clone()), x, y, norm)
        except Exception as error:  # a peer's, of whatever kind: the others go on
            print(f"{name}, {norm}: {type(error).__name__}: {error}", flush=True)
    return found


def ours(model: Attackable, x: Tensor, y: Tensor, norm: Distance, budget: Any) -> Result:
    return timed(model, lambda: evade(model, x, y, norm=norm, budget=budget).adversarial, x, y, norm)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--net", nargs="*", default=list(NETS), choices=NETS)
    options.add_argument("--norm", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    options.add_argument("--records", type=int, default=100)
    options.add_argument("--steps", type=int, default=200, help="of the peers' longest attacks")
    options.add_argument("--budget", default="thorough", choices=("quick", "standard", "thorough"))
    given = options.parse_args()
    torch.set_num_threads(1)
    data = load_digits(SEED)
    x, y = data.non_members.x[: given.records], data.non_members.y[: given.records]
    rows, table = list[Row](), dict[str, Any]()
    met: dict[str, list[float]] = {}
    for net in given.net:
        model = opened(net, data)
        for norm in given.norm:
            found = theirs(model, x, y, norm, given.steps)
            own = ours(model, x, y, norm, given.budget)
            union = torch.stack([result.distances for result in found.values()]).amin(0)
            best = torch.minimum(union, own.distances)
            with_ours, alone = optimality(own.distances, best), optimality(own.distances, union)
            theirs_by = {name: optimality(result.distances, best) for name, result in found.items()}
            first = max(theirs_by, key=lambda name: theirs_by[name])
            spent = sum(result.seconds for result in found.values())
            met.setdefault(norm, []).append(with_ours)
            rows += [
                Row(f"{norm}, {net}", f"optimality; peer: {first}", with_ours, "", peer=theirs_by[first]),
                Row(f"{norm}, {net}", f"against {len(found)} peers alone", alone, ""),
                Row(f"{norm}, {net}", "CPU; all peers together", own.seconds, "s", peer=spent),
            ]
            table[f"{norm}, {net}"] = {
                name: {"optimality": theirs_by[name], "seconds": found[name].seconds} for name in found
            }
            print(
                f"{norm}, {net}: {with_ours:.4f}, alone {alone:.4f}, {own.seconds:.1f} s; "
                f"{first} {theirs_by[first]:.4f}",
                flush=True,
            )
    for norm, values in met.items():
        rows.append(
            Row(
                f"{norm}, mean of {len(values)} nets",
                f"optimality of {given.budget}, with ours",
                statistics.mean(values),
                "",
                target=TARGETS[norm],
                better="higher",
            )
        )
    publish(rows, given.json, table)


if __name__ == "__main__":
    main()
