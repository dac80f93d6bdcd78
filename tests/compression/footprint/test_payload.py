"""The packed payload: equal values back, close to what information theory allows, quick, and fails cleanly."""

import contextlib
import heapq
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.compression.footprint.huffman import (
    LONGEST_CODE,
    Reader,
    code_lengths,
    decode_symbols,
    encode_symbols,
    pack,
    unpack,
    varint,
)
from crushproof.compression.footprint.payload import REPEATED, decode, encode
from crushproof.compression.quantization.quantized_layer import quantize_layer
from crushproof.compression.quantization.weight_codes import WeightFormat
from crushproof.targets.errors import InputError
from crushproof.targets.seeds import generator
from crushproof.training.networks import Mlp, digits_cnn


class Bag(nn.Module):
    """Tensors, and nothing else."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"value{index}", tensor)


def bits(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def check_round_trip(module: nn.Module) -> bytes:
    payload = encode(module)
    decoded = decode(payload, module)
    assert list(decoded) == list(module.state_dict())
    for name, value in module.state_dict().items():
        assert (decoded[name].dtype, decoded[name].shape) == (value.dtype, value.shape)
        expected = torch.where(value == 0, torch.zeros_like(value), value)  # -0.0 is the one pattern not kept
        assert bits(decoded[name]) == bits(expected)
    module.load_state_dict(decoded, strict=True)
    assert encode(module) == payload
    return payload


few_values = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5).flatmap(
    lambda values: st.lists(st.sampled_from(values), max_size=80)
)
sparse_values = st.lists(st.one_of(st.just(0.0), st.just(0.0), st.just(-0.0), st.floats(width=32)), max_size=80)
any_values = st.lists(st.floats(width=32), max_size=80)  # denormals, infinities and NaN among them
integers = st.sampled_from([(torch.int8, 8), (torch.int16, 16), (torch.int32, 32), (torch.int64, 64)]).flatmap(
    lambda kind: st.lists(st.integers(-(2 ** (kind[1] - 1)), 2 ** (kind[1] - 1) - 1), max_size=40).map(
        lambda values: torch.tensor(values, dtype=kind[0])
    )
)


@settings(max_examples=70, deadline=None)
@given(st.lists(st.one_of(few_values, sparse_values, any_values), max_size=3), st.lists(integers, max_size=3))
def test_any_values_round_trip(floats: list[list[float]], whole: list[Tensor]) -> None:
    check_round_trip(Bag(*(torch.tensor(values, dtype=torch.float32) for values in floats), *whole))


@pytest.mark.parametrize("density", [0.0, 0.0005, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool])
def test_sparse_round_trip(density: float, dtype: torch.dtype) -> None:
    draw = generator(3, "sparse")
    value = torch.randn(40, 50, generator=draw) * 20 * (torch.rand(40, 50, generator=draw) < density)
    check_round_trip(Bag(value.to(dtype), torch.tensor(7), torch.zeros(0, 3), torch.ones(300)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 32), st.lists(st.integers(0, 2**32 - 1), max_size=30))
def test_packing(width: int, values: list[int]) -> None:
    symbols = np.array(values, dtype=np.uint32) & np.uint32((1 << width) - 1)
    packed = pack(symbols, width)
    assert len(packed) == (len(values) * width + 7) // 8
    assert np.array_equal(unpack(packed, width, len(values)), symbols)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63))
def test_varint(value: int) -> None:
    assert Reader(varint(value)).varint() == value


def huffman_bits(counts: list[int]) -> int:
    """Total length of a Huffman code, by the textbook's heap."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=60).filter(lambda counts: sum(map(bool, counts)) > 1))
def test_code_lengths_are_huffmans(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts, dtype=np.uint64))
    assert int((lengths * counts).sum()) == huffman_bits(counts)
    assert np.array_equal(lengths > 0, np.array(counts) > 0)


def test_code_lengths_are_limited() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])  # Huffman's code of these is 29 bits deep
    lengths = code_lengths(np.array(fibonacci, dtype=np.uint64))
    assert lengths.max() == LONGEST_CODE
    assert sum(2.0 ** -int(length) for length in lengths) == 1
    assert (lengths * fibonacci).sum() < 1.001 * huffman_bits(fibonacci)


def test_symbols_are_near_the_entropy_bound() -> None:
    numbers = np.random.default_rng(0)
    for probabilities in ([0.5, 0.25, 0.125, 0.125], [1 / 200] * 200, [0.97, 0.01, 0.01, 0.01], [0.3, 0.3, 0.2, 0.2]):
        symbols = numbers.choice(len(probabilities), 20_000, p=probabilities).astype(np.uint8)
        share = np.bincount(symbols) / len(symbols)
        entropy = -np.sum(share * np.log2(share))
        coded = encode_symbols(symbols)
        assert np.array_equal(decode_symbols(Reader(coded), len(symbols)), symbols)
        overhead = 4 + (5 * len(probabilities) + 7) // 8 + 4
        assert entropy * len(symbols) / 8 <= len(coded) <= (max(entropy, 1) + 0.09) * len(symbols) / 8 + overhead


def test_sparse_is_near_the_entropy_bound() -> None:
    draw = generator(1, "sparse")
    n = 20_000
    value = torch.randn(n, generator=draw) * (torch.rand(n, generator=draw) < 0.1)
    share = float((value != 0).float().mean())
    positions = -n * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    bound = positions + 4 * share * n
    assert bound <= len(encode(Bag(value))) < 1.01 * bound + 100
    assert len(encode(Bag(value))) < n / 8 + 4 * share * n  # a bitmap is longer


def quantized_bytes(width: int) -> int:
    draw = generator(2, "weights")
    layer = nn.Linear(256, 128)
    layer.weight.data = torch.randn(128, 256, generator=draw)
    layer.bias.data = torch.randn(128, generator=draw)
    quantized = quantize_layer(layer, WeightFormat(bits=width), activations=(-1.0, 1.0))
    check_round_trip(quantized)
    return len(encode(quantized))


def test_sizes() -> None:
    dense = 4 * (256 * 128 + 128)
    assert len(encode(nn.Linear(256, 128))) < dense + 20
    sizes = {width: quantized_bytes(width) for width in (8, 4, 3, 2)}
    side = 128 * (4 + 4) + 40  # scales and bias codes: the float bias follows from them and is not stored again
    for width, size in sizes.items():
        assert size <= 256 * 128 * width / 8 + side
    assert dense / sizes[4] > 7.5
    assert len(encode(Bag(torch.full((1000,), 0.25)))) < 30


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize(
    ("number", "width"), [("fixed-point", 8), ("binary", 1), ("ternary", 1.6), ("float16", 16), ("bfloat16", 16)]
)
def test_formats_round_trip_in_their_own_width(number: Any, width: float, granularity: Any) -> None:
    draw = generator(2, "weights")
    layer = nn.Linear(256, 128, bias=False)
    layer.weight.data = torch.rand(128, 256, generator=draw) - 0.5  # uniform: Huffman's code gains nothing
    quantized = quantize_layer(layer, WeightFormat(number, 8, granularity, 64))
    payload = check_round_trip(quantized)
    scales = 0 if quantized.weight_scale is None else 4 * quantized.weight_scale.numel()
    assert len(payload) <= 256 * 128 * width / 8 + scales + 40
    assert len(payload) > 256 * 128 * (1.58 if number == "ternary" else width) / 8 * (0.8 if width >= 8 else 1)


def test_three_values_take_a_fifth_of_a_byte_each() -> None:
    for count in (5, 6, 9, 1000):
        value = torch.randint(-1, 2, (count,), generator=generator(count, "three")).to(torch.int8)
        assert len(check_round_trip(Bag(value))) <= count / 5 + 12


def test_a_bias_that_does_not_follow_is_stored() -> None:
    layer = quantize_layer(nn.Linear(4, 3), WeightFormat(), activations=(0.0, 1.0))
    small = len(encode(layer))
    layer.bias = layer.bias + 1.0
    check_round_trip(layer)
    assert len(encode(layer)) > small


def test_quick() -> None:
    module = Mlp(256, 10, (256, 128))  # 100,000 weights
    module.layers[1].weight.data.mul_(torch.rand(256, 256, generator=generator(0, "mask")) < 0.3)
    module.layers[3] = quantize_layer(module.layers[3], WeightFormat(bits=4))
    start = time.process_time()
    check_round_trip(module)
    assert time.process_time() - start < 1.5


def test_damage_is_an_input_error() -> None:
    module = digits_cnn()
    module.stem.weight.data.clamp_(min=0)
    module.block1.conv1 = quantize_layer(module.block1.conv1, WeightFormat(bits=4))
    payload = encode(module)
    with pytest.raises(InputError):
        decode(payload, Mlp(8, 2))
    with pytest.raises(InputError, match="left over"):
        decode(payload + b"\0", module)
    for length in [*range(0, 40), *range(40, len(payload), 997)]:
        with pytest.raises(InputError):
            decode(payload[:length], module)
    numbers = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(payload)
        damaged[int(numbers.integers(len(payload)))] ^= int(numbers.integers(1, 256))
        with contextlib.suppress(InputError):  # nothing else may come out; a changed value is still a value
            decode(bytes(damaged), module)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_is_an_input_error(garbage: bytes) -> None:
    with contextlib.suppress(InputError):
        decode(b"CRW1" + garbage, Bag(torch.zeros(6), torch.zeros(3, dtype=torch.int8)))


def test_a_repeat_of_what_is_not_there_is_refused() -> None:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    tied = nn.Sequential(first, second)
    payload = encode(tied)
    assert payload[-2:] == bytes([REPEATED, 0])
    for damaged in (payload[:-1] + b"\x01", payload[:-1] + b"\x7f", payload[:4] + payload[-2:]):
        with pytest.raises(InputError, match="payload"):
            decode(damaged, tied)
    with pytest.raises(InputError, match="repeats"):
        decode(payload, nn.Sequential(first, nn.Linear(6, 5, bias=False)))
