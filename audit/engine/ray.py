"""Cells on a Ray cluster. The nodes need no folder in common: results travel as bytes, both ways, and are checked.

A cluster is trusted like the plan: whoever may submit work to it runs code on its nodes.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...targets.errors import InputError
from ...targets.form import Form
from ...targets.quiet import SWITCHES
from ...targets.steps import Arrays, Check
from .cells import Cell, DamagedError, Result, pack, unpack
from .hearing import STARTED, Tell, nobody
from .store import Store
from .work import Attempt, Spawn, attempt_in_worker
from .worker_process import KEPT_MEMORY, ONE_THREAD

Parts = dict[str, bytes]


class RayCluster:
    """Computes cells on the nodes of a running cluster, one core each.

    Args:
        spawn: how a worker builds its own work, on whichever node it is.
        address: of the cluster, as `ray.init` takes it.
        gpus: that each cell asks for; with 0 it sees none.
    """

    def __init__(self, store: Store, spawn: Spawn, *, address: str = "auto", gpus: int = 0) -> None:
        self.store, self.spawn, self.address, self.gpus = store, spawn, address, gpus
        self._busy: dict[Any, tuple[Cell, Any]] = {}  # reference to the attempt -> cell, reference to its parts
        self._sent: dict[str, Any] = {}  # references to results that cells read, by key

    def __enter__(self) -> RayCluster:
        try:
            import ray
        except ImportError:
            raise InputError(
                "engine: {kind: ray} needs Ray: pip install 'crushproof[ray]', or write engine: {kind: local}."
            ) from None
        self._ray: Any = ray  # much of it is not annotated
        self._ours = not ray.is_initialized()
        if self._ours:
            self._connect()
        if self._ray.cluster_resources().get("GPU", 0) < self.gpus:
            self.__exit__()
            raise InputError("The plan's device is cuda, and no node of the Ray cluster has a GPU. Write device: cpu.")
        variables = SWITCHES | ONE_THREAD | KEPT_MEMORY | ({} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""})
        self._compute: Any = ray.remote(_compute).options(
            num_cpus=1, num_gpus=self.gpus, num_returns=2, max_retries=0, runtime_env={"env_vars": variables}
        )
        return self

    def _connect(self) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if self.address != "auto":  # where nobody listens Ray tries for minutes
                host, _, port = self.address.rpartition(":")
                if not 0 < int(port) < 2**16:  # the system would take the port of its last 16 bits
                    raise ValueError(f"there is no port {port}")
                socket.create_connection((host, int(port)), timeout=10).close()
            self._ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, OverflowError, RuntimeError) as error:
            raise InputError(
                f"There is no Ray cluster at {self.address!r} ({str(error).splitlines()[0][:200]}). Start one on this "
                "machine with `ray start --head`, or write engine: {kind: local}."
            ) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray puts its own in its place

    def __exit__(self, *_: object) -> None:
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        self._busy.clear()
        self._sent.clear()
        if self._ours:
            self._ray.shutdown()

    @property
    def slots(self) -> int:
        """As many as the cluster has cores (or GPUs, when cells ask for them), at the moment."""
        there = self._ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) / self.gpus if self.gpus else there.get("CPU", 0)))

    def submit(self, cell: Cell, needs: Sequence[str], tell: Tell = nobody) -> None:
        """See `Executor`; a node says nothing of a cell before it ends."""
        tell(STARTED)
        for key in needs:
            if key not in self._sent:
                self._sent[key] = self._ray.put(self.store.parts(key))
        reference, parts = self._compute.remote(
            replace(cell, form=None), self.spawn, list(needs), *[self._sent[key] for key in needs]
        )
        self._busy[reference] = (cell, parts)
        self.store.log("started", cell)

    def wait(self, seconds: float | None = None) -> list[tuple[Cell, Attempt]]:
        done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=seconds)
        return [self._heard(reference) for reference in done]

    def _heard(self, reference: Any) -> tuple[Cell, Attempt]:
        cell, parts = self._busy.pop(reference)
        errors = self._ray.exceptions
        try:
            ended: Attempt = self._ray.get(reference)
            if ended.event == "finished":
                self.store.receive(cell.key, self._ray.get(parts))
                self.store.log("finished", cell, seconds=ended.seconds, worker=ended.worker)
        except errors.RayTaskError as error:  # our own function raises nothing: it could not even start
            why = f"A node cannot compute cells ({_first(error)}). Install crushproof there, in the versions of here."
            return cell, Attempt("stop", why=why, error=InputError.__name__)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return cell, Attempt("died", why=f"ended early ({_first(error)})", trace="see the logs of Ray on its node")
        except (errors.RayError, DamagedError) as error:
            return cell, Attempt("lost", why=_first(error))
        if ended.event == "stop":
            return cell, replace(ended, why=f"On {ended.worker}: {ended.why}")
        return cell, ended


def _first(error: Exception) -> str:
    """The first sentence of an error: Ray's go on about where to look for more."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].partition('. ')[0]}"


def _compute(cell: Cell, spawn: Spawn, needs: list[str], *parts: Parts) -> tuple[Attempt, Parts | None]:
    """On a node: what became of the cell, and its result."""
    results = _InMemory(dict(zip(needs, parts, strict=True)))
    ended = attempt_in_worker(spawn, cell, results)
    return ended, results.parts.get(cell.key)


class _InMemory:
    """The results that one cell reads and leaves; nothing of them is written to the node's disk."""

    def __init__(self, parts: dict[str, Parts]) -> None:
        self.parts = parts

    def get(self, key: str) -> Result:
        return unpack(self.parts[key])

    def put(self, key: str, result: Result) -> None:
        self.parts[key] = pack(result)

    def expect(self, forms: Mapping[str, Form]) -> None:
        """Nothing: the store that they come from and go to checks them."""

    def part(self, owner: str, name: str, check: Check) -> Arrays | None:
        """No part is kept: a cell whose node goes away begins anew on another one."""

    def keep(self, owner: str, name: str, arrays: Arrays) -> None: ...

    def drop_parts(self, owner: str) -> None: ...

    def log(self, event: str, cell: Cell, **facts: float | str) -> None:
        """The journal is written where the store is."""
