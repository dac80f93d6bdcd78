"""A finished file as it runs: its preprocessing, its logits, what it lacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.errors import NotApplicable
from crushproof.targets.interface.assumptions import Assumptions
from crushproof.targets.interface.preprocessing import Preprocessing, class_logits
from crushproof.targets.runtimes.onnx import integer_kernels
from crushproof.targets.runtimes.tensorrt import TensorRtTarget
from crushproof.targets.seeds import generator

SHAPE = (1, 8, 8)


def test_float_kernels_are_named(digits: Data, dense: nn.Module) -> None:
    kernels = integer_kernels(to_onnx(dense, SHAPE))
    assert kernels["integer"] == {}
    assert sum(kernels["float"].values()) == 6


def test_preprocessing_against_numpy() -> None:
    x = torch.rand(5, 3, 4, 2, generator=generator(1, "x")) * 30 - 10
    low, high, mean, std = (-10.0, -10.0, -12.0), (20.0, 20.0, 21.0), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    assumed = Assumptions.model_validate(
        {"layout": "channels-last", "record": (4, 2, 3), "units": "0..1", "low": low, "high": high, "mean": mean,
         "std": std, "grid": {"type": "int8", "scale": 0.02, "zero_point": 3}}
    )  # fmt: skip
    per_channel = [np.array(values).reshape(1, 3, 1, 1) for values in (low, high, mean, std)]
    unit = (x.double().numpy() - per_channel[0]) / (per_channel[1] - per_channel[0])
    value = np.transpose((unit - per_channel[2]) / per_channel[3], (0, 2, 3, 1)) / 0.02 + 3
    expected = np.clip(np.rint(value), -128, 127)
    x.requires_grad_(True)
    answered = Preprocessing(assumed)(x)
    off = answered.detach().numpy() - expected
    assert (np.abs(off) <= 1).all()
    assert (off != 0).mean() < 0.01  # float32 beside float64 at a step's edge
    answered.sum().backward()
    inside = (value > -127.9) & (value < 126.9)
    slope = np.broadcast_to(1 / (0.02 * (per_channel[1] - per_channel[0]) * per_channel[3]), x.shape)
    gradient = np.transpose(x.grad.numpy(), (0, 2, 3, 1))
    np.testing.assert_allclose(gradient[inside], np.transpose(slope, (0, 2, 3, 1))[inside], rtol=1e-4)
    assert (gradient[(value < -129) | (value > 128)] == 0).all()


def test_logits_are_finite() -> None:
    sure = torch.tensor([[1.0, 0.0, 0.0]])
    logits = class_logits(sure, Assumptions(record=(1,), outputs="probabilities"))
    assert bool(torch.isfinite(logits).all())
    assert logits.argmax() == 0
    assert float(class_logits(sure.log(), Assumptions(record=(1,), outputs="log-probabilities")).min()) > -100
    two = class_logits(torch.tensor([[0.25]]), Assumptions(record=(1,), outputs="probabilities"))
    torch.testing.assert_close(two.softmax(1), torch.tensor([[0.75, 0.25]]))


def test_tensorrt_needs_a_gpu(dense: nn.Module) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build may have what it needs")
    with pytest.raises(NotApplicable, match="not measured: no GPU"):
        TensorRtTarget(to_onnx(dense, SHAPE))
