"""Twins of TFLite files written by hand: they answer as LiteRT does, have gradients, and refuse with a sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("ai_edge_litert")

from tflite_files import Grid, TfliteFile

from crushproof.targets.certificate import certify
from crushproof.targets.data.records import Bounds
from crushproof.targets.errors import NotApplicable, UnsafeInput
from crushproof.targets.interface.assumptions import Assumptions
from crushproof.targets.interface.assumptions import Grid as ValueGrid
from crushproof.targets.interface.finished_model import deployed, differentiable
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.twin.module import Twin
from crushproof.targets.twin.tflite.twin import twin_of_graph
from crushproof.targets.untrusted import _read_tflite_graph
from crushproof.targets.untrusted.model_file import read_model_file
from crushproof.targets.untrusted.tflite_graph import Graph, graph_of

GRIDS: dict[str, tuple[Grid | None, Grid | None]] = {  # of an input and an output, of types that an operator takes
    "float32": (None, None),
    "int8": ((0.05, -3), (0.11, 5)),
    "uint8": ((0.02, 100), (0.1, 128)),
}
PROBABILITY: dict[str, Grid | None] = {"float32": None, "int8": (1 / 256, -128), "uint8": (1 / 256, 0)}
BALANCED: dict[str, Grid | None] = {"float32": None, "int8": (1 / 128, 0), "uint8": (1 / 128, 128)}


def twin_of(content: bytes) -> Twin:
    """Its graph is listed in this process, which is quicker; what is listed in another one is tested below."""
    return twin_of_graph(Graph.model_validate(_read_tflite_graph.graph(content)), content)


def records(word: str, shape: tuple[int, ...], count: int = 40) -> Tensor:
    random = np.random.default_rng(1)
    if word == "float32":
        values = 2 * random.normal(size=(count, *shape))
    else:
        values = random.integers(*((-128, 128) if word == "int8" else (0, 256)), (count, *shape))
    return torch.from_numpy(values.astype(np.float32))


def weighted(
    file: TfliteFile, kind: str, shape: tuple[int, ...], weight: tuple[int, ...], word: str, **options: Any
) -> TfliteFile:
    """A convolution or product with random weights, with scales of their own for each output in int8, and a bias."""
    random, (given, made) = np.random.default_rng(0), GRIDS[word]
    outputs = weight[-1] if kind == "DEPTHWISE_CONV_2D" else weight[0]
    if given is None:
        held = [file.constant(random.normal(size=size).astype(np.float32)) for size in (weight, (outputs,))]
    else:
        low, high, zero = (-127, 128, 0) if word == "int8" else (0, 256, 120)
        each = outputs if word == "int8" and kind != "FULLY_CONNECTED" else 1
        scale = random.uniform(0.001, 0.02, each).astype(np.float32)
        codes, axis = random.integers(low, high, weight).astype(word), weight.index(outputs) if each > 1 else 0
        added = random.integers(-2000, 2000, outputs).astype(np.int32)
        held = [
            file.constant(codes, (scale.tolist(), zero), axis=axis),
            file.constant(added, ((scale * np.float32(given[0])).tolist(), 0)),
        ]
    file.add(kind, [file.x, *held], shape, made, word=word, **options)
    return file


def convolution(word: str, kind: str, padding: int, stride: int, activation: int, dilation: int = 1) -> TfliteFile:
    file, reach = TfliteFile(1, 9, 8, 6, grid=GRIDS[word][0], word=word), 2 * dilation + 1
    rows, columns = (-(-size // stride) if padding == 0 else (size - reach) // stride + 1 for size in (9, 8))
    weight = (1, 3, 3, 12) if kind == "DEPTHWISE_CONV_2D" else (12, 3, 3, 6)
    options = {"depthMultiplier": 2} if kind == "DEPTHWISE_CONV_2D" else {}
    window = {"strideW": stride, "strideH": stride, "dilationWFactor": dilation, "dilationHFactor": dilation}
    window |= {"padding": padding, "fusedActivationFunction": activation}
    return weighted(file, kind, (1, rows, columns, 12), weight, word, **window, **options)


def single(word: str, kind: str, made: Grid | None, *shape: int, **options: Any) -> TfliteFile:
    """An operator of one input that keeps its shape."""
    file = TfliteFile(1, *shape, grid=GRIDS[word][0], word=word)
    file.add(kind, [file.x], (1, *shape), made, word=word, **options)
    return file


def pooled(word: str, kind: str, padding: int) -> TfliteFile:
    file = TfliteFile(1, 7, 8, 5, grid=GRIDS[word][0], word=word)
    options = {"strideH": 2, "strideW": 2, "filterHeight": 3, "filterWidth": 2, "padding": padding}
    file.add(kind, [file.x], (1, 4 if padding == 0 else 3, 4, 5), GRIDS[word][0], word=word, **options)
    return file


def averaged(word: str, keep: bool) -> TfliteFile:
    file = TfliteFile(1, 4, 8, 5, grid=GRIDS[word][0], word=word)
    axes = file.constant(np.array([1, 2], np.int32))
    made = GRIDS[word][0] if keep else GRIDS[word][1]
    file.add("MEAN", [file.x, axes], (1, 1, 1, 5) if keep else (1, 5), made, word=word, keepDims=keep)
    return file


def moved(word: str, kind: str) -> TfliteFile:
    """PAD, TRANSPOSE and RESHAPE: what says where is a constant."""
    wanted = {
        "PAD": ((1, 5, 6, 2), [[0, 0], [1, 1], [2, 0], [0, 0]]),
        "TRANSPOSE": ((1, 2, 3, 4), [0, 3, 1, 2]),
        "RESHAPE": ((1, 24), [1, 24]),
    }
    file, (shape, numbers) = TfliteFile(1, 3, 4, 2, grid=GRIDS[word][0], word=word), wanted[kind]
    file.add(kind, [file.x, file.constant(np.array(numbers, np.int32))], shape, GRIDS[word][0], word=word)
    return file


def joined(word: str, kind: str, **options: Any) -> TfliteFile:
    """Of the input and its TANH, which has another grid."""
    file, given = TfliteFile(1, 3, 4, 2, grid=GRIDS[word][0], word=word), GRIDS[word][0]
    bent = file.add("TANH", [file.x], (1, 3, 4, 2), BALANCED[word], word=word)
    if kind == "CONCATENATION":
        parts = [file.x, bent] if word != "int8" else [file.x, file.x]  # LiteRT wants one grid in int8
        file.add(kind, parts, (1, 3, 4, 4), given, word=word, axis=3)
    else:
        file.add(kind, [file.x, bent], (1, 3, 4, 2), GRIDS[word][1], word=word, **options)
    return file


def changed(given: Grid | None, made: Grid | None, word: str, kind: str = "QUANTIZE") -> TfliteFile:
    file = TfliteFile(1, 20, grid=given, word=word)
    file.add(kind, [file.x], (1, 20), made)
    return file


def from_halves() -> TfliteFile:
    """Weights as float16, as "float16 quantisation" stores them."""
    file, random = TfliteFile(1, 20), np.random.default_rng(0)
    halves = file.constant(random.normal(size=(10, 20)).astype(np.float16))
    weight = file.add("DEQUANTIZE", [halves], (10, 20))
    file.add("FULLY_CONNECTED", [file.x, weight], (1, 10))
    return file


def coarse(kind: str) -> TfliteFile:
    """Weights of 8 bits and floats for the rest, as "dynamic range quantisation" stores them."""
    random = np.random.default_rng(0)
    deep, shape = kind == "CONV_2D", (10, 3, 3, 3) if kind == "CONV_2D" else (10, 20)
    file = TfliteFile(1, 9, 8, 3) if deep else TfliteFile(1, 20)
    weight = file.constant(random.integers(-127, 128, shape).astype(np.int8), ([0.01] * 10 if deep else 0.01, 0))
    bias = file.constant(random.normal(size=10).astype(np.float32))
    steps = dict.fromkeys(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), 1) if deep else {}
    file.add(kind, [file.x, weight, bias], (1, 9, 8, 10) if deep else (1, 10), **steps)
    return file


def small_net(word: str, *, classes: int = 4) -> TfliteFile:
    """Convolution, depthwise convolution, average, product, softmax: a MobileNet in small; [1, 8, 8, 3] in."""
    random, whole = np.random.default_rng(3), word == "int8"
    file = TfliteFile(1, 8, 8, 3, grid=(1 / 255, -128) if whole else None)

    def held(shape: tuple[int, ...], given: float, axis: int) -> list[int]:
        weight = random.normal(size=shape).astype(np.float32)
        bias = 0.1 * random.normal(size=shape[axis]).astype(np.float32)
        if not whole:
            return [file.constant(weight), file.constant(bias)]
        scale = 3 / 127
        codes = np.rint(weight / scale).clip(-127, 127).astype(np.int8)
        added = np.rint(bias / (scale * given)).astype(np.int32)
        return [file.constant(codes, (scale, 0)), file.constant(added, (scale * given, 0))]

    one = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": 1}
    grid = (0.05, -128) if whole else None
    x = file.add("CONV_2D", [file.x, *held((6, 3, 3, 3), 1 / 255, 0)], (1, 8, 8, 6), grid, **one)
    deep = held((1, 3, 3, 6), 0.05, 3)
    x = file.add("DEPTHWISE_CONV_2D", [x, *deep], (1, 8, 8, 6), grid, depthMultiplier=1, **one)
    x = file.add("MEAN", [x, file.constant(np.array([1, 2], np.int32))], (1, 6), grid)
    scale = (0.1, 0) if whole else None
    x = file.add("FULLY_CONNECTED", [x, *held((classes, 6), 0.05, 0)], (1, classes), scale)
    file.add("SOFTMAX", [x], (1, classes), (1 / 256, -128) if whole else None, beta=1.0)
    return file


def cases() -> dict[str, Callable[[], TfliteFile]]:
    found: dict[str, Callable[[], TfliteFile]] = {
        "int8 to int8": lambda: changed((0.05, -3), (0.02, 3), "int8"),
        "int8 to coarser int8": lambda: changed((0.02, -3), (0.11, 3), "int8"),
        "uint8 to int8": lambda: changed((0.02, 128), (0.02, 0), "uint8"),
        "floats to int8": lambda: changed(None, (0.02, 3), "int8"),
        "int8 to floats": lambda: changed((0.05, -3), None, "int8", "DEQUANTIZE"),
        "float16 weights": from_halves,
        "int8 weights of a product": lambda: coarse("FULLY_CONNECTED"),
        "int8 weights of a convolution": lambda: coarse("CONV_2D"),
    }
    for word in ("float32", "int8"):
        found[f"a net {word}"] = lambda w=word: small_net(w, classes=12)
    for word in GRIDS:
        for kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            for settings in ((0, 1, 0), (0, 2, 1), (1, 2, 3), (0, 1, 3, 2)):
                if word != "uint8" or kind == "CONV_2D":  # LiteRT has another kernel for the third, seldom one step off
                    found[f"{kind} {settings} {word}"] = lambda w=word, k=kind, s=settings: convolution(w, k, *s)
        found[f"FULLY_CONNECTED {word}"] = lambda w=word: weighted(
            TfliteFile(1, 4, 7, grid=GRIDS[w][0], word=w),
            "FULLY_CONNECTED", (1, 4, 10), (10, 7), w, keepNumDims=True, fusedActivationFunction=1,
        )  # fmt: skip
        for kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
            for padding in (0, 1):
                found[f"{kind} {padding} {word}"] = lambda w=word, k=kind, p=padding: pooled(w, k, p)
        for kind in ("PAD", "TRANSPOSE", "RESHAPE"):
            found[f"{kind} {word}"] = lambda w=word, k=kind: moved(w, k)
        for kind in ("ADD", "SUB", "MUL", "CONCATENATION"):
            found[f"{kind} {word}"] = lambda w=word, k=kind: joined(w, k, fusedActivationFunction=1)
        for kind in ("RELU", "RELU6", "RELU_N1_TO_1"):
            found[f"{kind} {word}"] = lambda w=word, k=kind: single(w, k, GRIDS[w][1], 50)
        found[f"LEAKY_RELU {word}"] = lambda w=word: single(w, "LEAKY_RELU", GRIDS[w][1], 50, alpha=0.3)
        found[f"MEAN {word}"] = lambda w=word: averaged(w, True)
        found[f"MEAN, other grid {word}"] = lambda w=word: averaged(w, False)
        found[f"SOFTMAX {word}"] = lambda w=word: single(w, "SOFTMAX", PROBABILITY[w], 10, beta=0.5)
        found[f"LOGISTIC {word}"] = lambda w=word: single(w, "LOGISTIC", PROBABILITY[w], 50)
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_litert_does(name: str) -> None:
    """Code by code, but for halves that floats do not hold: one step, of one code in a hundred."""
    content = CASES[name]().content()
    twin, target = twin_of(content), LiteRtTarget(content)
    assert twin.shape is not None
    assert twin.batch is None
    word = {1: "float32", 2: "uint8", 3: "int8"}[twin.kind]
    x = records(word, tuple(size or 1 for size in twin.shape))
    wanted = target.logits(x)
    with torch.no_grad():
        answered = twin(x).flatten(1)
    if twin.grid is None:
        torch.testing.assert_close(answered, wanted, rtol=1e-5, atol=2e-5)
        return
    steps = ((answered - wanted) / twin.grid[0]).abs()
    assert wanted.unique().numel() > 10  # it is no constant
    assert float(steps.max()) < 1.01
    assert float((steps > 0.5).float().mean()) <= 0.01


def test_a_file_has_a_twin_behind_its_preprocessing(tmp_path: Path) -> None:
    """As an audit opens it: read and listed in processes of their own; certified, and its gradient leads somewhere."""
    path = tmp_path / "model.tflite"
    path.write_bytes(small_net("int8").content())
    file = read_model_file(path)
    grid = file.facts.inputs[0].grid
    assert grid is not None
    assumptions = Assumptions(
        record=(8, 8, 3),
        layout="channels-last",
        outputs="probabilities",
        smallest=1 / 512,
        grid=ValueGrid(type="int8", scale=grid[0], zero_point=grid[1]),
    )
    x = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    module, target = differentiable(file, assumptions, Bounds.of(0, 1), (3, 8, 8)), deployed(file, assumptions)
    certificate = certify(target, TorchTarget(module), {"clean": x}).overall
    assert certificate.label_agreement == 1
    assert certificate.max_logit_difference < 1e-3
    y = target.logits(x).argmax(1)
    given = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(module(given), y, reduction="sum"), given)
    assert bool((slope.flatten(1) != 0).any(1).all())
    found = target.logits(x + 0.1 * slope.sign()).gather(1, y[:, None])
    assert float(found.mean()) < float(target.logits(x).amax(1).mean()) - 0.1


def test_the_gradient_of_floats_is_torchs_own() -> None:
    random = np.random.default_rng(0)
    file = TfliteFile(1, 6, 6, 2)
    weight, bias = random.normal(size=(3, 3, 3, 2)).astype(np.float32), random.normal(size=3).astype(np.float32)
    options = {"strideH": 2, "strideW": 2, "dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": 1}
    file.add("CONV_2D", [file.x, file.constant(weight), file.constant(bias)], (1, 3, 3, 3), **options)
    layer = nn.Conv2d(2, 3, 3, 2)
    layer.weight.data, layer.bias = torch.from_numpy(weight).permute(0, 3, 1, 2), nn.Parameter(torch.from_numpy(bias))
    x = records("float32", (6, 6, 2)).requires_grad_()
    wanted = layer(F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))).relu().permute(0, 2, 3, 1)
    slopes = [torch.autograd.grad(made.square().sum(), x)[0] for made in (twin_of(file.content())(x), wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def without_a_bias_of_its_size() -> TfliteFile:
    file = TfliteFile(1, 4)
    weight, bias = (file.constant(np.ones(shape, np.float32)) for shape in ((3, 4), (2, 5)))
    file.add("FULLY_CONNECTED", [file.x, weight, bias], (1, 3))
    return file


def over_records() -> TfliteFile:
    file = TfliteFile(1, 4, 3)
    file.add("MEAN", [file.x, file.constant(np.array([0], np.int32))], (4, 3))
    return file


def of_computed_weights() -> TfliteFile:
    file = TfliteFile(4, 4)
    bent = file.add("TANH", [file.x], (4, 4))
    file.add("FULLY_CONNECTED", [file.x, bent], (4, 4))
    return file


def short_constant() -> TfliteFile:
    file = TfliteFile(1, 4)
    weight = file.tensor((3, 5), values=np.ones((3, 4), np.float32))
    file.add("FULLY_CONNECTED", [file.x, weight], (1, 3))
    return file


def far_window() -> TfliteFile:
    file = TfliteFile(1, 4, 4, 1)
    options = {"strideH": 1, "strideW": 1, "filterHeight": 2**15, "filterWidth": 2**15}
    file.add("AVERAGE_POOL_2D", [file.x], (1, 4, 4, 1), **options)
    return file


REFUSED: dict[str, tuple[Callable[[], TfliteFile], str]] = {
    "operator": (
        lambda: single("float32", "FLOOR", None, 3),
        r"operator FLOOR of the TFLite model \(number 0\): it is not",
    ),
    "records": (over_records, "MEAN .*over the records"),
    "weights": (of_computed_weights, "FULLY_CONNECTED .*weights are computed"),
    "bias": (without_a_bias_of_its_size, r"bias has the shape \[2, 5\]"),
    "constant": (short_constant, "constant of type float32 and shape .* stored in another way"),
    "activation": (lambda: convolution("float32", "CONV_2D", 0, 1, 4), "fused activation is number 4"),
    "grid": (lambda: single("int8", "RELU", (0.0, 0), 5), "grid|scales"),
    "window": (far_window, "window, strides and padding"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_follow_is_named(name: str) -> None:
    file, words = REFUSED[name]
    with pytest.raises((NotApplicable, UnsafeInput), match=words) as caught:
        twin_of(file().content())
    assert "\n" not in str(caught.value)


def test_a_broken_file_ends_in_a_sentence(tmp_path: Path) -> None:
    """LiteRT, which would refuse it, is not asked: an operator names a tensor that is not there; half is missing."""
    content, path = single("float32", "RELU", None, 3).content(), tmp_path / "model.tflite"
    with pytest.raises(NotApplicable, match="twin: its operators name tensors that it does not hold"):
        graph_of(content.replace(struct.pack("<ii", 1, 0), struct.pack("<ii", 1, 77)))
    path.write_bytes(content[:200])
    assert "contradict each other" in json.loads(_read_tflite_graph.main([str(path)]))["fault"]


def test_tables_that_share_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    content = CASES["CONV_2D (0, 1, 0) int8"]().content()
    monkeypatch.setattr(_read_tflite_graph, "NUMBERS", 20)
    with pytest.raises(_read_tflite_graph.Fault, match="more than 20"):
        _read_tflite_graph.graph(content)


def test_mutants_end_in_a_twin_or_a_sentence() -> None:
    """Bytes of the tables changed, beyond what LiteRT would let pass; the listing fails as its `main` expects."""
    random, content, twins = Random(0), small_net("int8").content(), 0
    for _ in range(100):
        mutant = bytearray(content)
        for _ in range(random.randint(1, 3)):
            mutant[random.randrange(8, len(mutant))] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
        try:
            graph = Graph.model_validate(_read_tflite_graph.graph(bytes(mutant)))
            assert isinstance(twin_of_graph(graph, bytes(mutant)), Twin)
            twins += 1
        except (NotApplicable, UnsafeInput, _read_tflite_graph.Fault, *_read_tflite_graph.DAMAGED):
            pass
    assert twins > 10
