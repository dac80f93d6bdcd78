"""Attacks of the Adversarial Robustness Toolbox: repeatable, by name, and no stronger than ours."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from evasion_cases import RADII, N, case_of, survivors
from torch import nn

from crushproof.attacks.access import Access
from crushproof.attacks.attack import ATTACKS
from crushproof.attacks.evasion.art_catalogue import Art
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.engine import Perturber
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError
from crushproof.training.ball import Norm


def test_as_strong_as_art(digits: Data, dense: nn.Module) -> None:
    case = case_of(digits, dense)
    pairs: list[tuple[Perturber, Perturber, Norm, float]] = []
    for norm, epsilon in (("linf", 0.1), ("l2", 0.6)):
        pgd = Art(name="ProjectedGradientDescent", parameters={"max_iter": 6, "num_random_init": 1})
        apgd = Art(name="AutoProjectedGradientDescent", parameters={"max_iter": 6, "nb_random_init": 1})
        pairs += [(Pgd(steps=6), pgd, norm, epsilon), (Apgd(steps=6), apgd, norm, epsilon)]
    square = Art(name="SquareAttack", parameters={"max_iter": 40, "p_init": 0.8, "nb_restarts": 1})
    pairs += [(Square(queries=40), square, "linf", 0.1)]  # ART's L2 variant divides by zero on images this small
    for ours, peer, norm, epsilon in pairs:
        own, other = survivors(case, ours, norm, epsilon), survivors(case, peer, norm, epsilon)
        assert own <= other + 2, f"{ours.part} {norm}: {own} left, {peer.part}: {other}"
        assert own < 0.8 * N


def test_art_runs_and_is_reproducible(digits: Data, dense: nn.Module) -> None:
    hop = Art(name="HopSkipJump", parameters={"max_iter": 1, "max_eval": 30, "init_eval": 5})
    attack = Evasion(epsilons=RADII, records=8, parts=(hop, Art(name="FastGradientMethod"), Art(name="DPatch")))
    states = [np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()]
    first = attack.run(case_of(digits, dense), seed=0)
    assert (np.random.get_state()[1] == states[0]).all()
    assert random.getstate() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    np.random.seed(99)
    second = attack.run(case_of(digits, dense), seed=0)
    assert (first.arrays["adversarial"] == second.arrays["adversarial"]).all()
    assert first.ledger == second.ledger
    assert first.summary["parts"] == ["HopSkipJump", "FastGradientMethod"]
    assert first.summary["part_access"] == {"HopSkipJump": "labels", "FastGradientMethod": "white-box"}
    assert "EstimatorError" in first.skipped["DPatch"]  # made for object detectors


def test_art_names_are_checked() -> None:
    with pytest.raises(InputError, match="Did you mean 'HopSkipJump'"):
        ATTACKS.parse({"kind": "evasion", "parts": [{"kind": "art", "name": "HopSkipJmp"}]})
    with pytest.raises(InputError, match="Did you mean 'max_iter'"):
        ATTACKS.parse(
            {"kind": "evasion", "parts": [{"kind": "art", "name": "HopSkipJump", "parameters": {"maxiter": 3}}]}
        )
    for name in ("EvasionAttack", "os", "__builtins__", "np"):
        with pytest.raises(ValueError, match="no evasion attack"):
            Art(name=name)
    assert Art(name="SquareAttack").access is Access.SCORES
