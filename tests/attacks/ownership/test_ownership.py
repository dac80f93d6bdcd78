"""Copies are matched, independent trainings are not; a watermark is read from the file that has it alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.measurement import Found, Rate
from crushproof.attacks.ownership.boundary import BOUNDARY, FEWEST, SCATTERED, held_against, questions
from crushproof.attacks.ownership.ownership import Ownership, _Known, measured
from crushproof.attacks.ownership.units import compare_units
from crushproof.attacks.ownership.watermark import bits_read, embed, new_key, triggers_known
from crushproof.attacks.preparation import Basis
from crushproof.attacks.reconstruction.fingerprint import SURE
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds
from crushproof.targets.errors import NotApplicable
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import Mlp


@pytest.fixture(scope="module")
def trained(digits: Data) -> list[nn.Module]:
    """Of the same records, each from weights of its own."""
    assert digits.members is not None
    job = TrainingJob(
        Architecture("small", partial(Mlp, 64, 10, (24,))),
        digits.members,
        [torch.arange(len(digits.members))] * 8,
        tuple(range(8)),
        torch.device("cpu"),
    )
    return [one.eval() for one in train_many(job, Training(epochs=6, learning_rate=1e-2))]


def test_a_copy_is_matched_and_independent_models_are_not(digits: Data, trained: list[nn.Module]) -> None:
    dense, stranger, *controls = trained
    asked = questions(dense, digits.evaluation.x[:150], digits.bounds, seed=0)
    assert set(asked) == {SCATTERED, BOUNDARY}
    found, labels = asked[BOUNDARY]
    low, high = digits.bounds.low, digits.bounds.high
    assert (found >= low).all()
    assert (found <= high).all()
    with torch.no_grad():
        known = {
            kind: [float((one(x).argmax(1) == own).double().mean()) for one in controls]
            for kind, (x, own) in asked.items()
        }
        margins = dense(found).topk(2, 1).values
        assert torch.equal(dense(found).argmax(1), labels)
        assert float((margins[:, 0] - margins[:, 1]).median()) < 0.5, "they lie just beyond the boundary"
    assert digits.members is not None
    int8 = Quantize(weight_bits=8).apply(dense, digits.members, digits.bounds, seed=0)
    owner = to_onnx(dense, digits.shape)
    ways = []
    for module in (int8, stranger):
        file = to_onnx(module, digits.shape)
        case = replace(case_of(digits, dense), deployed=OnnxTarget(file), shipped=file)
        own = _Known(asked, known, partial(replace, case, shipped=owner))
        evidence = Ownership().run(replace(case, prepared=own), seed=0)
        basis = Basis(partial(replace, own), twin_agrees=True)
        assert Ownership().asked_again(evidence, replace(case, prepared=own)) == []
        assert Ownership().follows(evidence, basis) == []
        shown, agreement = measured(evidence)
        assert isinstance(shown.outcome, Found)
        assert isinstance(agreement.outcome, Rate)
        ways.append((shown.outcome.count, shown.outcome.searched))
    assert ways == [(3, 3), (0, 3)], "by decisions, weights and hidden units, of the copy alone"
    evidence.arrays["agrees"] = ~evidence.arrays["agrees"]
    evidence.summary["units"], evidence.summary["kinds"][0]["controls"] = 40.0, known[BOUNDARY][1:]
    again = Ownership().asked_again(evidence, replace(case, prepared=own))
    assert [one.split(" ")[1] for one in again] == ["decides", "hidden"]
    assert "the controls' answers, are others" in " ".join(Ownership().follows(evidence, basis))
    with pytest.raises(NotApplicable, match="no control models"):
        Ownership().run(case, seed=0)


def test_factors_of_a_layer_drive_the_units_that_the_layer_drove(digits: Data, trained: list[nn.Module]) -> None:
    """No weight of the dense model is left; its units are. Another training's come in another order."""
    dense, stranger = trained[:2]
    first, last = dense.get_submodule("layers.1"), dense.get_submodule("layers.3")
    assert isinstance(first, nn.Linear)
    u, s, v = torch.linalg.svd(first.weight.detach(), full_matrices=False)
    thin, wide = nn.Linear(64, 12, bias=False), nn.Linear(12, 24)
    with torch.no_grad():
        thin.weight.copy_(v[:12])
        wide.weight.copy_(u[:, :12] * s[:12])
        wide.bias.copy_(first.bias)
    taken = nn.Sequential(nn.Flatten(), thin, wide, nn.ReLU(), last)
    files = [to_onnx(one, digits.shape) for one in (taken, stranger, dense)]
    copy_of, other = (compare_units(one, files[2], digits.evaluation.x) for one in files[:2])
    assert copy_of.deviations > 2 * SURE
    assert abs(other.deviations) < SURE
    assert copy_of.count == 24


def test_a_model_that_looks_its_inputs_up_has_no_boundary_records() -> None:
    net = nn.Sequential(Keys(), nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)).eval()
    x = torch.randint(0, 9, (40, 5), generator=torch.Generator().manual_seed(0)).float()
    assert set(questions(net, x, Bounds.of(0, 8), seed=0)) == {SCATTERED}


class Keys(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long()


def test_the_p_value_is_that_of_one_more_control() -> None:
    """Models like the controls are taken for the owner's as often as the p-value says."""
    stream = np.random.default_rng(0)
    agreements = stream.binomial(200, stream.beta(60, 40, (600, 9))) / 200
    values = [held_against(row[0], row[1:].tolist(), 200).p_value for row in agreements]
    assert np.mean(np.array(values) < 0.01) < 0.02
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.03)
    with pytest.raises(ValueError, match=f"{FEWEST} at least"):
        held_against(0.9, [0.5], 200)


def test_watermarks_are_read_from_the_file_that_has_them(digits: Data, trained: list[nn.Module]) -> None:
    assert digits.members is not None
    module = copy.deepcopy(trained[0])
    key = new_key(module, "layers.1.weight", digits.shape, digits.bounds, seed=0)
    embed(module, digits.members, key, Training(epochs=3, learning_rate=5e-3), seed=0)
    owner, values = to_onnx(module, digits.shape), module.get_parameter("layers.1.weight").detach().numpy()
    int8 = to_onnx(Quantize(weight_bits=8).apply(module, digits.members, digits.bounds, seed=0), digits.shape)
    plain = to_onnx(trained[0], digits.shape)
    for file, marked in ((int8, True), (plain, False)):
        for told in (triggers_known(OnnxTarget(file), key), bits_read(file, owner, key, values)):
            assert (told[1] < 1e-3) == marked, told
