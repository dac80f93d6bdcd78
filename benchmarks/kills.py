"""What a kill costs: an audit is killed at ten random moments while its shadow models are trained.

The training function is the user's own, of which nothing is known but that it returns a model. Each training says when
it begins and when it ends; one that began twice was repeated. At most one a kill and worker may be.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from contract import Row, arguments, print_table, publish

KILLS, SHADOWS = 10, 48
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
    say("began", seed)
    module = fit(module, Records(x, y), Training(epochs=1), seed=seed)
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


def killed(folder: Path, workers: int, kills: int, moments: random.Random) -> list[dict[str, Any]]:
    """A row per kill, of an audit that then runs to its end."""
    (folder / "killed_model.py").write_text(MODEL)
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    command = [sys.executable, "-m", "crushproof", "audit", "plan.yaml", "--out", "out", "--workers", str(workers)]
    rows: list[dict[str, Any]] = []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    while len(rows) < kills:
        wanted = begun(folder) + moments.randint(2, 5)  # the first of all is that of the dense model
        process = subprocess.Popen(command, cwd=folder, start_new_session=True, **quiet)
        while process.poll() is None and begun(folder) < wanted:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 2))
        if process.poll() is not None:
            raise SystemExit(f"the audit ended after {len(rows)} kills: raise SHADOWS")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.5)  # the workers die with it
        said = trainings(folder)
        rows.append({"kill": len(rows) + 1, **standing(said)})
    subprocess.run(command, cwd=folder, check=False, **quiet)
    if not (folder / "out" / "audit.json").is_file():
        raise SystemExit("the audit did not end")
    rows.append({"kill": "end", **standing(trainings(folder))})
    for row, after in pairwise(rows):
        row["repeated"] = after["begun anew"] - row["begun anew"]
    return rows


def standing(said: list[tuple[str, int]]) -> dict[str, int]:
    began = Counter(seed for event, seed in said if event == "began")
    ended = {seed for event, seed in said if event == "ended"}
    return {"trained": len(ended), "under way": len(began.keys() - ended), "begun anew": began.total() - len(began)}


def main() -> None:
    options = arguments(__doc__ or "")
    rows, tables = [], {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            table = killed(Path(folder), workers, KILLS, random.Random(workers))
        print(f"{workers} worker{'s' * (workers > 1)}")
        header = ["kill", "trained", "under way", "begun anew", "repeated"]
        print_table([header, *([str(row.get(name, "")) for name in header] for row in table)])
        tables[f"{workers} workers"] = table
        setting = f"{KILLS} kills, {workers} workers, {SHADOWS} shadows and a dense model"
        most = max(row["repeated"] for row in table[:-1])
        rows.append(Row("trainings repeated after a kill, at most", setting, most, "trainings", target=workers))
    publish(rows, options.json, tables)


if __name__ == "__main__":
    main()
