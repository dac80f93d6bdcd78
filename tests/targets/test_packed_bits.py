"""Small integers in bytes: what ONNX packs comes back, in whatever type the bytes are handed over."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from crushproof.targets.packed_bits import unpack


@pytest.mark.parametrize(("bits", "kind"), [(2, onnx.TensorProto.UINT2), (4, onnx.TensorProto.UINT4)])
@given(seed=st.integers(0, 99), rows=st.integers(1, 5), groups=st.integers(1, 5))
def test_what_onnx_packs_comes_back(bits: int, kind: int, seed: int, rows: int, groups: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, groups * 8 // bits))
    stored = numpy_helper.from_array(codes.astype(helper.tensor_dtype_to_np_dtype(kind)), "codes")
    packed = torch.frombuffer(bytearray(stored.raw_data), dtype=torch.uint8).view(rows, groups)
    for form in (torch.uint8, torch.int32, torch.float32):
        found = unpack(packed.to(form), bits)
        assert found.dtype == form
        assert found.tolist() == codes.tolist()


def test_a_byte_of_eight_bits_stays() -> None:
    assert unpack(torch.tensor([[0.0, 200.0, 255.0]]), 8).tolist() == [[0, 200, 255]]
