"""Whether an audit of a model of one's own reaches a verdict, and how soon it says what that takes.

    python benchmarks/verdict.py --data DIR [--only NAME] [--budget '15 min'] [--json FILE]

Each target is what a user would bring: plan.yaml, my_model.py with its own training function, data.npz and trained
weights, in a folder of its own. `crushproof audit plan.yaml` runs in a child process; every line it prints is stamped.
One target at a time, on all cores; the machine should be quiet. `large` is the net of large.py, with rows of its own.
Targets, by the clock: the first line within 3 s, no silence above 30 s, the forecast within 60 s and within a factor of
2 of what was left, and a verdict within the budget.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import yaml
from contract import Row, parser, publish, resident
from verdict_targets import TARGETS, Target, write

FORECAST = re.compile(r"\bforecast:.*?about (\d+(?:\.\d+)?) (s|min|h)\b")
SECONDS = {"s": 1, "min": 60, "h": 3600}
DECIDED = ("pass", "fail")
LARGE = "large"


@dataclass(frozen=True)
class Line:
    seconds: float
    text: str


@dataclass(frozen=True)
class Told:
    """What a run printed and what it cost: seconds by the clock since the command was started."""

    errors: list[Line]
    output: str
    exit_code: int
    wall: float
    cpu: float
    largest_process: int  # bytes
    family: int  # bytes of all its processes together, as seen every five seconds; what several share counts once


def run(plan: Path, out: Path) -> Told:
    """The real command on a plan, in a process of its own; its standard error is read line by line."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "crushproof", "audit", str(plan), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[Line] = []
    output: list[str] = []

    def stamp(stream: IO[str]) -> None:
        errors.extend(Line(time.monotonic() - started, text.rstrip("\n")) for text in stream)

    readers = [
        threading.Thread(target=stamp, args=(process.stderr,)),
        threading.Thread(target=lambda stream: output.append(stream.read()), args=(process.stdout,)),
    ]
    for reader in readers:
        reader.start()
    family = 0
    while any(reader.is_alive() for reader in readers):
        family = max(family, sum(resident(process.pid)))
        readers[0].join(5.0)
    _, status, used = os.wait4(process.pid, 0)  # of the child and of its own children
    process.returncode = os.waitstatus_to_exitcode(status)
    return Told(
        errors,
        "".join(output),
        process.returncode,
        time.monotonic() - started,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
        family,
    )


def forecast_of(lines: list[Line]) -> tuple[float, float] | None:
    """When the first forecast was printed, and how many seconds it announced."""
    for line in lines:
        found = FORECAST.search(line.text)
        if found is not None:
            return line.seconds, float(found[1]) * SECONDS[found[2]]
    return None


def judge(told: Told, audit: dict[str, Any] | None) -> dict[str, Any]:
    """What is known of one run, as JSON."""
    announced = forecast_of(told.errors)
    stamps = [0.0, *(line.seconds for line in told.errors), told.wall]
    document: dict[str, Any] = {
        "exit_code": told.exit_code,
        "first_line": told.errors[0].seconds if told.errors else None,
        "longest_silence": max(later - earlier for earlier, later in pairwise(stamps)),
        "forecast_at": None if announced is None else announced[0],
        "forecast": None if announced is None else announced[1],
        "forecast_over_real": None if announced is None else announced[1] / max(told.wall - announced[0], 1e-9),
        "wall": told.wall,
        "cpu": told.cpu,
        "largest_process": told.largest_process,
        "family": told.family,
        "lines": [asdict(line) for line in told.errors],
        "output": told.output,
    }
    if audit is None:
        return document
    gates = audit["policy"]
    environment = audit["environment"]
    return document | {
        "verdict": audit["verdict"],
        "deciding": audit["deciding"],
        "candidates": {row["name"]: row["verdict"] for row in audit["candidates"] if row["role"] == "candidate"},
        "gates": len(gates),
        "open": [gate for gate in gates if gate["verdict"] not in DECIDED],
        "peak_bytes": environment["peak_bytes"],
        "seconds": environment["seconds"],
    }


def rows_of(target: Target, found: dict[str, Any], budget: float) -> list[Row]:
    def row(what: str, figure: float | None, unit: str, limit: float | None = None) -> Row:
        return Row(f"{target.name}: {what}", target.setting, figure, unit, target=limit)

    ratio = found["forecast_over_real"]
    rows = [
        row("first line", found["first_line"], "s", 3.0),
        row("longest silence", found["longest_silence"], "s", 30.0),
        row("forecast printed", found["forecast_at"], "s", 60.0),
        row("forecast off by a factor of", None if ratio is None else max(ratio, 1 / ratio), "", 2.0),
        row("to the verdict", found["wall"], "s", budget),
        row("CPU, all processes", found["cpu"], "s"),
        row("peak memory, largest process", found["largest_process"] / 1e9, "GB"),
        row("peak memory, all processes", found["family"] / 1e9, "GB", 4.0),
    ]
    if "open" in found:
        undecided = [gate for gate in found["open"] if found["candidates"].get(gate["candidate"]) not in DECIDED]
        rows.append(row(f"gates open, of {found['gates']}", float(len(found["open"])), ""))
        rows.append(row("gates that leave a candidate open", float(len(undecided)), "", 0.0))
        rows += [row(f"CPU: {phase}", seconds, "s") for phase, seconds in sorted(found["seconds"].items())]
    return rows


def large() -> tuple[list[Row], dict[str, Any]]:
    """The rows of large.py, the net for pictures of 224 x 224, and its tables."""
    with tempfile.TemporaryDirectory() as name:
        written = Path(name) / "large.json"
        script = Path(__file__).with_name("large.py")
        subprocess.run([sys.executable, str(script), "--json", str(written)], check=True, stdout=subprocess.DEVNULL)
        document = json.loads(written.read_text())
    rows = [{key: value for key, value in row.items() if key not in ("ratio", "met")} for row in document["rows"]]
    return [Row(**{**row, "name": f"{LARGE}: {row['name']}"}) for row in rows], document["tables"]


def main() -> None:
    options_of = parser(__doc__ or "")
    options_of.add_argument("--only", action="append", choices=[*(target.name for target in TARGETS), LARGE])
    options_of.add_argument("--budget", default="15 min", help="of each audit; none: the plan names none")
    options_of.add_argument("--set", action="append", default=[], metavar="YAML", help="changes of every plan")
    options_of.add_argument("--keep", type=Path, default=None, help="keep the targets' folders here")
    options = options_of.parse_args()
    if options.data is None:
        options_of.error("--data names the folder with the public data sets")
    changes: dict[str, Any] = {} if options.budget == "none" else {"budget": options.budget}
    for text in options.set:
        changes |= yaml.safe_load(text)
    number, unit = options.budget.split() if options.budget != "none" else ("inf", "s")
    rows, tables = [], {}
    for target in TARGETS:
        if options.only is not None and target.name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) if options.keep is None else options.keep / target.name
            folder.mkdir(parents=True, exist_ok=True)
            own = changes if target.limit is None else {key: changes[key] for key in changes if key != "budget"}
            plan = write(target, options.data, folder, own)
            told = run(plan, folder / "out")
            written = folder / "out" / "audit.json"
            audit = json.loads(written.read_text()) if written.exists() else None
            found = judge(told, audit)
        tables[target.name] = found
        rows += rows_of(target, found, target.limit or float(number) * SECONDS[unit])
        print(f"{target.name}: {found.get('verdict', 'no verdict')} (exit code {told.exit_code}, {told.wall:.0f} s)")
        for sentence in found.get("deciding", [line.text for line in told.errors[-3:]]):
            print(f"  {sentence}")
        for gate in found.get("open", []):
            print(f"  open: {gate['sentence']}")
        sys.stdout.flush()
    if options.only is None or LARGE in options.only:
        found_rows, tables[LARGE] = large()
        rows += found_rows
    publish(rows, options.json, tables)


if __name__ == "__main__":
    main()
