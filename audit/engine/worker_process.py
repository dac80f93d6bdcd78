"""The process of a worker: a fresh interpreter that dies with its parent from its first moment on.

It imports nothing large: a worker loads this before anything else, and until then nothing ends it when its parent dies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any

from ...targets.untrusted.sandbox import die_with

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # of a worker
# glibc gives freed memory back to the system beyond what two large arrays take, only to be handed it anew, page by page
# and cleared, for the next: up to a quarter of the processor time of a training. It is to keep 256 MiB instead.
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


class WorkerProcess(SpawnProcess):
    """Must be started by a thread that lives as long as its process is needed: on Linux it dies with that thread."""

    def start(self) -> None:
        main = sys.modules["__main__"]
        # A worker needs nothing of the script that started us, and would run it anew where it has no `__main__` guard.
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            with environment(ONE_THREAD | KEPT_MEMORY):  # read by numpy, torch and the C library when they load
                super().start()
        finally:
            sys.modules["__main__"] = main

    def __reduce__(self) -> tuple[Any, ...]:
        # In the worker this is called before the state is read, which names what is to run and so imports libraries.
        return _born, (os.getpid(),), self.__dict__


def _born(parent: int) -> WorkerProcess:
    die_with(parent)
    sys.stdout = sys.stderr  # what a training function prints is no part of what the command answers
    return WorkerProcess.__new__(WorkerProcess)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Inside the block these environment variables are set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
