"""Runs the reading of an untrusted file in a process of its own, with limits on memory, processor time and output.

The limits are there for files that exhaust a machine; they are no jail. What may be parsed here must be safe by itself
(`torch.load(weights_only=True)`), and the script must not need this package: it is run by its path.

This file is also what the child runs: `python -I sandbox.py <limits> <script> <arguments>`. It imports the script, then
sets the limits (so that loading a large library does not count), then calls the script's `main(arguments) -> str`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
READY = "ready\n"
OUT_OF_MEMORY = 71  # exit status; any value Python itself does not use
STARTING = 120  # wall-clock seconds granted on top, for importing libraries on a busy machine
OVERTIME = (-signal.SIGKILL, -signal.SIGXCPU, -signal.SIGALRM)  # which the limits send
NO_MEMORY = re.compile(r"bad_alloc|MemoryError|[Cc]annot allocate memory|out of memory")
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

RESAVE_HINT = "Nothing in it was executed. Refuse the file, or have it saved anew as safetensors by whoever trusts it."


def run_limited(
    script: Path, arguments: list[str], *, what: str, seconds: int, memory: int, hint: str = RESAVE_HINT
) -> str:
    """What `main(arguments)` of the script returns, called in a child process.

    Args:
        script: a Python file with `main(arguments: list[str]) -> str` that imports no part of this package.
        what: the input's name as shown in messages.
        seconds: processor time, once the script is imported; the wall clock may show four times as many.
        memory: bytes of address space on top of what the imported libraries take (enforced on Linux), and the largest
            file the child may write.
        hint: ends the message about a limit: what was kept from happening, and what the user can do.

    Raises:
        UnsafeInput: the child hit a limit or died.
        Incomplete: the child could not even import the script.
    """
    from ..errors import Incomplete, UnsafeInput
    from ..quiet import SWITCHES
    from ..temporary import scratch

    paths = [entry for entry in sys.path if os.path.isabs(entry)]
    limits = {"parent": os.getpid(), "seconds": seconds, "memory": memory, "path": paths}
    command = [sys.executable, "-I", str(Path(__file__).resolve()), json.dumps(limits), str(script), *arguments]
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= SWITCHES | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    try:
        with scratch() as folder:  # what its libraries leave goes with it, also when it is stopped
            child = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**environment, "HOME": str(folder), "TMPDIR": str(folder)},
                timeout=4 * seconds + STARTING,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise UnsafeInput(f"Reading {what} took too long by the clock and was stopped. {hint}") from None
    output = child.stdout.decode("utf-8", "replace")
    if not output.startswith(READY):
        reason = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        raise Incomplete(
            f"The process that reads {what} could not start ({reason or f'exit status {child.returncode}'}). Run "
            "`crushproof doctor` to check the installation, and see what this process may take (ulimit -a)."
        )
    complaint = child.stderr[-2000:].decode("utf-8", "replace")
    if child.returncode == OUT_OF_MEMORY or (child.returncode < 0 and NO_MEMORY.search(complaint)):
        raise UnsafeInput(f"Reading {what} needs more than the {memory:,} bytes it may take. {hint}")
    if child.returncode in OVERTIME:
        raise UnsafeInput(f"Reading {what} was stopped after the {seconds} s of processor time it may take. {hint}")
    if child.returncode != 0:
        raise UnsafeInput(
            f"Reading {what} was stopped, because it broke the reader (exit status {child.returncode}). {hint}"
        )
    return output.removeprefix(READY)


def set_limits(seconds: int, memory: int) -> None:
    """Limits this process for good: processor seconds and bytes of address space from here on, four times as many
    seconds by the clock, file size, no dumps.
    """
    signal.alarm(4 * seconds)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime) + 1 + seconds
    wanted = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_FSIZE: memory, resource.RLIMIT_CORE: 0}
    pages = Path("/proc/self/statm")
    if pages.exists():  # elsewhere the address space is not accounted for in a usable way
        wanted[resource.RLIMIT_AS] = int(pages.read_text().split()[0]) * resource.getpagesize() + memory
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def die_with(parent: int) -> None:
    """Ends this process as soon as its parent does, even when the parent is killed: at once, where there is Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _child() -> None:
    import runpy

    limits, script, *arguments = sys.argv[1:]
    wanted = json.loads(limits)
    die_with(wanted["parent"])
    sys.path.extend(entry for entry in wanted["path"] if entry not in sys.path)
    main = runpy.run_path(script)["main"]
    set_limits(wanted["seconds"], wanted["memory"])
    print(READY, end="", flush=True)
    try:
        print(main(arguments), end="", flush=True)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    _child()
