"""Candidates as TFLite files: LiteRT answers as ONNX Runtime does, from the same codes, and so does the file's twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("ai_edge_litert")

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.tflite_export import to_tflite
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.certificate import certify
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.litert import LiteRtTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.seeds import generator
from crushproof.targets.twin.tflite.twin import twin_of_graph
from crushproof.targets.untrusted import _read_tflite_graph
from crushproof.targets.untrusted.tflite_graph import Graph, constant_of


class Residual(nn.Module):
    """Batch norm, a depthwise convolution, a sum, and a flattening of several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.wide = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.wide(torch.relu(self.deep(x))))
        return self.last(F.max_pool2d(x, 2).flatten(1))


class Strided(nn.Module):
    """Margins that TFLite has none like, an activation to 6, a mean over each channel, and a product without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, stride=2, groups=2)
        self.last = nn.Linear(12, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.first(x)), 3, 2, 1)
        return self.last(torch.tanh(self.second(x)).mean((2, 3)))


class Tokens(nn.Module):
    """A product of rows, scores that are averaged, and probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(8 * self.last(torch.sigmoid(self.rows(x)).mean(1)), 1)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.hardswish(self.first(x / 2)), 2)
        return self.last(x.view(x.size(0), -1))


class Last(nn.Module):
    """The last state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.inner(x)
        return self.last(states[:, -1])


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (1, 7, 6)),
    "strided": (Strided, (3, 18, 16)),
    "tokens": (Tokens, (5, 6)),
    "pooled": (Pooled, (1, 8, 8)),
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), (12,)),
}
RECIPES: dict[str, dict[str, Any] | None] = {
    "float": None,
    "int8": {"weight_bits": 8},
    "weights alone": {"weight_bits": 8, "activations": "float"},
    "int4": {"weight_bits": 4, "keep_ends_8bit": False},
    "float16": {"number": "float16", "activations": "float"},
}


def records(shape: tuple[int, ...], count: int = 100) -> Tensor:
    return 2 * torch.rand((count, *shape), generator=generator(3, "tflite")) - 1


def built(net: str, recipe: str) -> tuple[bytes, Tensor]:
    """The ONNX file of a candidate, and records for it."""
    build, shape = NETS[net]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module, settings = build().eval(), RECIPES[recipe]
    x = records(shape)
    if settings is not None:
        known = Records(x, torch.zeros(len(x), dtype=torch.long))
        module = Quantize.model_validate(settings).apply(module, known, Bounds.of(-1.0, 1.0), seed=0)
    return to_onnx(module, shape), x


def graph(content: bytes) -> Graph:
    """Listed in this process, which is quicker."""
    return Graph.model_validate(_read_tflite_graph.graph(content))


@pytest.mark.parametrize(
    ("net", "recipe"),
    [*((net, recipe) for net in NETS for recipe in ("float", "int8")), *(("residual", one) for one in [*RECIPES][2:])],
)
def test_answers(net: str, recipe: str) -> None:
    content, x = built(net, recipe)
    made = to_tflite(content)
    target, known = LiteRtTarget(made), OnnxTarget(content)
    twin = TorchTarget(twin_of_graph(graph(made), made))
    scores = known.logits(x)
    size = float(scores.max() - scores.min())
    for other in (known, twin):
        found = certify(target, other, {"all": x}).overall
        assert found.label_agreement >= (0.97 if recipe == "int4" else 0.99)  # whose kernels round twice
        assert found.max_logit_difference <= (0.03 if "int" in recipe else 1e-5) * size


def test_codes_are_those_of_the_onnx_file() -> None:
    """A layer between two roundings computes with the same codes, in 8 bits on both sides, on the same grids."""
    content, _ = built("residual", "int8")
    made = to_tflite(content)
    known = {one.name: numpy_helper.to_array(one) for one in onnx.load_model_from_string(content).graph.initializer}
    listed = graph(made)
    for name, kind, order in (("first", "CONV_2D", (0, 2, 3, 1)), ("deep", "DEPTHWISE_CONV_2D", (1, 2, 3, 0))):
        layer = next(one for one in listed.operators if one.kind == kind)
        given, weight, bias, result = (listed.tensors[at] for at in (*layer.inputs, *layer.outputs))
        assert (given.type, weight.type, bias.type, result.type) == ("int8", "int8", "int32", "int8")
        codes = constant_of(weight, made)
        assert codes is not None
        np.testing.assert_array_equal(codes, known[f"inner.{name}.codes"].transpose(order))
        np.testing.assert_allclose(weight.scale, known[f"inner.{name}.weight_scale"])
    assert len(made) < 1.2 * len(content)
    assert made == to_tflite(content), "the same file gives the same bytes"
    assert all(one.place is None or one.place[0] % 16 == 0 for one in listed.tensors), (
        "kernels read them where they lie"
    )


@pytest.mark.parametrize(
    ("module", "shape", "settings", "words"),
    [
        (Last(), (5, 6), None, r"operator \w+ \(/inner/\w+\)"),
        (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)), (2, 6), None, "slides over series"),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (6,), "dynamic", "DynamicQuantizeLinear"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True)), (1, 7, 7), None, "leave the image"),
        (nn.Conv2d(1, 2, 3), (1, 7, 7), None, "something else than scores"),
    ],
    ids=["recurrent", "series", "dynamic", "ceiling", "no scores"],
)
def test_what_is_not_written_is_named(
    module: nn.Module, shape: tuple[int, ...], settings: str | None, words: str
) -> None:
    x = records(shape, 8)
    if settings is not None:
        known = Records(x, torch.zeros(len(x), dtype=torch.long))
        recipe = Quantize.model_validate({"activations": settings})
        module = recipe.apply(module.eval(), known, Bounds.of(-1.0, 1.0), seed=0)
    with pytest.raises(NotApplicable, match=rf"cannot be deployed as TFLite.*{words}.*deploy: onnx"):
        to_tflite(to_onnx(module.eval(), shape))
