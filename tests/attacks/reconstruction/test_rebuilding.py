"""Rebuilding: dense weights are read off a compressed file, and dense weights that lie unused in it are found."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from evasion_cases import case_of
from onnx import numpy_helper
from torch import nn

from crushproof.attacks.measurement import Found, Rate
from crushproof.attacks.reconstruction.fingerprint import fingerprint
from crushproof.attacks.reconstruction.rebuild import dense_tensors_in, rebuild, rebuilt_model
from crushproof.attacks.reconstruction.rebuilding import EXCHANGED, Dense, Rebuilding
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import check_arrays
from crushproof.targets.model import TorchTarget
from crushproof.training.networks import digits_cnn

SHAPE, WEIGHTS = (1, 8, 8), 6


@pytest.fixture(scope="module")
def files(digits: Data, dense: nn.Module) -> dict[str, bytes]:
    def made(**recipe: Any) -> bytes:
        return to_onnx(RECIPES.parse(recipe).apply(dense, digits.members, digits.bounds, seed=0), SHAPE)

    return {
        "dense": to_onnx(dense, SHAPE),
        "int8": made(kind="quantize", weight_bits=8),
        "int4": made(kind="quantize", weight_bits=4, keep_ends_8bit=False),
        "mask": made(kind="prune", sparsity=0.5),
        "book": made(kind="share", clusters=16),
        "other": made(kind="factorize", convolution="channel", energy=0.6),
    }


@pytest.mark.parametrize(("name", "least", "most"), [("int8", 0.003, 0.02), ("int4", 0.05, 0.2)])
def test_integers_are_off_by_what_their_scales_say(files: Any, name: str, least: float, most: float) -> None:
    found = rebuild(files[name], files["dense"])
    error, rounding = found.overall()
    assert rounding is not None
    assert error == pytest.approx(rounding, rel=0.05), "uniform within a step: scale / sqrt(12)"
    assert least < error < most
    assert found.missing == 0


def test_masks_and_code_books_are_told(files: Any, dense: nn.Module) -> None:
    mask, book = rebuild(files["mask"], files["dense"]), rebuild(files["book"], files["dense"])
    assert {one.how for one in mask.layers} == {"mask"}
    kept = sum(one.kept * one.weights for one in mask.layers) / sum(one.weights for one in mask.layers)
    assert kept == pytest.approx(0.5, abs=0.02)
    assert ("code book", 4) in {(one.how, one.bits) for one in book.layers}, "a folded batch norm hides others"
    assert rebuild(files["dense"], files["dense"]).uncompressed == {one.dense for one in mask.layers}
    with pytest.raises(NotApplicable, match="none of the file's weights"):
        rebuild(files["other"], files["dense"])


def test_the_float_model_rounds_nothing_and_learns(files: Any, digits: Data) -> None:
    model = rebuilt_model(files["int8"])
    x = digits.evaluation.x[:20]
    step = 1e-4 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    plain, moved = model(x), model(x + step)
    assert bool((plain != moved).any(1).all()), "a rounded input would answer alike"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dense_weights_that_nothing_reads_are_found(files: Any) -> None:
    assert dense_tensors_in(files["int8"], files["dense"]) == ({}, WEIGHTS)
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(files["dense"]).graph.initializer}
    name, weight = next((name, values) for name, values in held.items() if values.ndim == 2)
    dead = onnx.load_from_string(files["int8"])
    dead.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), "left"))
    assert dense_tensors_in(dead.SerializeToString(), files["dense"])[0] == {name: "tensor 'left'"}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/0", weight.tobytes())
    assert dense_tensors_in(packed.getvalue(), files["dense"])[0] == {name: "entry 'data/0', deflated"}


def test_the_attack_measures_decisions_and_what_lies_about(files: Any, digits: Data, dense: nn.Module) -> None:
    attack = Rebuilding(epochs=1)
    known = Dense(files["dense"], TorchTarget(dense))
    case = replace(case_of(digits, dense), shipped=files["int8"], prepared=known)
    evidence = attack.run(case, seed=0)
    model: Any = type("Model", (), {"name": "int8", "is_dense": False, "parent": type("Parent", (), {"name": "dense"})})
    scope: Any = type("Scope", (), {"data": digits})
    form = attack.form(model, scope)
    assert form.document is not None
    assert form.holds is not None
    assert not callable(form.arrays)
    check_arrays(evidence.arrays, form.arrays or {})
    form.holds(form.document.model_validate(evidence.summary), evidence.arrays, {})
    results: Any = type(
        "Results", (), {"model": model, "scope": scope, "evidence": lambda self, ran: evidence, "why": None}
    )()
    fidelity, unused, whose = attack.measure(results)
    assert whose.outcome == Found(3, 3, EXCHANGED), "what rounds to zero is a mask too"
    assert isinstance(fidelity.outcome, Rate)
    assert fidelity.outcome.successes.mean() > 0.97
    assert [part.headline for part in fidelity.parts] == [False, True, False]
    assert isinstance(unused.outcome, Found)
    assert (unused.outcome.count, unused.outcome.searched) == (0, WEIGHTS)
    assert attack.asked_again(evidence, case) == []
    with pytest.raises(NotApplicable, match="not at hand"):
        attack.run(replace(case, prepared=None), seed=0)


def test_a_parent_is_told_from_another_model_by_its_mask_alone(files: Any, dense: nn.Module) -> None:
    torch.manual_seed(5)
    other = digits_cnn().eval()
    assert other.state_dict().keys() == dense.state_dict().keys()
    stranger = to_onnx(other, SHAPE)
    for name, sees in (("int4", "weights"), ("int4", "codes"), ("mask", "mask")):
        parents = (files["dense"], stranger)
        own, others = (fingerprint(files[name], one, sees) for one in parents)  # type: ignore[arg-type]  # a loop's str
        assert own.matches
        assert own.correlation > 0.5
        assert not others.matches
        assert abs(others.correlation) < 0.2
    assert fingerprint(files["dense"], files["dense"], "mask").weights == 0, "nothing is zero"
