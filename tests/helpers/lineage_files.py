"""Models and files whose lineage is checked: two networks, what ONNX Runtime quantises them with, graphs by hand."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import (
    CalibrationDataReader,
)
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.seeds import generator

SHAPE = (3, 8, 8)


class Small(nn.Module):
    """Convolutions with batch norms (one of them depthwise) and a residual, and two linear layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.third = nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 24), nn.Linear(24, 10)
        random = generator(seed, "small")
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.3
        for norm in (self.norm1, self.norm2):
            norm.weight.data = 0.5 + torch.rand(8, generator=random)
            norm.weight.data[2] *= -1
            norm.running_mean = torch.randn(8, generator=random) * 0.1
            norm.running_var = 0.5 + torch.rand(8, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.third(x + torch.relu(self.norm2(self.second(x)))))
        return self.fc2(torch.relu(self.fc1(torch.max_pool2d(x, 2).flatten(1))))


class Sequence(nn.Module):
    """A recurrent layer, and a product over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.mix, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.recurrent(x[:, 0])[0]))[:, -1])


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(6, "noise"))


def unfolded(module: nn.Module) -> bytes:
    """An export that keeps batch norms."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (noise(2, *SHAPE),),
            file,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
    return file.getvalue()


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter([{"input": part.numpy()} for part in noise(16, *SHAPE).split(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def read(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.onnx").read_bytes()


def our_own(model: nn.Module, **options: object) -> bytes:
    records = Records(noise(32, *SHAPE), torch.zeros(32, dtype=torch.long))
    recipe = Quantize(**options)
    return to_onnx(recipe.apply(model, records, Bounds.of(0.0, 1.0), seed=0), SHAPE)


def whole(nodes: list[onnx.NodeProto], held: list[onnx.TensorProto], *domains: str) -> bytes:
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 16])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, held)
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


WEIGHT = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)


def gemm(weight: str, output: str = "logits") -> onnx.NodeProto:
    return helper.make_node("Gemm", ["input", weight], [output], output, transB=1)
