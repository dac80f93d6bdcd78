"""A dense model, and what two quantisers make of it: built once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lineage_files import SHAPE, Calibration, Sequence, Small, unfolded
from onnxruntime.quantization import (
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.seeds import generator
from crushproof.training.networks import SequenceTransformer


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return Small(1).eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, model: nn.Module) -> Path:
    """dense.onnx, unfolded.onnx, and files by ONNX Runtime's quantiser: qdq, qop, dynamic, unsigned."""
    path = tmp_path_factory.mktemp("lineage")
    (path / "dense.onnx").write_bytes(to_onnx(model, SHAPE))
    (path / "unfolded.onnx").write_bytes(unfolded(model))
    (path / "sequence.onnx").write_bytes(to_onnx(Sequence().eval(), (1, 6, 8)))
    quant_pre_process(path / "unfolded.onnx", path / "prepared.onnx")
    quant_pre_process(path / "sequence.onnx", path / "sequence_prepared.onnx")
    for name, form, weight, channels in (
        ("qdq", QuantFormat.QDQ, QuantType.QInt8, True),
        ("qop", QuantFormat.QOperator, QuantType.QInt8, True),
        ("unsigned", QuantFormat.QDQ, QuantType.QUInt8, False),
    ):
        quantize_static(
            path / "prepared.onnx",
            path / f"{name}.onnx",
            Calibration(),
            quant_format=form,
            per_channel=channels,
            activation_type=QuantType.QUInt8,
            weight_type=weight,
        )
    quantize_dynamic(path / "prepared.onnx", path / "dynamic.onnx", weight_type=QuantType.QUInt8)
    quantize_dynamic(path / "sequence_prepared.onnx", path / "sequence_dynamic.onnx", weight_type=QuantType.QInt8)
    return path


@pytest.fixture(scope="session")
def encoder() -> nn.Module:
    """Layers of their own weights: equal ones would share an initialiser."""
    module = SequenceTransformer(layers=1).eval()
    random = generator(3, "encoder")
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random) * 0.2
    return module
