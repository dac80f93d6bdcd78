"""What every benchmark here shares: its command line, its rows, the table and the JSON.

    python benchmarks/NAME.py [--data DIR] [--json FILE]

A row compares our figure with a peer's (or stands alone), in one unit. `target` is the figure asked for, and `met`
follows from it; rows that only inform have none. Peers and ours alternate, CPU time, one thread unless stated, median
of at least three.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Args:
        ours: None where it was not measured; `setting` says why.
        ratio: ours / peer (so below 1 is better for times and sizes); None without a peer.
        target: what `value` must reach: the ratio where there is a peer, else ours.
        better: whether `value` must be at most or at least the target.
        apart: 95 % interval of ours - peer, paired, where equality is asked (a target of 1): one that holds 0 is a tie.
    """

    name: str
    setting: str
    ours: float | None
    unit: str
    peer: float | None = None
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    apart: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None or self.ours is None else self.ours / self.peer

    @property
    def met(self) -> bool | Literal["tie"] | None:
        value = self.ours if self.ratio is None else self.ratio
        if self.target is None or value is None:
            return None
        if self.apart is not None and self.apart[0] <= 0 <= self.apart[1]:
            return "tie"
        return value <= self.target if self.better == "lower" else value >= self.target


def parser(description: str) -> argparse.ArgumentParser:
    """The command line every benchmark has; one may add to it."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--data", type=Path, default=None, help="folder with the public data sets (README, Benchmarks)"
    )
    options.add_argument("--json", type=Path, default=None, help="write the rows here")
    return options


def arguments(description: str) -> argparse.Namespace:
    return parser(description).parse_args()


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    before = time.process_time()
    work()
    return time.process_time() - before


def alternate(*works: Callable[[], object], rounds: int = 3) -> list[float]:
    """Median CPU seconds of each work, taken in turns so that a slow minute of the machine hits all alike."""
    measured: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for position, work in enumerate(works):
            measured[position].append(cpu_seconds(work))
    return [statistics.median(times) for times in measured]


def resident(pid: int) -> list[int]:
    """Bytes that a process and each of its descendants hold in memory; what several of them share is divided."""
    import psutil

    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(pid)
        for process in (family, *family.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(process.memory_full_info().pss)
    return found


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Cells in columns; the first line is the header."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def publish(rows: list[Row], json_file: Path | None, tables: Mapping[str, Any] | None = None) -> None:
    """Prints the rows and writes the JSON; `tables` are JSON values of a benchmark's own, printed by itself."""
    header = ("name", "setting", "ours", "peer", "ratio", "unit", "target", "met")
    print_table([header, *(_cells(row) for row in rows)])
    if json_file is not None:
        document = {
            "machine": {"system": platform.platform(), "processor": _processor(), "python": platform.python_version()},
            "rows": [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows],
            **({} if tables is None else {"tables": dict(tables)}),
        }
        json_file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

    met = {None: "", True: "yes", False: "NO", "tie": "tie"}[row.met]
    if row.apart is not None:
        met += f" [{row.apart[0]:+.2g}, {row.apart[1]:+.2g}]"
    return (
        row.name,
        row.setting,
        number(row.ours),
        number(row.peer),
        number(row.ratio),
        row.unit,
        number(row.target),
        met,
    )


def _processor() -> str:
    from crushproof.audit.suite.environment import processor

    return processor()
