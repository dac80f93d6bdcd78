"""A set of attacks that a plan takes by its name is one for its data; what was seen is kept without the records."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crushproof.audit.plan.presets import ATTACK_PRESETS, attacks_of
from crushproof.targets.data.data import Data
from crushproof.targets.data.outline import data_of, outline
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure

STREAM = np.random.default_rng(0)
TABLE = np.column_stack([STREAM.random((90, 4)), np.eye(3)[STREAM.integers(0, 3, 90)]])
IDS = STREAM.integers(0, 30, (90, 12))
BALL, EXCHANGE = "evasion", "substitution"


@pytest.mark.parametrize(
    ("x", "structure", "kinds"),
    [
        (STREAM.random((90, 1, 4, 4)), Structure(), {BALL}),
        (TABLE[:, :4], Structure(), {BALL}),
        (TABLE, Structure(), {EXCHANGE}),  # undeclared blocks are seen
        (TABLE, Structure(one_hot=((4, 5, 6),)), {BALL, EXCHANGE}),
        (TABLE, Structure(immutable=(0, 1, 2, 3), one_hot=((4, 5, 6),)), {EXCHANGE}),
        (IDS, Structure(tokens=True), {EXCHANGE}),
        (IDS, Structure(codes=(0,)), {BALL, EXCHANGE}),
    ],
)
def test_a_set_is_for_its_data(x: np.ndarray, structure: Structure, kinds: set[str]) -> None:
    records = Records(torch.as_tensor(x, dtype=torch.float32), torch.arange(90) % 2)
    data = Data("data", None, records, Bounds.of(0, 30 if x is IDS else 1), ("a", "b"), structure=structure)
    told, arrays = outline(data)
    for name in ATTACK_PRESETS:
        taken = attacks_of(name, data)
        certified = {"smoothing", "sponge"} if name == "thorough" and BALL in kinds else set()
        certified |= {"backdoor", "backdoor-ladder"} if name == "thorough" and len(data.shape) > 2 else set()
        certified |= {"attributes"} if name == "thorough" and structure.one_hot else set()
        thorough = {"bit-flips", "rebuilding", "ownership"}
        further = {"quick": set(), "standard": {"bit-flips"}, "thorough": thorough}[name] | certified
        assert {one.kind for one in taken} == kinds | further | {"membership", "extraction", "churn", "leakage"}
        assert attacks_of(name, data_of(told, arrays)) == taken, "as whoever verifies an audit finds it"
    assert [one.kind for one in attacks_of([EXCHANGE, BALL], data)] == [EXCHANGE, BALL], "what is named is taken"
