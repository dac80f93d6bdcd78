"""The process of its own that reads a model (sandbox.py), started once and forked for each file: far sooner.

Run by its path, without this package: each line on standard input is a JSON list of a script, seconds, bytes and the
arguments; each line on standard output what came of it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

SANDBOX = Path("targets", "untrusted", "sandbox.py")


def serve(root: Path) -> None:
    limits = runpy.run_path(str(root / SANDBOX))["set_limits"]
    mains: dict[str, Any] = {}
    for line in sys.stdin:
        script, seconds, memory, arguments = json.loads(line)
        if script not in mains:
            mains[script] = runpy.run_path(script)["main"]
            if "onnx" in sys.modules:  # it makes its list of operators once; no fork should have to
                sys.modules["onnx"].defs.get_schema("Relu")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _answer(mains[script], arguments, writing, partial(limits, seconds, memory))
        os.close(writing)
        with os.fdopen(reading) as stream:
            said = stream.read()
        status = os.waitpid(child, 0)[1]
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "said": said}), flush=True)


def _answer(main: Any, arguments: list[str], writing: int, limit: Any) -> None:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        limit()
        os.write(writing, main(arguments).encode())
        status = 0
    except MemoryError:
        status = 71
    finally:
        os._exit(status)


@contextlib.contextmanager
def forked(root: Path) -> Iterator[Any]:
    """A stand-in for `sandbox.run_limited` that asks one such process."""
    from crushproof.targets.errors import UnsafeInput

    words = [sys.executable, "-I", str(Path(__file__).resolve()), str(root), json.dumps(sys.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(script: Path, arguments: list[str], *, what: str, seconds: int, memory: int, hint: str = "") -> str:
            print(json.dumps([str(script), seconds, memory, arguments]), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())  # type: ignore[union-attr]  # a pipe, see above
            if answer["status"] != 0:
                raise UnsafeInput(f"Reading {what} was stopped ({answer['status']}). {hint}")
            return str(answer["said"])

        try:
            yield run
        finally:
            process.stdin.close()


@cache
def shared(root: Path) -> Any:
    """`forked`, by one process for as long as this one lives: the libraries that it loads take seconds."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(forked(root))


if __name__ == "__main__":
    sys.path.extend(entry for entry in json.loads(sys.argv[2]) if entry not in sys.path and os.path.isabs(entry))
    serve(Path(sys.argv[1]))
