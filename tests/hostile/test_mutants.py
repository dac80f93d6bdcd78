"""2,000 mutants, the same in every run: each is taken or refused in a sentence. `make fuzz` goes on with new ones."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_child import shared
from hostile_mutants import SORTS, meet

import crushproof
from crushproof.targets.untrusted import model_file

COUNTS = {"onnx": 60, "tflite": 60, "npz": 300, "safetensors": 300, "audit": 80, "cells": 1200}


@pytest.fixture(scope="module", autouse=True)
def _quick_sandbox() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "run_limited", shared(Path(crushproof.__file__).parent))
        yield


@pytest.mark.parametrize("sort", COUNTS)
def test_a_mutant_is_taken_or_refused(sort: str, tmp_path: Path) -> None:
    found, slowest = [], 0.0
    for seed in range(COUNTS[sort]):
        content, start = SORTS[sort][1](random.Random(seed)), time.process_time()
        fault = meet(sort, content, tmp_path)
        slowest = max(slowest, time.process_time() - start)
        found += [] if fault is None else [f"seed {seed}: {type(fault).__name__}: {fault}"[:300]]
    assert found == []
    assert slowest < 10
    assert list(tmp_path.iterdir()) == []


def test_there_are_2000() -> None:
    assert sum(COUNTS.values()) >= 2000
    assert set(COUNTS) == set(SORTS)
