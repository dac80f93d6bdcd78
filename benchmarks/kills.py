"""What a kill costs: an audit with two workers is killed at twenty random moments, from its first second on.

The training function is the user's own, of which nothing is known but that it returns a model. Each training says when
it begins and when it ends; one that began in a run and once more after that was killed was repeated. At most one a kill
and worker may be. (Counted by the run that repeats them there may be more: what one kill cut short may wait for several
runs.) The findings are those of an audit that nobody killed; no process outlives its audit (a zombie that nobody
buries, as in a container without an init, is none), and nothing is left in the temporary folder, the home or the
store's folder for what is half written.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml
from contract import Row, arguments, print_table, publish

KILLS, WORKERS, SHADOWS = 20, 2, 96
MODEL = """
import json, time
from pathlib import Path
from torch import nn
from crushproof.targets.data.records import Records
from crushproof.training.loop import Training, train as fit
from crushproof.training.networks import digits_cnn as build

LOG = Path(__file__).parent / "trainings.jsonl"

def say(event, seed):
    with LOG.open("a") as log:
        log.write(json.dumps([event, seed]) + "\\n")

def train(module, x, y, seed):
    whole = len(x) > 400  # and not the trial on a few records that every run begins with until its plan is resolved
    if whole:
        say("began", seed)
    module = fit(module, Records(x, y), Training(epochs=1), seed=seed)
    if whole:
        say("ended", seed)
    return module
"""
PLAN: dict[str, Any] = {
    "name": "killed",
    "data": {"kind": "digits"},
    "model": {"architecture": "killed_model:build", "training_function": "killed_model:train"},
    "candidates": {"int8": "int8"},
    "attacks": ["membership"],
    "shadows": {"training_free": SHADOWS, "trained": 2},
}


def trainings(folder: Path) -> list[tuple[str, int]]:
    log = folder / "trainings.jsonl"
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def begun(folder: Path) -> int:
    return sum(event == "began" for event, _ in trainings(folder))


class Place:
    """A folder with the plan in it, a home and a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.temporary = folder / "plan", folder / "home", folder / "temporary"
        for each in (self.folder, self.home, self.temporary):
            each.mkdir(parents=True)
        (self.folder / "killed_model.py").write_text(MODEL)
        (self.folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*(sys.executable, "-m", "crushproof", "audit", "plan.yaml"), "--out", "out", "--workers", str(WORKERS)],
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.home), "TMPDIR": str(self.temporary)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def findings(self) -> dict[str, Any]:
        audit = json.loads((self.folder / "out" / "audit.json").read_text())
        del audit["environment"]  # times and host facts
        return dict(audit)

    def litter(self) -> list[str]:
        half = self.folder / "out" / "evidence" / "temporary"
        return [str(path) for each in (self.home, self.temporary, half) for path in each.rglob("*")]


def killed(place: Place, moments: random.Random) -> list[dict[str, Any]]:
    """A row per kill, of an audit that then runs to its end."""
    rows: list[dict[str, Any]] = []
    ends: list[int] = []  # how long the log of trainings was at each kill
    while len(rows) < KILLS:
        wanted = begun(place.folder) + moments.randint(0, 5)
        process = place.start()
        while process.poll() is None and begun(place.folder) < wanted:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 3))
        if process.poll() is not None:
            raise SystemExit(f"the audit ended after {len(rows)} kills: raise SHADOWS")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        rows.append({"kill": len(rows) + 1, "orphans": outliving(process.pid), **standing(trainings(place.folder))})
        ends.append(len(trainings(place.folder)))
    process = place.start()
    process.wait()
    rows.append({"kill": "end", "orphans": outliving(process.pid), **standing(trainings(place.folder))})
    said = trainings(place.folder)
    for row, (first, last) in zip(rows, pairwise([0, *ends]), strict=False):  # the last row is no kill
        row["repeated"] = len(seeds_begun(said[first:last]) & seeds_begun(said[last:]))
    return rows


def seeds_begun(said: list[tuple[str, int]]) -> set[int]:
    return {seed for event, seed in said if event == "began"}


def outliving(session: int) -> int:
    """How many processes of a session whose first one is dead are left after ten seconds at most."""
    deadline = time.monotonic() + 10
    while (left := alive_in(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def alive_in(session: int) -> int:
    """How many processes of the session are left."""
    found = 0
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            found += os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    return found


def standing(said: list[tuple[str, int]]) -> dict[str, int]:
    began = Counter(seed for event, seed in said if event == "began")
    ended = {seed for event, seed in said if event == "ended"}
    return {"trained": len(ended), "under way": len(began.keys() - ended), "begun anew": began.total() - len(began)}


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        quiet, place = Place(Path(folder, "quiet")), Place(Path(folder, "killed"))
        quiet.start().wait()
        table = killed(place, random.Random(0))
        differing = int(quiet.findings() != place.findings())
        litter = [*quiet.litter(), *place.litter()]
    header = ["kill", "trained", "under way", "begun anew", "repeated", "orphans"]
    print_table([header, *([str(row.get(name, "")) for name in header] for row in table)])
    print(*litter, sep="\n")
    setting = f"{KILLS} kills, {WORKERS} workers, {SHADOWS} shadows and a dense model"
    most = max(row["repeated"] for row in table[:-1])
    rows = [
        Row("trainings repeated after a kill, at most", setting, most, "trainings", target=WORKERS),
        Row("audits whose findings differ from those of one not killed", setting, differing, "audits", target=0),
        Row(
            "processes that outlived their audit", setting, sum(row["orphans"] for row in table), "processes", target=0
        ),
        Row("files left in temporary folder, home and store", setting, len(litter), "files", target=0),
    ]
    publish(rows, options.json, {f"{WORKERS} workers": table})


if __name__ == "__main__":
    main()
