"""What a pass and a training cost on this machine, measured on a few records and scaled up."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import CrushproofError, InputError, user_error
from ...targets.model import Target, device_of, differentiable
from ...targets.seeds import derive
from ...targets.steps import pulse
from ...training.loop import Training, TrainingJob, train_group
from ...training.stacked import group_size
from ...training.trainer import BuiltinTrainer
from .audited import DenseModel

USUAL = 64  # records in a pass that is timed
TIMED = 0.05  # seconds that a pass is repeated for
STEPS = 8  # of training that are timed, at most
SECOND = 1.0  # seconds of one step, or of a second trial of a user's function, that can be waited for
MORE = 1024  # records of a second trial where the first failed


def answering(target: Target, x: Tensor) -> float:
    """CPU seconds a record of a deployed model."""
    return _per_record(lambda some: target.logits(some), x, torch.device("cpu"))


def differentiating(module: nn.Module, data: Data) -> float:
    """CPU seconds a record, forwards and backwards to the inputs."""
    device = device_of(module)

    def work(some: Tensor) -> None:
        own = some.to(device).requires_grad_(True)
        with differentiable(module):
            answer = module(own)
        torch.autograd.grad(answer.float().logsumexp(1).sum(), own, allow_unused=True)

    try:
        return _per_record(work, data.non_members.x, device)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # no gradient: attacks that need one say so in their rows; a pass costs a third of both
        with torch.no_grad():
            return 3 * _per_record(lambda some: module(some.to(device)), data.non_members.x, device)


def training_of(dense: DenseModel, members: Records, few: Records, seed: int, device: torch.device) -> float:
    """CPU seconds of one training of the dense model, which is tried on a few records; scaled up to all, so rough.

    Raises:
        InputError: it fails, or the training function gives back something else than the trained module.
        NotApplicable: no model can be started anew.
    """
    trainer = dense.trainer
    if isinstance(trainer, BuiltinTrainer):
        return _builtin(dense, trainer.training, members, few, seed, device)
    count, seconds = _trial(dense, members, few, seed, device)
    if count == len(few) and seconds * 4 > SECOND:  # the first call may have loaded half of torch
        seconds = min(seconds, _timed(partial(_fit, dense, few, seed, device), device))
    larger = min(len(members), 4 * count)
    if larger == count:
        return seconds
    roughly = seconds * len(members) / count
    if count > len(few) or seconds * larger / count > SECOND:
        return roughly
    try:
        more = members.take(_spread(len(members), larger))
        again = _timed(partial(_fit, dense, more, seed, device), device)
    except InputError:  # it takes few and, perhaps, all, which its own turn will tell
        return roughly
    slope = max((again - seconds) / (larger - count), again / larger / 4)  # what does not grow with the records
    return again + slope * (len(members) - larger)


def _builtin(
    dense: DenseModel, training: Training, members: Records, few: Records, seed: int, device: torch.device
) -> float:
    """Timed as shadow models are trained: side by side where that is how models of this size are."""
    batch = min(training.batch_size, len(members))
    steps = training.epochs * max(1, len(members) // batch)
    modules = [dense.architecture.fresh(seed).to(device)]
    modules += [copy.deepcopy(modules[0]) for _ in range(group_size(modules[0], training.batch_size, device) - 1)]

    def run(records: Records, size: int) -> float:
        """Seconds of an epoch of steps of so many records, for all the models."""
        brief = training.model_copy(update={"epochs": 1, "batch_size": size})
        subsets = [torch.arange(len(records))] * len(modules)
        return _timed(lambda: train_group(modules, records, subsets, [seed] * len(modules), brief), device)

    size = min(batch, len(few))
    one = few.take(torch.arange(size))
    try:
        first = run(one, size)
    except (CrushproofError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"The built-in training cannot train the model: {user_error(error).rstrip('.')}. Mend its forward, or name "
            "how it is trained: model.training_function in a plan, training= in Python."
        ) from None
    if first > SECOND / 4:
        first = run(one, size)  # the first call may have loaded half of torch
    done = max(2, min(STEPS, len(members) // batch, int(SECOND / 2 / first)))
    if first * batch / size > SECOND or len(members) < done * batch:
        return first / len(modules) * batch / size * steps
    several = run(members.take(_spread(len(members), done * batch)), batch)
    setting_up = min(max(0.0, (done * first - several) / (done - 1)), first) if size == batch else 0.0
    return max(several - setting_up, several / 4) / done / len(modules) * steps


def _trial(dense: DenseModel, members: Records, few: Records, seed: int, device: torch.device) -> tuple[int, float]:
    """How many records the user's function was tried on with success, and its seconds.

    A function may need more records than few: whole batches, some of each class to set aside. So one that fails is
    asked again with more, and in the end with all if its failure comes quickly.
    """
    for count in (len(few), min(MORE, len(members)), len(members)):
        pulse("trial training", 0, 1)
        records = few if count == len(few) else members.take(_spread(len(members), count))
        started = time.monotonic()
        try:
            return count, _timed(partial(_fit, dense, records, seed, device), device)
        except InputError:
            waited = (time.monotonic() - started) * len(members) / count
            if count == len(members) or (count > len(few) and waited > 5 * SECOND):
                raise
    raise AssertionError("unreachable")


def _fit(dense: DenseModel, records: Records, seed: int, device: torch.device) -> None:
    (trained,) = dense.trainer.fit(TrainingJob.of_one(dense.architecture, records, derive(seed, dense.name), device))
    if not all(bool(value.isfinite().all()) for value in trained.state_dict().values()):
        name = dense.trainer.identity.removeprefix("user:").partition("@")[0]
        raise InputError(
            f"The training function {name} returns weights that are not finite: its training diverged. Lower its "
            "learning rate, or clip its gradients."
        )


def _spread(n: int, count: int) -> Tensor:
    """Positions of `count` of n records, evenly spread."""
    return torch.arange(count) * n // count


def _per_record(work: Callable[[Tensor], object], x: Tensor, device: torch.device) -> float:
    """CPU seconds a record: the quickest of a few passes over a usual batch, of a smaller one where a pass is long."""
    first = _timed(lambda: work(x[:2]), device) / 2
    batch = x[: max(2, min(USUAL, int(TIMED / first)))]
    best, spent = first, 0.0
    while spent < TIMED:
        seconds = _timed(lambda: work(batch), device)
        best, spent = min(best, seconds / len(batch)), spent + seconds
    return best


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of this process's own work, at least a microsecond: other programs do not count, unless a GPU does it."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(clock() - started, 1e-6)
