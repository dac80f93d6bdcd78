"""Who computed which cell, and how long it took: a journal of lines and an index of times. No result is read here.

OUT/evidence/journal.jsonl       who started and finished which cell, and when
OUT/evidence/index.sqlite        times by cell, for people, charts and expectations; rebuilt when it is lost
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...targets.serving.json_text import canonical_json
from ..writing import writing
from .cells import Cell
from .on_disk import only_a_file

TABLE = "CREATE TABLE cells (key TEXT PRIMARY KEY, name TEXT, phase TEXT, seconds REAL, at TEXT)"
LARGEST = 2**28  # bytes of the journal or the index: beyond it nobody's work wrote them
LONGEST = 1e9  # seconds that a cell can have taken
ODD = f"typeof(key) || typeof(phase) || typeof(seconds) != 'texttextreal' OR NOT seconds BETWEEN 0 AND {LONGEST}"


class Ledger:
    """Journal and times in the folder `private`, which exists by the time they are used; `folder` is for errors."""

    def __init__(self, folder: Path, private: Path) -> None:
        self.folder, self.private = folder, private
        self._journal, self._index = private / "journal.jsonl", private / "index.sqlite"

    def log(self, event: str, cell: Cell, **facts: float | str) -> None:
        """Appends a line to the journal: `started`, `finished` (with `seconds`), `failed`."""
        line = {"event": event, "key": cell.key, "name": cell.name, "phase": cell.phase, **whoami(), **facts}
        with writing(self.folder):
            self._append(canonical_json(line) + b"\n")

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, line)  # one call: lines of several processes do not mix
        finally:
            os.close(descriptor)

    def journal(self) -> list[dict[str, Any]]:
        """The lines of the journal in their order, without any that was cut off."""
        lines = []
        for raw in self._journal.read_bytes().splitlines() if self._journal.exists() else ():
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def record(self, cell: Cell, seconds: float) -> None:
        """Notes how long a cell took, in CPU seconds. Only the process that holds the lock calls this."""
        row = (cell.key, cell.name, cell.phase, seconds, datetime.now(UTC).isoformat(timespec="seconds"))
        with writing(self.folder), self._database() as database:
            database.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", row)

    def seconds(self, keys: Iterable[str]) -> dict[str, float]:
        """CPU seconds by phase that these cells took, in whichever run they were computed."""
        wanted, total = set(keys), dict[str, float]()
        with self._database() as database:
            for key, phase, seconds in database.execute("SELECT key, phase, seconds FROM cells ORDER BY key"):
                if key in wanted:
                    total[phase] = total.get(phase, 0.0) + seconds
        return total

    def usual_seconds(self) -> dict[str, float]:
        """CPU seconds that a cell of each phase took on average, in all runs that wrote into this folder."""
        with self._database() as database:
            return dict(database.execute("SELECT phase, avg(seconds) FROM cells GROUP BY phase ORDER BY phase"))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._index)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # it can be rebuilt
            database.execute(TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
            yield database

    def mend(self, stored: set[str]) -> None:
        """Ends a line that was cut off, and brings the index in line with the keys that are stored.

        What is no journal or no index of ours is thrown away.
        """
        only_a_file(self._journal, LARGEST)
        if self._journal.exists() and not self._journal.read_bytes().endswith(b"\n"):
            self._append(b"\n")  # the next line must not be glued to the one that was cut off
        if not self._sound():
            for path in (self._index, *self.private.glob(f"{self._index.name}-*")):
                path.unlink(missing_ok=True)
        self._fill_index(stored)

    def _sound(self) -> bool:
        """Whether the index is a database of one table that could be ours, with nothing in it that runs."""
        for path in (self._index, *self.private.glob(f"{self._index.name}-*")):
            only_a_file(path, LARGEST)
        if not self._index.exists():
            return False
        try:
            with closing(sqlite3.connect(self._index)) as database:
                database.execute("PRAGMA trusted_schema = OFF")
                made = database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
                return (
                    made == [(TABLE,)] and not database.execute(f"SELECT 1 FROM cells WHERE {ODD} LIMIT 1").fetchall()
                )
        except sqlite3.Error:
            return False

    def _fill_index(self, stored: set[str]) -> None:
        with self._database() as database:
            known = {key for (key,) in database.execute("SELECT key FROM cells")}
            database.executemany("DELETE FROM cells WHERE key = ?", [(key,) for key in sorted(known - stored)])
            for line in self.journal() if stored - known else ():
                texts = [line.get(name) for name in ("key", "name", "phase", "at")]
                seconds = line.get("seconds", 0.0)
                honest = all(isinstance(text, str) and text.isprintable() for text in texts)
                honest &= isinstance(seconds, float | int) and 0 <= seconds <= LONGEST
                if honest and line.get("event") == "finished" and texts[0] in stored - known:
                    row = (*texts[:3], seconds, texts[3])
                    database.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", row)
        os.chmod(self._index, 0o600)


def whoami() -> dict[str, Any]:
    """This process, its machine and the time."""
    at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "at": at}
