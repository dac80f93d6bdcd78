"""What is attacked: anything that answers inputs with logits, and counts how often it was asked."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import InputError

RECURRENT = ("RNN", "LSTM", "GRU")  # torch's recurrent layers
BATCH = 512  # records per pass, at most; fixed, so that a result never depends on who asked for how many at once
FEW = 16  # records that always go together
HELD = 2**28  # bytes that the records of one pass may keep between forward and backward on a CPU
HELD_BY_GPU = 2**30  # the same on other devices, which nobody shares


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
        self._at_once: dict[tuple[int, ...], int] = {}  # by the shape of a record

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        device, shape = device_of(self.module, x.device), tuple(x.shape[1:])
        if len(x) > FEW and shape not in self._at_once:
            self._at_once[shape] = records_at_once(x, self.module)
        batches = x.split(self._at_once.get(shape, FEW)) if len(x) else ()
        parts = [self.module(batch.to(device)).float().to(x.device) for batch in batches]
        return torch.cat(parts) if parts else torch.zeros(0, 0, device=x.device)


def records_at_once(x: Tensor, *modules: nn.Module, copies: int = 4) -> int:
    """How many records of the shape of those in `x` to pass through any of these modules at once, 1 to `BATCH`.

    What a backward pass needs of them, and `copies` of each record that the caller holds, is at most `HELD` bytes. It
    follows from the modules, their kind of device and the shape alone, never from what memory is free, so that results
    stay the same on any machine.

    Args:
        x: float32 [n, *shape], n >= 1, on any device.
    """
    room = HELD if all(device_of(module, x.device).type == "cpu" for module in modules) else HELD_BY_GPU
    beside = copies * x[0].numel() * x.element_size()
    held = max((held_for_backward(module, x, room // BATCH - beside) for module in modules), default=0)
    return max(1, min(BATCH, room // max(1, held + beside)))


def held_for_backward(module: nn.Module, x: Tensor, enough: int = 0) -> int:
    """Bytes per record that autograd keeps from a forward pass until the backward pass: two records' less one's.

    Weights are kept once, so that they do not count. It bounds what a pass without gradients holds at a time, too.

    Args:
        enough: bytes; where a record takes at most that even if everything counts, half of two records' will do.
    """
    one = x[:1].detach().to(device_of(module, x.device))

    def kept(count: int) -> int:
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        inputs = one.expand(count, *one.shape[1:]).clone()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            alive = module(inputs.requires_grad_(inputs.is_floating_point()))
        del alive  # until here nothing it needs was freed, so that no two storages had one address
        return sum(storages.values())

    two = kept(2)
    return two // 2 if two <= 2 * enough else max(0, two - kept(1))


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
    return copied(module).eval().requires_grad_(False)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, of small modules in half of the time: most of what these hold is containers for hooks, all empty."""
    empty: dict[int, Any] = {}
    for layer in module.modules():
        kept = [value for value in vars(layer).values() if type(value) in (dict, OrderedDict, set) and not value]
        empty |= {id(value): type(value)() for value in kept}
    return copy.deepcopy(module, empty)


def laid_out(module: nn.Module, x: Tensor) -> nn.Module:
    """The module itself, or a copy whose channels lie last in memory, where that works and answers alike.

    Convolutions on a CPU, and what follows them, take half of the time like that. A module that looks at how its values
    lie (`view`) stays as it is.

    Args:
        x: float32 [n, *shape], n >= 1, what the module is to be asked.
    """
    weights = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dim() == 4]
    if x.device.type != "cpu" or not weights or any(tensor.device.type != "cpu" for tensor in weights):
        return module
    two = x[:1].expand(2, *x.shape[1:]).clone()
    try:
        laid = copied(module)
        for tensor in (*laid.parameters(), *laid.buffers()):
            if tensor.dim() == 4:
                tensor.data = channels_last(tensor.data)
        for layer in laid.modules():
            if type(layer) is nn.GroupNorm:
                layer.__class__ = _GroupNorm
        with torch.no_grad():
            return laid if _alike(laid(two), module(two)) else module
    except (RuntimeError, TypeError):
        return module


def channels_last(x: Tensor) -> Tensor:
    """The same values [n, channels, height, width], each place's channels side by side in memory.

    A copy: `contiguous` leaves the strides of a single channel as they are, and they are what counts.
    """
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


class _Normalised(torch.autograd.Function):
    """Of x [n, channels, ...]; for derivatives each channel's mean and inverse deviation [n, channels, 1, ...]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(_places(x), keepdim=True)
        centred = x - mean
        inverse = (centred.square().mean(_places(x), keepdim=True) + epsilon).rsqrt()
        return centred.mul_(inverse), mean, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output[1:])
        ctx.epsilon = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient, (x, mean, inverse) = gradients[0], ctx.saved_tensors
        if torch.is_grad_enabled():  # it is differentiated once more, so that what depends on x is to be known
            mean = x.mean(_places(x), keepdim=True)
            inverse = ((x - mean).square().mean(_places(x), keepdim=True) + ctx.epsilon).rsqrt()
        centred = x - mean
        along = (gradient * centred).mean(_places(x), keepdim=True) * inverse.square()
        return (gradient - gradient.mean(_places(x), keepdim=True) - centred * along) * inverse, None


def _places(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def normalised(x: Tensor, epsilon: float) -> Tensor:
    """x [n, channels, ...] with the mean 0 and the variance 1 in each channel of each record.

    For values whose channels lie last, and stay so: torch's own functions copy them, or take up to twice as long. On
    values that lie channel by channel, and for groups of several channels, torch's own are the faster ones.
    """
    normal: Tensor = _Normalised.apply(x, epsilon)[0]  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return normal


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [n, channels, ...] times `scale` plus `shift`, [channels]."""
    wide = [-1, *[1] * (x.dim() - 2)]
    return torch.addcmul(shift.view(wide), x, scale.view(wide))


class _GroupNorm(nn.GroupNorm):
    """The same layer, in a copy whose channels lie last."""

    def forward(self, input: Tensor) -> Tensor:
        if self.num_groups != self.num_channels or input.is_contiguous():
            return super().forward(input)
        normal = normalised(input, self.eps)
        return scaled(normal, self.weight, self.bias) if self.affine else normal


def _alike(answers: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answers, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def differentiable(module: nn.Module) -> AbstractContextManager[None]:
    """A pass forwards inside the block, in evaluation mode, can be differentiated on a GPU too.

    cuDNN's recurrent layers have no backward pass in that mode, torch's own have; without such layers nothing changes.
    """
    return torch.backends.cudnn.flags(enabled=False) if recurrent(module) else nullcontext()


def recurrent(module: nn.Module) -> bool:
    """Whether it has recurrent layers of torch's, scripted ones among them."""
    return any(
        isinstance(layer, nn.RNNBase) or getattr(layer, "original_name", "") in RECURRENT for layer in module.modules()
    )


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Inside the block equal work gives equal results on equal machines, whatever the caller has set.

    One thread, however many cores there are; on a GPU whole float32 products (no TF32) and cuDNN's repeatable kernels.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
