"""Small integers in bytes, as ONNX and its runtimes pack them."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The unsigned integers of `bits` bits in each byte, the lowest bits first.

    Args:
        packed: [..., n] bytes as numbers 0..255 of any type, floats too.
        bits: 1, 2, 4 or 8.

    Returns:
        [..., n * 8 / bits], in the type of `packed`.
    """
    steps = (2 ** torch.arange(0, 8, bits, device=packed.device)).to(packed.dtype)
    return torch.div(packed[..., None], steps, rounding_mode="floor").remainder(2**bits).flatten(-2)
