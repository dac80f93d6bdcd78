"""Models shared by the tests: trained once per worker process."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest
import torch
import typer.testing
from hypothesis import settings

from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.errors import CrushproofError, InputError, UnsafeInput
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import digits_cnn

# Examples follow from the test, so that a failure repeats; and a loaded machine fails no test for being slow.
settings.register_profile("crushproof", deadline=None, derandomize=True)
settings.load_profile("crushproof")


# The longest files: with two workers one that is begun last would leave the other worker idle.
LONGEST = (
    "test_ray.py",
    "test_kills.py",
    "test_finished_file.py",
    "test_forgeries.py",
    "test_report_browser.py",
    "test_own_model.py",
    "test_audit.py",
    "test_sequences.py",
    "test_twin.py",
    "test_findings.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then whatever runs audits, then all else."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.name, len(LONGEST)), "audit" not in item.path.parts))


gc.disable()  # until all is collected: nothing of what is loaded becomes garbage


def pytest_collection_finish() -> None:
    """What is loaded by now stays to the end: no search for garbage has to go through it again, nor begin often."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A network that a test builds without a seed is the same whatever ran before it in this process."""
    torch.default_generator.manual_seed(0)  # not torch's own, which notes its call stack four times


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two test processes share two cores; more threads would only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and a process that is killed loses nothing that it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_machine_to_measure() -> Iterator[None]:
    """Audits time their models a few times only, and say of each's memory that it is 50 MB."""
    from crushproof.audit.subject import prices
    from crushproof.audit.suite import model_cells, model_suite

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prices, "TIMED", 0.001)
        patch.setattr(model_suite, "interleaved_latency", partial(model_suite.interleaved_latency, seconds=0.0))
        patch.setattr(model_cells, "peak_resident_bytes", lambda model, shape: 50_000_000)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_command_line() -> Iterator[None]:
    """What Typer makes of the functions of a command line is the same at each call of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.testing._get_command))
        yield


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_digits()


@pytest.fixture(scope="session")
def dense(digits: Data) -> torch.nn.Module:
    """The digits CNN, about 98 % right on records it has not seen."""
    assert digits.members is not None
    job = TrainingJob.of_one(Architecture("digits_cnn", digits_cnn), digits.members, 0, torch.device("cpu"))
    return train_many(job, Training(epochs=6))[0]


def _refused(call: Callable[[], object], error: type[CrushproofError], *words: str) -> str:
    """The one paragraph of exactly this `error`, which contains all `words`; and it came quickly, in little memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CrushproofError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert caught.value.exit_code == {InputError: 2, UnsafeInput: 5}[error]
    assert message.isprintable(), "one paragraph, nothing a terminal would act on"
    assert message.endswith((".", ".)")), message
    assert ". " in message or "? " in message, "cause and cure are two sentences"
    assert len(message) < 900
    for word in words:
        assert word in message, message
    assert time.process_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    return message


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    return _refused


def _gradient(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of how far the best class is ahead of the others."""
    x = x.clone().requires_grad_()
    logits = module(x)
    best = logits.detach().argmax(1, keepdim=True)
    return torch.autograd.grad(logits.gather(1, best).sum() - logits.mean(1).sum(), x)[0]


@pytest.fixture(scope="session")
def gradient() -> Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]:
    return _gradient
