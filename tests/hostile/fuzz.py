"""`make fuzz`: all hostile inputs of the lists, of which the tests try a share; then mutants with new seeds until the
time is up. What fails is printed, a mutant kept too, and the end is 1.

    PYTHONPATH=tests/helpers python tests/hostile/fuzz.py [--minutes 10] [--seed N] [--keep fuzz-failures]

Further than the tests go: what a reader takes is used as an audit would use it (a model is asked, weighed and held
against the good one, an audit is judged and drawn), and plans are changed too.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import secrets
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import hostile_audits
import hostile_commands
import hostile_data
import hostile_files
import hostile_models
import hostile_plans
import hostile_signatures
import hostile_weights
import numpy as np
import torch
import yaml
from hostile_case import faults_of_all
from hostile_child import forked
from hostile_models import good, opened
from hostile_mutants import SORTS, Random, swapped

import crushproof
from crushproof.audit.engine.cells import DamagedError
from crushproof.audit.plan.plan import check_techniques, load_plan
from crushproof.audit.plan.sections import InterfacePlan
from crushproof.audit.report.html import to_html
from crushproof.audit.report.terminal import print_audit
from crushproof.audit.schema.read import read_audit
from crushproof.audit.subject.finished_file import open_file
from crushproof.audit.suite.model_cells import take_file
from crushproof.audit.verdict.fitting import policy_of
from crushproof.audit.verdict.judging import rejudge
from crushproof.compression.lineage.lineage import UNDECLARED, check_lineage
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import CrushproofError
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.untrusted import model_file
from crushproof.targets.untrusted.model_file import check_onnx, read_model_file

LISTS = (
    hostile_files,
    hostile_plans,
    hostile_commands,
    hostile_data,
    hostile_weights,
    hostile_models,
    hostile_audits,
    hostile_signatures,
)
SECONDS, MEMORY = 10.0, 1.5 * 2**20  # of processor time, and KiB more than before, for one mutant


@cache
def _records() -> Data:
    """Records that the good model is right on, so that a mutant of it is above chance."""
    x = torch.from_numpy(np.random.default_rng(3).random((300, 4)).astype(np.float32))
    logits = OnnxTarget(good().SerializeToString()).logits(x)
    y = (logits - logits.median(0).values).argmax(1)
    return Data("records", None, Records(x, y), Bounds.of(0, 1), ("0", "1", "2"))


def _audited(path: Path) -> None:
    """As the cells of a finished file use it."""
    file = read_model_file(path)
    found = open_file(path.name, path.parent, InterfacePlan(), _records(), None, file)
    take_file(found, _records(), 0)
    assert file.checked is not None
    check_lineage(check_onnx(good().SerializeToString()), file.checked, UNDECLARED, _records().attacker.x[:50].numpy())


def _judged(path: Path) -> None:
    audit = read_audit(path)
    audit = rejudge(audit, policy_of(audit))
    with redirect_stdout(io.StringIO()):
        print_audit(audit)
    to_html(audit)
    audit.model_dump_json(by_alias=True)


def _plan(rng: Random) -> bytes:
    return yaml.safe_dump(swapped(hostile_plans.PLAN, rng), sort_keys=False, allow_unicode=True).encode(
        "utf-8", "surrogatepass"
    )


def _read_plan(path: Path) -> None:
    plan = load_plan(path)
    check_techniques(plan)
    assert plan.digest


Reader = Callable[[Path], object]
EVERY: dict[str, tuple[str, Callable[[Random], bytes], Reader]] = {
    **SORTS,
    "onnx": ("mutant.onnx", SORTS["onnx"][1], _audited),
    "tflite": ("mutant.tflite", SORTS["tflite"][1], opened),
    "audit": ("audit.json", SORTS["audit"][1], _judged),
    "plan": ("mutant.yaml", _plan, _read_plan),
}


def meet(sort: str, seed: int, folder: Path) -> tuple[str, bytes, str]:
    """How a mutant ended (taken, refused, failed), the mutant, and the traceback of a failure."""
    name, make, read = EVERY[sort]
    content = make(random.Random(seed)) or b"\0"
    path = folder / name
    path.write_bytes(content)
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(path)
        ended, trace = "taken", ""
    except CrushproofError as error:
        known = error.exit_code in (2, 3, 5) and str(error)
        ended, trace = ("refused", "") if known else ("failed", traceback.format_exc())
    except DamagedError:
        ended, trace = "refused", ""
    except Exception:  # what this looks for
        ended, trace = "failed", traceback.format_exc()
    took = time.process_time() - start
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    if took > SECONDS or more > MEMORY:
        ended, trace = "failed", f"{took:.1f} s of processor time, {more // 1024} MiB\n{trace}"
    return ended, content, trace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of the first mutant; default: new")
    parser.add_argument("--sort", choices=EVERY, help="only these")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failing mutants go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts = Counter[tuple[str, str]]()
    print(f"seeds from {given.seed} on, {given.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory() as folder, forked(Path(crushproof.__file__).parent) as run:
        model_file.run_limited = run
        for module in LISTS if given.sort is None else ():
            (Path(folder) / module.__name__).mkdir()
            found = faults_of_all(module.cases(), Path(folder) / module.__name__)
            counts[module.__name__, "failed"] += len(found)
            print(*(f"FAILED: {fault}" for fault in found), f"{module.__name__}: done", sep="\n", flush=True)
        end = time.monotonic() + 60 * given.minutes
        for seed in range(given.seed, given.seed + 10**9):
            if time.monotonic() > end:
                break
            sort = given.sort or list(EVERY)[seed % len(EVERY)]
            ended, content, trace = meet(sort, seed, Path(folder))
            counts[sort, ended] += 1
            if ended == "failed":
                given.keep.mkdir(exist_ok=True)
                kept = given.keep / f"{sort}-{seed}{Path(EVERY[sort][0]).suffix}"
                kept.write_bytes(content)
                print(f"FAILED: --sort {sort} --seed {seed}, kept as {kept}\n{trace[-1500:]}", flush=True)
    for (sort, ended), count in sorted(counts.items()):
        print(f"{sort}: {count} {ended}")
    return int(any(count for (_, ended), count in counts.items() if ended == "failed"))


if __name__ == "__main__":
    sys.exit(main())
