"""Sponge inputs: found where a file skips activations by their size, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.availability.density import Meter
from crushproof.attacks.availability.sponge import Sponge
from crushproof.attacks.case import Evidence
from crushproof.attacks.preparation import Basis
from crushproof.audit.findings.estimates import estimate
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.pruning.dynamic_sparsity import DynamicSparsity
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import check_arrays
from crushproof.targets.untrusted.model_file import check_onnx
from crushproof.training.networks import Mlp

BOUNDS = Bounds.of(0, 1)


@pytest.fixture(scope="module")
def data() -> Data:
    """Dark records, at which half of a rectified layer is silent."""
    stream = torch.Generator().manual_seed(0)
    x = torch.rand((120, 8), generator=stream) * (torch.rand((120, 8), generator=stream) < 0.3)
    return Data("dark", None, Records(x, torch.arange(120) % 2), BOUNDS, ("a", "b"))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """The first layer's units each listen to one value, above a threshold."""
    net = Mlp(8, 2, (8,))
    first: Any = net.layers[1]
    with torch.no_grad():
        first.weight.copy_(torch.eye(8))
        first.bias.fill_(-0.2)
    return net.eval()


def asked(data: Data, module: nn.Module) -> tuple[Evidence, Any]:
    attack, case = Sponge(records=16, steps=60), replace(case_of(data, module), shipped=to_onnx(module, data.shape))
    evidence = attack.run(case, seed=0)
    model: Any = SimpleNamespace(name="small", baselines=())
    form = attack.form(model, SimpleNamespace(data=data))
    assert callable(form.arrays)
    check_arrays(evidence.arrays, form.arrays(form.document.model_validate(evidence.summary)))
    basis = Basis(lambda: None, twin_agrees=True)
    assert attack.asked_again(evidence, case) == attack.follows(evidence, basis) == []
    forged = replace(evidence, arrays={**evidence.arrays, "computed": evidence.arrays["computed"] * 0.5})
    assert len(attack.asked_again(forged, case)) == 2, "neither the records nor the inputs compute so little"
    forged.arrays["computed"] = np.linspace(0.9, 0.5, len(forged.arrays["computed"]))[:, None] * np.ones(16)
    assert "from inputs that compute less" in attack.follows(forged, basis)[0]
    results: Any = SimpleNamespace(model=model, evidence=lambda ran: evidence, flags=lambda name: set())
    return evidence, attack.measure(results)[0]


def test_dynamic_sparsity_is_made_to_work_harder(data: Data, net: nn.Module) -> None:
    """Seven of eight may be kept; of dark records fewer are there to keep."""
    sparse = DynamicSparsity(keep=7 / 8).apply(net, data.evaluation, BOUNDS, seed=0)
    evidence, found = asked(data, sparse)
    assert evidence.summary["skips"]
    assert estimate(found.outcome).low > 0.05
    clean = (data.evaluation.x[:16] > 0.2).float().mean(1).double()
    of_second = (evidence.arrays["computed"][0] - 0.8) / 0.2  # 64 products of the first layer, 16 of the second
    assert of_second == pytest.approx(clean.numpy())
    assert evidence.arrays["computed"][-1].max() <= 0.8 + 0.2 * 7 / 8 + 1e-9, "what is kept is a ceiling"
    assert evidence.summary["energy_worst"] > evidence.summary["energy_clean"]


def test_a_file_that_skips_nothing_stays_level(data: Data, net: nn.Module) -> None:
    """Its zeros would be fewer, and they are multiplied all the same."""
    quantized = Quantize().apply(net, data.evaluation, BOUNDS, seed=0)
    evidence, found = asked(data, quantized)
    assert not evidence.summary["skips"]
    assert (evidence.arrays["computed"] == 1).all()
    assert estimate(found.outcome).high == 0
    assert evidence.summary["nonzero_worst"] > evidence.summary["nonzero_clean"] + 0.1
    assert "skips nothing" in found.notes[0]


def test_inputs_stay_within_the_bounds_and_files_of_other_kinds_are_none(data: Data, net: nn.Module) -> None:
    meter = Meter(check_onnx(to_onnx(net, data.shape)), None, data.shape)
    ones, natural = meter.shares(torch.stack([torch.zeros(8), torch.ones(8)]), Ledger())
    assert ones.tolist() == [1, 1]
    assert natural == pytest.approx(np.array([0, 1.0])), "of the input too: nothing of a black record is there"
    for shipped, why in ((b"", "not at hand"), (b"no model", "ONNX files")):
        with pytest.raises(NotApplicable, match=why):
            Sponge().run(replace(case_of(data, net), shipped=shipped), seed=0)
