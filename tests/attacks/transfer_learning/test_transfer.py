"""Transfer learning: features are what enters the last layer, and a copy of the dense model changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crushproof.attacks.transfer_learning.features import Features
from crushproof.attacks.transfer_learning.transfer import Task, Transferred, transferred
from crushproof.audit.findings.estimates import change
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.twin.twin import twin_of
from crushproof.training.networks import Mlp

BOUNDS = Bounds.of(0, 1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    return Mlp(6, 3, (12,)).eval()


def records(n: int, seed: int) -> Records:
    x = torch.rand((n, 6), generator=torch.Generator().manual_seed(seed))
    return Records(x, (x[:, 0] > x[:, 1]).long())


def test_features_are_what_enters_the_last_layer_of_module_twin_and_quantised_twin(net: nn.Module) -> None:
    x = records(20, 0).x
    wanted = net.layers[:3](x)
    assert torch.equal(Features(net, x[:2])(x), wanted)
    assert torch.equal(copy.deepcopy(Features(net, x[:2]))(x), wanted), "of a copy its own"
    assert torch.allclose(Features(twin_of(to_onnx(net, (6,))), x[:2])(x), wanted, atol=1e-5)
    small = Quantize().apply(net, records(100, 1), BOUNDS, seed=0)
    rounded = Features(twin_of(to_onnx(small, (6,))), x[:2])
    given = x.clone().requires_grad_()
    assert torch.allclose(rounded(given), wanted, atol=0.05)
    (gradient,) = torch.autograd.grad(rounded(given).sum(), given)
    assert gradient.abs().sum() > 0, "straight through the rounding"
    with pytest.raises(NotApplicable, match="no layer with weights"):
        Features(nn.Flatten(), x[:2])


def test_a_copy_of_the_dense_model_changes_nothing(net: nn.Module) -> None:
    task = Task(records(80, 2), records(100, 3), BOUNDS, attacked=20, shadows=4)
    dense, same = (transferred(one, task, seed=0) for one in (net, copy.deepcopy(net)))
    for way in ("probe", "fine-tuned"):
        own, theirs = same[way], dense[way]
        assert isinstance(own, Transferred)
        assert isinstance(theirs, Transferred)
        assert own.correct.mean() > 0.8
        assert own.robust.mean() <= own.correct[:20].mean()
        for comparison in own.beside(theirs, "dense").values():
            assert change(comparison, seed=0).difference == 0
    small = transferred(Quantize().apply(net, task.members, BOUNDS, seed=0), task, seed=0)
    assert isinstance(small["probe"], Transferred)
    assert small["fine-tuned"] == "not applicable: it has no weights in floats that could be trained on"
