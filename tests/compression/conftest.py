"""Fewer records to ask, and networks that read sequences, trained once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sequence_cases import BUILD, CPU, TRAINING
from torch import nn

from crushproof.targets.data.data import Data
from crushproof.training.architecture import Architecture
from crushproof.training.loop import TrainingJob, train_many


@pytest.fixture(scope="session")
def digits(digits: Data) -> Data:
    """Half of the records that no model has seen: an accuracy of them is known to a point, and asked for often."""
    return replace(digits, non_members=digits.non_members.take(torch.arange(450)))


@pytest.fixture(scope="session")
def trained(digits: Data) -> dict[str, nn.Module]:
    """Frozen, as an audit hands them over."""
    assert digits.members is not None
    return {
        name: train_many(TrainingJob.of_one(Architecture(name, build), digits.members, 0, CPU), TRAINING[name])[0]
        .requires_grad_(False)
        .eval()
        for name, build in BUILD.items()
    }
