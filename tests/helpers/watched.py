"""Processes whose look-ups, connections and files are noticed: a fresh home, a fresh temporary folder, and an ear."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# Python imports this by itself, in workers too. What libraries do below Python shows in the home or under strace.
EAR = """
import os, sys
LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
WRITES = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.symlink": 1}  # and which argument is the path
def outside(path):
    path = os.path.realpath(os.fsdecode(path))
    return "__pycache__" not in path and not path.startswith(tuple(os.environ["ALLOWED"].split(":")))
def hear(event, arguments):
    said = None
    if event in LOOK_UPS or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        said = arguments
    elif event in WRITES and isinstance(arguments[WRITES[event]], (str, bytes, os.PathLike)):
        path = arguments[WRITES[event]]
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        said = path if not reads and outside(path) else None
    if said is not None:
        with os.fdopen(os.open(os.environ["HEARD"], os.O_WRONLY | os.O_APPEND), "w") as log:
            log.write(f"{event} {said}\\n")
sys.addaudithook(hear)
"""


class Watched:
    """Gives processes their environment (`env`), and says what was noticed of them.

    Args:
        folder: a new one, for home, temporary files and notes.
        out: where else the processes may write.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self.home, self.temporary, self.heard = folder / "home", folder / "temporary", folder / "heard"
        for each in (self.home, self.temporary, folder / "ear"):
            each.mkdir(parents=True)
        (folder / "ear" / "sitecustomize.py").write_text(EAR)
        self.heard.touch()
        self._trace = folder / "trace"
        allowed = (self.temporary, out, self.heard, "/dev/", "/proc/")
        self.env = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH")},
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "0",  # the user's own setting does not count
            "PYTHONPATH": os.pathsep.join([str(folder / "ear"), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "ALLOWED": ":".join(os.path.realpath(each) if str(each)[-1] != "/" else str(each) for each in allowed),
            "HEARD": str(self.heard),
        }

    def traced(self, command: list[str]) -> list[str]:
        """The command under strace, where there is one that works here: it hears the libraries' sockets as well."""
        trace = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=%network", "-o", str(self._trace)]
        works = shutil.which("strace") and subprocess.run([*trace, "true"], capture_output=True).returncode == 0
        return [*trace, *command] if works else command

    def assert_silent(self) -> None:
        """Nothing was looked up or sent, and no file is outside `out`; the temporary folder is empty again."""
        assert self.heard.read_text() == ""
        assert list(self.home.rglob("*")) == []
        assert list(self.temporary.rglob("*")) == []
        if self._trace.exists():
            assert [line for line in self._trace.read_text().splitlines() if "AF_INET" in line] == []
