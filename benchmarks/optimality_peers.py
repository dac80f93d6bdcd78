"""Minimal-norm attacks of adv-lib 0.2.8 and foolbox 3.3, as `optimality.py` runs them.

Settings are AttackBench's (arXiv:2404.19460) but for the steps, of which it grants up to 1,000: here `steps`, and fewer
for those that search several times over. Brendel and Bethge's attack runs where numba is installed. ART has no
minimal-norm attack that these two lack. adv-lib imports torchvision and visdom for parts that no attack here uses,
foolbox GitPython: where they are not installed, empty modules stand in.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]  # module, x in [0, 1], y -> inputs like x
ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
FARTHEST = {"linf": 0.5, "l2": 4.0, "l1": 20.0}  # where halvings begin


class _StandIn(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name)


def stand_in() -> None:
    for name in ("torchvision", "visdom", "git"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = _StandIn(name)


def peers(norm: str, steps: int) -> dict[str, Peer]:
    """Every attack for this norm, by name."""
    stand_in()
    return {**_adv_lib(norm, steps), **_foolbox(norm, steps)}


def _adv_lib(norm: str, steps: int) -> dict[str, Peer]:
    from adv_lib import attacks
    from adv_lib.attacks import alma, ddn, fab, fmn, pdgd, pdpgd, vfga
    from adv_lib.attacks.auto_pgd import minimal_apgd

    order = ORDERS[norm]
    found: dict[str, Any] = {
        "adv-lib FMN": partial(fmn, norm=order, steps=steps),
        "adv-lib PDPGD": partial(
            pdpgd, norm=order, num_steps=min(steps, 500), proximal_operator=23 if norm == "l0" else None
        ),
    }
    if norm == "l0":
        if hasattr(attacks, "sigma_zero"):
            found["adv-lib sigma-zero"] = partial(attacks.sigma_zero, num_steps=steps)
        found["adv-lib VFGA"] = partial(vfga, targeted=False)
        return _called(found)
    found["adv-lib targeted FAB"] = partial(fab, norm=order, n_iter=50, targeted_restarts=True)
    found["adv-lib targeted APGD, 10 halvings"] = partial(
        minimal_apgd,
        norm=order,
        max_eps=FARTHEST[norm],
        binary_search_steps=10,
        targeted_version=True,
        n_iter=30,
        num_targets=3,
        use_large_reps=norm == "l1",
    )
    if norm in ("l1", "l2"):
        found["adv-lib ALMA"] = partial(_alma, alma, norm, steps)
    if norm == "l2":
        found["adv-lib DDN"] = partial(ddn, steps=steps, levels=None)
        found["adv-lib PDGD"] = partial(pdgd, num_steps=min(steps, 500))
    return _called(found)


def _alma(alma: Any, norm: str, steps: int, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from adv_lib.utils.lagrangian_penalties.penalty_functions import P2

    start = {"l2": 1.0, "l1": 5.0}[norm]
    found: Tensor = alma(module, x, y, penalty=P2, distance=norm, num_steps=steps, init_lr_distance=start)
    return found


def _called(attacks: dict[str, Any]) -> dict[str, Peer]:
    return {name: lambda module, x, y, attack=attack: attack(module, x, y) for name, attack in attacks.items()}


def _foolbox(norm: str, steps: int) -> dict[str, Peer]:
    import foolbox.attacks as attacks

    fmn = {
        "linf": attacks.LInfFMNAttack,
        "l2": attacks.L2FMNAttack,
        "l1": attacks.L1FMNAttack,
        "l0": attacks.L0FMNAttack,
    }
    found: dict[str, Any] = {"foolbox FMN": fmn[norm](steps=min(steps, 100))}
    if norm == "linf":
        found["foolbox PGD, 24 radii"] = attacks.LinfPGD(steps=20)
    if norm == "l2":
        found["foolbox DDN"] = attacks.DDNAttack(steps=min(steps, 100))
        found["foolbox C&W"] = attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=min(steps, 100))
    if norm == "l1":
        found["foolbox EAD"] = attacks.EADAttack(binary_search_steps=9, steps=min(steps, 100), decision_rule="L1")
    if importlib.util.find_spec("numba") is not None:  # without it this attack does not run
        edges = {
            "linf": attacks.LinfinityBrendelBethgeAttack,
            "l2": attacks.L2BrendelBethgeAttack,
            "l1": attacks.L1BrendelBethgeAttack,
            "l0": attacks.L0BrendelBethgeAttack,
        }
        found["foolbox Brendel-Bethge"] = edges[norm](steps=min(steps, 100))
    return {name: partial(_with_foolbox, attack) for name, attack in found.items()}


def _with_foolbox(attack: Any, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The nearest of what it finds; one that takes a radius is given 24 of them."""
    import foolbox

    model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    if not hasattr(attack, "rel_stepsize"):
        _, inputs, _ = attack(model, x, y, epsilons=None)
        return inputs
    radii = [float(radius) for radius in torch.logspace(-2, math.log10(0.6), 24)]
    _, ladder, successes = attack(model, x, y, epsilons=radii)
    best = x.clone()
    for inputs, success in zip(reversed(ladder), reversed(list(successes)), strict=True):
        best[success] = inputs[success]
    return best
