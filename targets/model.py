"""What is attacked: anything that answers inputs with logits, and counts how often it was asked."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import InputError

BATCH = 512  # records per forward pass; fixed, so that a result never depends on who asked for how many at once


class Target(Protocol):
    """A deployed model, or a torch module standing in for one."""

    queries: int  # records answered so far

    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, classes] on x's device, in evaluation mode, for x float32 [n, *shape]; counts n queries."""
        ...


class TorchTarget:
    """A torch module as a target; it is put into evaluation mode and asked without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()
        self.queries = 0

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        device = device_of(self.module, x.device)
        parts = [self.module(batch.to(device)).float().to(x.device) for batch in x.split(BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, 0, device=x.device)


def accuracy(target: Target, x: Tensor, y: Tensor) -> float:
    """The share of records, in [0, 1], whose largest logit is the label's."""
    return float((target.logits(x).argmax(1) == y).float().mean())


def device_of(module: nn.Module, default: torch.device | None = None) -> torch.device:
    """Of the first parameter, else the first buffer (a quantised module has nothing else), else `default`, the CPU."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return default or torch.device("cpu")


def resolve_device(device: str) -> torch.device:
    """The device a setting means: "auto" is CUDA where there is one, else the CPU; others are torch's words.

    Raises:
        InputError: torch knows no such device, or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise InputError(f"There is no device {device!r}: write auto, cpu, cuda or cuda:0.") from None
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(
                f"Device {device}: torch finds no CUDA device on this machine. Write device: cpu (or auto), or install "
                "a driver and a build of torch with CUDA."
            )
        if resolved.index is not None and resolved.index >= count:
            raise InputError(
                f"Device {device}: this machine has {count} CUDA device{'s' if count > 1 else ''}, numbered from 0. "
                f"Write cuda:{count - 1} or lower, or auto."
            )
    return resolved


def frozen_copy(module: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode whose parameters need no gradient: what attacks differentiate inputs through."""
    return copy.deepcopy(module).eval().requires_grad_(False)
