"""The built-in audit: wall and CPU seconds by phase, peak memory, and how they grow when its sizes double.

The whole audit runs once (its targets: 240 s on two cores, 3 GB). Growth is measured on a smaller audit, against which
one size at a time is doubled.
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contract import Row, arguments, publish

RUN = """
import json, sys, time
from pathlib import Path
from crushproof.audit.plan.plan import Plan
from crushproof.audit.run import run_audit
if __name__ == "__main__":
    plan = Plan.model_validate(json.loads(sys.argv[1]))
    started = time.monotonic()
    audit = run_audit(plan, Path(), Path(sys.argv[2]))
    environment = audit.environment
    print(json.dumps({"wall": time.monotonic() - started, "cpu": environment.seconds, "peak": environment.peak_bytes}))
"""


def measure(plan: dict[str, Any]) -> dict[str, Any]:
    """One audit in a fresh process and an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(RUN)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(plan), str(Path(folder) / "out")],
            check=True,
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    result["total_cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result


def help_seconds() -> float:
    """Wall seconds of `crushproof --help`, median of five."""
    measured = []
    for _ in range(5):
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "crushproof", "--help"], check=True, capture_output=True)
        measured.append(time.monotonic() - started)
    return statistics.median(measured)


def small(records: int = 100, candidates: int = 2, shadows: int = 16) -> dict[str, Any]:
    """A small audit of the built-in model; candidates are copies of int8 and int4 under other calibration sizes."""
    from crushproof.audit.plan.builtin import PLAN

    plan = copy.deepcopy(PLAN)
    plan["candidates"] = {
        f"quantized-{position}": {
            "kind": "quantize",
            "weight_bits": (8, 4)[position % 2],
            "calibration_records": 200 + position,
        }
        for position in range(candidates)
    }
    plan["attacks"] = [{"kind": "evasion", "records": records}, "membership", "extraction"]
    plan["shadows"] = {"training_free": shadows, "trained": 16}
    return plan


def main() -> None:
    options = arguments(__doc__ or "")
    from crushproof.audit.plan.builtin import PLAN

    whole = measure(PLAN)
    rows = [
        Row("built-in audit", "wall, all cores", whole["wall"], "s", target=240.0),
        Row("built-in audit", "CPU, all processes", whole["total_cpu"], "s"),
        Row("built-in audit", "peak memory", whole["peak"] / 1e9, "GB", target=3.0),
    ]
    rows.append(Row("crushproof --help", "wall, median of 5", help_seconds(), "s", target=0.4))
    rows += [Row("built-in audit", f"CPU: {phase}", seconds, "s") for phase, seconds in sorted(whole["cpu"].items())]
    base = measure(small())
    doubled = {
        "evasion records 100 -> 200": measure(small(records=200)),
        "candidates 2 -> 4": measure(small(candidates=4)),
        "shadows 16 -> 32": measure(small(shadows=32)),
    }
    rows.append(Row("small audit", "CPU, all processes", base["total_cpu"], "s"))
    for setting, result in doubled.items():
        rows.append(Row(f"doubled: {setting}", "CPU", result["total_cpu"], "s", peer=base["total_cpu"]))
        rows.append(Row(f"doubled: {setting}", "peak memory", result["peak"] / 1e9, "GB", peer=base["peak"] / 1e9))
    publish(rows, options.json)


if __name__ == "__main__":
    main()
