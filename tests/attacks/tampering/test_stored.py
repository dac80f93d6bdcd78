"""Stored bits: every type as onnx itself reads it, every role, and a twin that follows flips as the runtime does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from crushproof.attacks.tampering.files import random_flips
from crushproof.attacks.tampering.integrity import CHECKS, Checksums, noticed, octets, signatures
from crushproof.attacks.tampering.stored import Flip, Stored, attacked_bits, decoded, flipped, parameters
from crushproof.attacks.tampering.surrogate import Surrogate
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.untrusted.model_file import CheckedOnnx, check_onnx

WIDTH = 16
STREAM = np.random.default_rng(0)
ROLES = {
    "plain": ("float weights", 32),
    "bias": ("biases", 32),
    "codes": ("codes", 4),
    "scale": ("scales", 32),
    "zero": ("zero points", 4),
    "book": ("code book", 32),
    "indices": ("indices", 8),
    "packed": ("codes", 4),
    "packed_scale": ("scales", 32),
    "packed_zero": ("zero points", 4),
    "half": ("float weights", 16),
}


def every_form() -> bytes:
    """A chain of products whose weights are stored in every form: float, int4, code book, MatMulNBits, float16."""
    square = (WIDTH, WIDTH)
    int4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
    arrays = {
        "plain": STREAM.normal(size=square).astype(np.float32),
        "bias": STREAM.normal(size=WIDTH).astype(np.float32),
        "codes": STREAM.integers(-8, 8, square).astype(int4),
        "scale": STREAM.uniform(0.05, 0.1, WIDTH).astype(np.float32),
        "zero": STREAM.integers(-2, 3, WIDTH).astype(int4),
        "book": STREAM.normal(size=16).astype(np.float32),
        "indices": STREAM.integers(0, 16, square).astype(np.uint8),
        "packed": STREAM.integers(0, 256, (WIDTH, 2, 8)).astype(np.uint8),
        "packed_scale": STREAM.uniform(0.05, 0.1, (WIDTH * 2,)).astype(np.float32),
        "packed_zero": STREAM.integers(0, 256, (WIDTH,)).astype(np.uint8),
        "half": STREAM.normal(size=(WIDTH, 4)).astype(np.float16),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "plain"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["weight"], axis=1),
        helper.make_node("MatMul", ["b", "weight"], ["c"]),
        helper.make_node("Cast", ["indices"], ["places"], to=TensorProto.INT64),
        helper.make_node("Gather", ["book", "places"], ["shared"]),
        helper.make_node("MatMul", ["c", "shared"], ["d"]),
        helper.make_node("Concat", ["d", "c"], ["wide"], axis=1),
        helper.make_node(
            "MatMulNBits",
            ["wide", "packed", "packed_scale", "packed_zero"],
            ["e"],
            domain="com.microsoft",
            K=2 * WIDTH,
            N=WIDTH,
            bits=4,
            block_size=16,
        ),
        helper.make_node("Cast", ["half"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["e", "whole"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "every form",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def checked() -> CheckedOnnx:
    return check_onnx(every_form())


@pytest.fixture(scope="module")
def tensors(checked: CheckedOnnx) -> list[Stored]:
    return parameters(checked)


def test_every_parameter_is_found_for_what_it_is(checked: CheckedOnnx, tensors: list[Stored]) -> None:
    assert {one.name: (one.role, one.width) for one in tensors} == ROLES
    assert attacked_bits(tensors) == sum(8 * len(one.raw_data) for one in checked.model.graph.initializer)
    assert flipped(checked, tensors, []).data == checked.data, "nothing flipped, nothing changed"


def test_a_flip_is_what_onnx_reads_of_the_file(checked: CheckedOnnx, tensors: list[Stored]) -> None:
    for flip in random_flips(tensors, 60, seed=1):
        stored = tensors[flip.tensor]
        data = flipped(checked, tensors, [flip]).data
        assert len(data) == len(checked.data)
        assert sum((a ^ b).bit_count() for a, b in zip(data, checked.data, strict=True)) == 1
        held = {one.name: one for one in onnx.load_model_from_string(data).graph.initializer}
        array = numpy_helper.to_array(held[stored.name]).astype(np.float64).ravel()
        raw = stored.raw.copy()
        raw[flip.element] ^= np.uint64(1 << flip.bit)
        values = decoded(raw, stored.width, stored.kind)
        if stored.packed:
            values = values[0::2] + 16 * values[1::2]
        np.testing.assert_array_equal(values, array)


def test_the_twin_follows_each_flip_as_the_runtime_does(checked: CheckedOnnx, tensors: list[Stored]) -> None:
    surrogate = Surrogate(checked, tensors, None)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    intact = surrogate.keep(x)
    for number, stored in enumerate(tensors):
        flip = Flip(number, 3, 3 if stored.role == "indices" else stored.width - 1)  # within the book
        alone = surrogate.with_flip(flip)
        surrogate.flip(flip)
        assert torch.equal(surrogate.logits(x), alone), "what does not depend on it is as it was"
        theirs = OnnxTarget(flipped(checked, tensors, [flip])).logits(x)
        atol = 1e-3 * float(theirs.abs().max())
        np.testing.assert_allclose(surrogate.logits(x).numpy(), theirs.numpy(), rtol=1e-3, atol=atol)
        surrogate.flip(flip)
    assert torch.equal(surrogate.logits(x), intact), "what is flipped twice is as it was"
    # The gradient of every stored number, of indices that of what they look up, against small changes of the file.
    gradients = surrogate.gradients(x, lambda logits, rows: logits[:, 0].sum())
    for number, stored in enumerate(tensors):
        gradient = gradients[number]
        assert gradient is not None, stored.name
        bit = next(bit for bit in reversed(stored.tried) if stored.kind.endswith("int") or not stored.exponent(bit))
        bit = 1 if stored.role == "indices" else bit
        moved = surrogate.moved(number, [bit])[0]
        flip = Flip(number, 5, bit)
        surrogate.flip(flip)
        change = float((surrogate.logits(x) - intact)[:, 0].sum())
        surrogate.flip(flip)
        assert gradient[5] * moved[5] == pytest.approx(change, rel=1e-2, abs=1e-2), stored.name


def hand_written() -> bytes:
    """A bias as a list of numbers of a Constant, and a sparse weight as values that are put into zeros."""
    arrays = {"base": np.zeros(12, np.float32), "at": np.array([1, 5, 6, 11]), "shape": np.array([4, 3])}
    arrays["values"] = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
    nodes = [
        helper.make_node("Constant", [], ["bias"], value_floats=[0.5, -0.25, 1.0]),
        helper.make_node("ScatterElements", ["base", "at", "values"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["weight"]),
        helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], name="layer"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n]) for name, n in (("x", 4), ("y", 3))]
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "written by hand", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def gru() -> bytes:
    torch.manual_seed(0)
    return to_onnx(Last(4, 5), (3, 4))


class Last(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, hidden, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0][:, -1]  # type: ignore[no-any-return]  # torch does not say what its layers return


@pytest.mark.parametrize("data", [hand_written, gru])
def test_bits_of_other_forms_are_flipped_in_file_and_twin_alike(data: Callable[[], bytes]) -> None:
    checked = check_onnx(data())
    tensors = parameters(checked)
    shape = (4,) if data is hand_written else (3, 4)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))
    surrogate = Surrogate(checked, tensors, None)
    intact = OnnxTarget(checked).logits(x)
    torch.testing.assert_close(surrogate.keep(x), intact, rtol=1e-4, atol=1e-5)
    gradients = surrogate.gradients(x, lambda logits, rows: logits[:, 0].sum())
    if data is hand_written:
        assert {one.name: (one.role, one.layer) for one in tensors} == {
            "bias": ("biases", "layer"),
            "values": ("float weights", "layer"),
            "base": ("float weights", "layer"),
        }
    else:
        assert len(tensors) == 3
    for number, (stored, gradient) in enumerate(zip(tensors, gradients, strict=True)):
        flip = Flip(number, 2, 31)  # a sign, or 0
        if stored.name == "base":
            continue
        theirs = OnnxTarget(flipped(checked, tensors, [flip])).logits(x)
        assert not torch.equal(theirs, intact), "the file itself holds the flipped bit"
        torch.testing.assert_close(surrogate.with_flip(flip), theirs, rtol=1e-4, atol=1e-5)
        assert gradient is not None
        assert np.abs(gradient).max() > 0


def test_checksums_notice_every_single_flip_and_two_bits_only_high_ones(tensors: list[Stored]) -> None:
    singles = [noticed(tensors, [flip], 64, key) for key, flip in enumerate(random_flips(tensors, 40, seed=2))]
    eight, two, digest = (np.array(column) for column in zip(*(one.by for one in singles), strict=True))
    assert len(CHECKS) == 3
    assert eight.all()
    assert digest.all()
    assert 0 < two.mean() < 0.8, "a flip worth less than 128 seldom shows in the bits worth 128 and 256"
    assert {one.altered for one in singles} == {1} == {one.seen for one in singles}
    assert not any(noticed(tensors, [], 64, 0).by), "an intact file raises no alarm"
    content = octets(tensors)
    one, other = (Checksums(len(content), 64, key).sums(content) for key in (0, 1))
    assert not np.array_equal(signatures(one, CHECKS[0]), signatures(other, CHECKS[0])), "they follow from the key"
