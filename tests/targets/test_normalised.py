"""Group norm of values whose channels lie last: torch's own in float64 is the oracle, and ONNX Runtime."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.targets.model import channels_last, laid_out, normalised, scaled
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import twin_of


@pytest.mark.parametrize("shape", [(5, 16, 8, 8), (4, 6, 7)])
def test_values_and_derivatives_are_those_of_group_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, up = 3 * torch.randn(shape) + 5, torch.randn(shape)
    x = channels_last(x) if len(shape) == 4 else x
    scale, shift = torch.randn(2, shape[1])

    def own(x: Tensor) -> Tensor:
        return scaled(normalised(x, 1e-5), scale, shift)

    def derivatives(answer: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        (once,) = torch.autograd.grad((answer * up).sum(), x, create_graph=True)
        return once, torch.autograd.grad(once.square().sum(), x)[0]

    exact = x.double().requires_grad_()
    expected = F.group_norm(exact, shape[1], scale.double(), shift.double(), 1e-5)
    given = x.clone().requires_grad_()
    answer = own(given)
    assert torch.allclose(answer.double(), expected, atol=1e-5)
    for found, wanted in zip(derivatives(answer, given), derivatives(expected, exact), strict=True):
        assert torch.allclose(found.double(), wanted, atol=1e-5 * float(wanted.detach().abs().max()))
    assert torch.allclose(torch.vmap(own)(torch.stack([x, 2 * x]))[0], own(x), atol=1e-5)
    assert answer.stride() == x.stride(), "nothing was laid out anew"


@pytest.mark.parametrize("groups", [8, 2])
def test_a_group_norm_is_that_of_its_file_and_of_its_module(groups: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(groups, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).eval()
    nn.init.normal_(net[1].weight)  # type: ignore[arg-type]  # of a GroupNorm
    x, file = torch.rand(6, 1, 8, 8), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, dynamo=False, dynamic_axes={"input": [0]}, input_names=["input"])
    twin, answers = twin_of(file.getvalue()), OnnxTarget(file.getvalue()).logits(x)
    assert torch.allclose(twin(x), answers, atol=1e-5)
    fast = laid_out(twin, x)
    assert torch.allclose(fast(x), answers, atol=1e-5)
    assert torch.allclose(laid_out(net, x)(x), net(x), atol=1e-5)
    copied = laid_out(net, x)
    assert type(net[1]) is nn.GroupNorm, "the module itself stays as it is"
    assert type(copied[1]) is not nn.GroupNorm  # type: ignore[index]  # a Sequential
