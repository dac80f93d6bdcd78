"""The peers of `evasion.py`: what each is called with, and what stands in for the packages that it imports in vain."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Work = Callable[[], Tensor]
STEPS = 40  # of PGD, each a quarter of epsilon; ours are two starts of half as many
SQUARE_QUERIES = 500
HOPS, PROBES, MOST_PROBES = 5, 100, 200  # of HopSkipJump


@dataclass(frozen=True)
class Subject:
    """What is attacked: a net in evaluation mode, records in [0, 1] with their classes, an L-inf epsilon."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor
    epsilon: float

    def first(self, count: int) -> Subject:
        return replace(self, x=self.x[:count], y=self.y[:count])


class _Nothing(types.ModuleType):
    """A package that another one imports at its top and the attacks here never use; every name in it is a class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def reason_missing(package: str) -> str | None:
    """Why a peer cannot be asked; None when it can. It is imported here."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.models", "visdom"):
        try:
            importlib.import_module(name)
        except Exception:  # not there, or a build for another torch, which fails in ways of its own
            sys.modules[name] = _Nothing(name)
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{package} cannot be imported: {error}"
    return None


def classifier(subject: Subject) -> Any:
    """ART's; its HopSkipJump asks in float64."""
    from art.estimators.classification import PyTorchClassifier

    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            answers: Tensor = subject.net(x.float())
            return answers

    shape = tuple(subject.x.shape[1:])
    return PyTorchClassifier(Single(), nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu")


def art(attack: str, subject: Subject, **parameters: Any) -> Work:
    from art.attacks import evasion

    made = getattr(evasion, attack)(classifier(subject), **parameters)
    x, y = subject.x.numpy(), subject.y.numpy()

    def work() -> Tensor:
        np.random.seed(0)
        return torch.from_numpy(made.generate(x, y)).float()

    return work


def art_pgd(subject: Subject) -> Work:
    return art(
        "ProjectedGradientDescent", subject, norm=np.inf, eps=subject.epsilon, eps_step=subject.epsilon / 4,
        max_iter=STEPS, num_random_init=1, batch_size=len(subject.x), verbose=False,
    )  # fmt: skip


def art_square(subject: Subject) -> Work:
    return art(
        "SquareAttack", subject, norm=np.inf, eps=subject.epsilon, max_iter=SQUARE_QUERIES, batch_size=len(subject.x),
        verbose=False,
    )  # fmt: skip


def art_hop_skip_jump(subject: Subject) -> Work:
    return art(
        "HopSkipJump", subject, norm=np.inf, max_iter=HOPS, init_eval=PROBES, max_eval=MOST_PROBES, verbose=False
    )


def torchattacks(attack: str, subject: Subject, **parameters: Any) -> Work:
    import torchattacks as package

    made = getattr(package, attack)(subject.net, eps=subject.epsilon, **parameters)
    return lambda: made(subject.x, subject.y)


def torchattacks_pgd(subject: Subject) -> Work:
    return torchattacks("PGD", subject, alpha=subject.epsilon / 4, steps=STEPS, random_start=True)


def torchattacks_square(subject: Subject) -> Work:
    return torchattacks("Square", subject, norm="Linf", n_queries=SQUARE_QUERIES)


def torchattacks_autoattack(subject: Subject) -> Work:
    return torchattacks("AutoAttack", subject, norm="Linf", n_classes=10, seed=0)


def foolbox_pgd(subject: Subject) -> Work:
    import foolbox

    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(steps=STEPS, rel_stepsize=0.25, random_start=True)
    model = foolbox.PyTorchModel(subject.net, bounds=(0, 1), device="cpu")
    return lambda: attack(model, subject.x, subject.y, epsilons=subject.epsilon)[1]


def foolbox_hop_skip_jump(subject: Subject) -> Work:
    import foolbox

    attack = foolbox.attacks.HopSkipJumpAttack(
        steps=HOPS, initial_gradient_eval_steps=PROBES, max_gradient_eval_steps=MOST_PROBES, constraint="linf"
    )
    model = foolbox.PyTorchModel(subject.net, bounds=(0, 1), device="cpu")
    return lambda: attack.run(model, subject.x, subject.y)


def adv_lib_pgd(subject: Subject) -> Work:
    from adv_lib.attacks import pgd_linf

    return lambda: pgd_linf(subject.net, subject.x, subject.y, subject.epsilon, steps=STEPS, relative_step_size=0.25)


def adv_lib_targeted(subject: Subject) -> Work:
    from adv_lib.attacks import apgd_targeted

    return lambda: apgd_targeted(subject.net, subject.x, subject.y, eps=subject.epsilon, norm=float("inf"))


Peers = dict[tuple[str, str], Callable[[Subject], Work]]
PGD: Peers = {
    ("ART", "art"): art_pgd,
    ("adv-lib", "adv_lib.attacks"): adv_lib_pgd,
    ("foolbox", "foolbox"): foolbox_pgd,
    ("torchattacks", "torchattacks"): torchattacks_pgd,
}
TARGETED: Peers = {("adv-lib", "adv_lib.attacks"): adv_lib_targeted}
AUTOATTACK: Peers = {("torchattacks", "torchattacks"): torchattacks_autoattack}
SQUARE: Peers = {("ART", "art"): art_square, ("torchattacks", "torchattacks"): torchattacks_square}
HOP_SKIP_JUMP: Peers = {("ART", "art"): art_hop_skip_jump, ("foolbox", "foolbox"): foolbox_hop_skip_jump}


def present(peers: Peers, subject: Subject) -> tuple[dict[str, Work], dict[str, str]]:
    """The work of each peer that is installed, and why the others are not asked."""
    reasons = {name: reason_missing(package) for name, package in peers}
    works = {name: peers[name, package](subject) for name, package in peers if reasons[name] is None}
    return works, {name: reason for name, reason in reasons.items() if reason is not None}
