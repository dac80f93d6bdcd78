"""Reads a torch checkpoint in a process of its own (see sandbox.py) and writes its tensors as safetensors.

Run by its path: it imports nothing of this package.
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import safetensors.torch
import torch

NAMES = 8  # listed in a refusal


def main(arguments: list[str]) -> str:
    """Arguments: source, destination, most bytes of all tensors. Returns JSON: {} or {"fault": kind, "detail": [...]}.

    Kinds: "globals" (the pickle asks for more than tensors), "damaged", "wrapped" (no flat mapping from names to
    tensors; detail: its keys, those holding mappings first), "tensor" (an unusual tensor), "large".
    """
    source, destination, limit = arguments
    torch.set_num_threads(1)
    try:
        state = torch.load(source, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        return json.dumps({"fault": "globals", "detail": _asked_for(source)})
    except MemoryError:
        raise
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise MemoryError from None
        return json.dumps({"fault": "damaged", "detail": [_line(error)]})
    except Exception as error:  # a crafted pickle can make the reader raise anything
        return json.dumps({"fault": "damaged", "detail": [_line(error)]})
    fault = _fault(state, int(limit))
    if fault is None:
        # Clones, because safetensors refuses tensors that share memory. Their sizes were bounded just now.
        tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        safetensors.torch.save_file(tensors, destination)
    return json.dumps(fault or {})


def _fault(state: Any, limit: int) -> dict[str, Any] | None:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return {"fault": "wrapped", "detail": [f"a {type(state).__name__}"]}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        keys = sorted(state, key=lambda name: not isinstance(state[name], dict))
        return {"fault": "wrapped", "detail": [name[:100] for name in keys[:NAMES]]}
    for name, value in state.items():
        plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided
        if not plain or value.is_quantized or value.device.type != "cpu":
            return {"fault": "tensor", "detail": [name[:100], str(value.dtype), str(value.layout), value.device.type]}
    if sum(value.numel() * value.element_size() for value in state.values()) > limit:
        return {"fault": "large", "detail": []}
    return None


def _asked_for(source: str) -> list[str]:
    """The functions and classes the pickle names, read without importing any of them."""
    try:
        return [name[:100] for name in torch.serialization.get_unsafe_globals_in_checkpoint(source)[:NAMES]]
    except Exception:  # the list is a courtesy; the refusal stands without it
        return []


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
