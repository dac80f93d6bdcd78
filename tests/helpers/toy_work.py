"""Work whose results are easy to check, for the tests of engine and store: numbers that depend on their needs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crushproof.audit.engine.cells import Cell, Result, cell_key
from crushproof.audit.engine.work import CellResults
from crushproof.targets.errors import InputError, NotApplicable, Unavailable
from crushproof.targets.steps import pulse

if TYPE_CHECKING:
    from crushproof.audit.engine.driver import Executor
    from crushproof.audit.engine.progress import Progress
    from crushproof.audit.engine.schedule import Outcome


class ToyWork:
    """`width` chains of `length` cells on one common root, and a last cell that needs them all.

    Settings: `seconds` per cell, `inject` (cell name -> what goes wrong there), `seed`, `log` (a file that gets a line
    per call of `compute`), `hold` (a file: until it is there, all cells but the root wait), `pulses` (in so many naps
    are the seconds spent), `alone` (whether there is a cell that is computed alone).
    """

    def __init__(self, argument: str) -> None:
        self.settings = json.loads(argument)
        if "explode" in self.settings:
            raise InputError("the work cannot be built")
        self.list: list[Cell] = []
        self._add("root", ())
        for chain in range(self.settings.get("width", 3)):
            before = "root"
            for step in range(self.settings.get("length", 3)):
                before = self._add(f"chain-{chain}/{step}", (before,))
        ends = tuple(cell.name for cell in self.list if cell.name.endswith(f"/{self.settings.get('length', 3) - 1}"))
        self._add("last", ends)
        if self.settings.get("alone"):
            self.list.append(Cell("alone", cell_key("toy", "alone"), (), "toy", weight=1e3, alone=True))

    def _add(self, name: str, needs: tuple[str, ...]) -> str:
        keys = [cell.key for cell in self.list if cell.name in needs]
        self.list.append(Cell(name, cell_key("toy", name, self.settings.get("seed", 0), keys), needs, "toy"))
        return name

    def cells(self) -> list[Cell]:
        return self.list

    def compute(self, cell: Cell, store: CellResults) -> Result:
        if "log" in self.settings:
            with Path(self.settings["log"]).open("a") as stream:
                stream.write(cell.name + "\n")
        naps = self.settings.get("pulses", 1)
        for nap in range(naps):
            pulse("nap", nap, naps)
            time.sleep(self.settings.get("seconds", 0) / naps)
        while "hold" in self.settings and cell.name != "root" and not Path(self.settings["hold"]).exists():
            time.sleep(0.01)
        wrong = self.settings.get("inject", {}).get(cell.name)
        if wrong == "error":
            raise RuntimeError("a planted error")
        if wrong == "look around":
            print("said by a worker", flush=True)
            raise RuntimeError(f"{os.environ['OMP_NUM_THREADS']} thread, in {os.getcwd()}, input {sys.stdin.read()!r}")
        if wrong == "input":
            raise InputError("a planted input error")
        if wrong == "not applicable":
            raise NotApplicable("a planted reason")
        if wrong == "unavailable":
            raise Unavailable("a planted lack")
        if wrong == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if wrong == "die once" and not Path(self.settings["log"] + ".died").exists():
            Path(self.settings["log"] + ".died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        keys = {one.name: one.key for one in self.list}
        total = sum(float(store.get(keys[need]).arrays["value"].sum()) for need in cell.needs)
        rng = np.random.default_rng(int(cell.key[:8], 16))
        return Result(
            arrays={"value": rng.random((64, 3)) + total, "mask": np.array([True, False])},
            document={"total": total, "pid": None},
            files={"model.bin": rng.bytes(100)},
        )


def toy(argument: str) -> ToyWork:
    return ToyWork(argument)


def run_toy(out: Path, settings: dict[str, object], workers: int | str, progress: Progress | None = None) -> Outcome:
    """`workers`: so many processes, 0 for this one, or the address of a Ray cluster."""
    # Not above: a worker, which loads this file as well, runs no other work.
    from crushproof.audit.engine.driver import run
    from crushproof.audit.engine.local import Processes
    from crushproof.audit.engine.ray import RayCluster
    from crushproof.audit.engine.store import Store

    argument = json.dumps(settings)
    with Store(out) as store:
        executor: Executor | None = None
        if isinstance(workers, str):
            executor = RayCluster(store, ("toy_work:toy", argument), address=workers)
        elif workers:
            executor = Processes(store, workers, ("toy_work:toy", argument))
        return run(toy(argument), store, executor, progress=progress)


if __name__ == "__main__":
    # Whoever starts the tests in the background makes them ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_toy(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]) if sys.argv[3].isdecimal() else sys.argv[3])
