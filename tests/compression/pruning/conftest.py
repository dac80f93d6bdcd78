"""Records to prune with."""

from __future__ import annotations

import pytest
import torch

from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Records


@pytest.fixture(scope="session")
def members(digits: Data) -> Records:
    assert digits.members is not None
    return digits.members


@pytest.fixture(scope="session")
def few(members: Records) -> Records:
    return members.take(torch.arange(96))
