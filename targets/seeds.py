"""Where every random number comes from: one integer seed, and labels that say what it is used for.

Deriving by label (instead of drawing from one stream) makes each number independent of the order of the work, of the
number of workers and of what else the audit contains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the use named by `labels`, from the audit's `seed`; the same labels give the same seed."""
    text = "\x1f".join([str(seed), *(str(label) for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded by `derive(seed, *labels)`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *labels))


def uniform(seed: int, ids: np.ndarray[tuple[int], np.dtype[np.int64]], size: tuple[int, ...]) -> torch.Tensor:
    """Noise in [0, 1), float32 [n, *size] on the CPU; a row follows from the seed and the record's id alone."""
    import torch

    return _rows(torch.rand, seed, ids, size)


def normal(seed: int, ids: np.ndarray[tuple[int], np.dtype[np.int64]], size: tuple[int, ...]) -> torch.Tensor:
    """As `uniform`, of the standard normal distribution."""
    import torch

    return _rows(torch.randn, seed, ids, size)


def _rows(
    draw: Callable[..., torch.Tensor], seed: int, ids: np.ndarray[tuple[int], np.dtype[np.int64]], size: tuple[int, ...]
) -> torch.Tensor:
    import torch

    stream = torch.Generator()
    rows = torch.empty(len(ids), *size)
    for row, identity in zip(rows, ids.tolist(), strict=True):
        draw(size, generator=stream.manual_seed(derive(seed, identity)), out=row)
    return rows


@contextmanager
def global_seed(seed: int, *labels: str | int) -> Iterator[None]:
    """Seeds torch's global generator inside the block and restores its state after it.

    Only for code that accepts no generator: `nn.Module` initialisers, dropout, a user's own training function.
    """
    import torch

    # Without an accelerator `torch.manual_seed` notes its call stack, for each kind there is: more than a millisecond.
    seeded = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    with torch.random.fork_rng():
        seeded(derive(seed, *labels))
        yield
