"""What `crushproof doctor` looks at: whether this machine can run an audit, and how large a one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

MEMORY_WANTED = 3_000_000_000  # bytes for the built-in audit with two workers
DISK_WANTED = 500_000_000


@dataclass(frozen=True)
class Check:
    """One fact about the machine. `state`: ok; note (works, but worth knowing); bad (an audit will fail)."""

    state: str
    what: str
    words: str


def examine(folder: Path) -> Iterator[Check]:
    """Checks interpreter, packages, device, runtimes, other packages' parts, cores, memory, and `folder`."""
    python = ".".join(str(number) for number in sys.version_info[:3])
    yield Check("ok" if sys.version_info >= (3, 11) else "bad", "python", f"{python} at {sys.executable}")
    yield from _packages()
    yield _device()
    yield from _runtimes()
    yield from brought()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("ok", "cores", f"{cores} usable: as many workers by default")
    yield _memory()
    yield _disk(folder)


def _packages() -> Iterator[Check]:
    """Each requirement of this package: whether it is there and new enough."""
    from packaging.requirements import Requirement

    for line in requires("crushproof") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield Check("bad", wanted.name, f"is missing; pip install '{wanted}'")
            continue
        good = wanted.specifier.contains(found, prereleases=True)
        yield Check("ok" if good else "bad", wanted.name, found if good else f"{found}; pip install '{wanted}'")


def _device() -> Check:
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        return Check("bad", "device", f"torch cannot be imported: {type(error).__name__}: {error}")
    if torch.cuda.is_available():
        return Check("ok", "device", f"CUDA: {torch.cuda.get_device_name()}")
    return Check("ok", "device", "CPU (torch sees no CUDA device)")


def _runtimes() -> Iterator[Check]:
    """What finished files and the plan's `runtimes` can be run in, beside ONNX Runtime: none is needed for an audit."""
    try:
        from ..targets.runtimes.litert import PACKAGES
        from ..targets.runtimes.runtime import RUNTIMES, release_of
        from ..targets.untrusted.model_file import need_litert

        known = {kind: runtime.model_construct(kind=kind) for kind, runtime in RUNTIMES.kinds().items()}
    except Exception as error:  # a broken installation, or another package's code
        yield Check("bad", "runtimes", f"cannot be listed: {error}")
        return
    wanted = [(kind, one.packages, one.check) for kind, one in known.items()]
    for kind, packages, check in (*wanted, ("litert", PACKAGES, need_litert)):
        found = ", ".join(f"{package} {release}" for package in packages if (release := release_of(package)))
        try:
            check()
        except Exception as error:  # a missing package, or whatever another package's code raises
            yield Check("note", kind, str(error).removeprefix("not measured: "))
        else:
            yield Check("ok", kind, found or "there")


def brought() -> Iterator[Check]:
    """What other packages bring. Whatever is wrong with it is left out, so that no audit without it fails."""
    from ..attacks.attack import ATTACKS
    from ..compression.recipe import RECIPES
    from ..defenses.defense import DEFENSES
    from ..targets.runtimes.runtime import RUNTIMES
    from ..targets.technique import plug_ins

    for registry in (ATTACKS, RECIPES, DEFENSES, RUNTIMES):
        registry.kinds()  # what an attack's parts may be is then known too
    for one in plug_ins():
        told = f"{one.noun} {one.kind}, {one.value} of {one.package} ({one.group})"
        yield Check("ok" if one.wrong is None else "note", one.name, f"plug-in: {one.wrong or told}")


def _memory() -> Check:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return Check("note", "memory", "cannot be read on this system")
    words = f"{free / 1e9:.1f} GB free"
    if free < MEMORY_WANTED:
        return Check("note", "memory", f"{words}; the built-in audit wants {MEMORY_WANTED / 1e9:.0f}: use --workers 0")
    return Check("ok", "memory", words)


def _disk(folder: Path) -> Check:
    if not os.access(folder, os.W_OK):
        return Check("bad", "folder", f"{folder} cannot be written; name another one with --out")
    free = shutil.disk_usage(folder).free
    state = "ok" if free >= DISK_WANTED else "note"
    return Check(state, "folder", f"{folder} can be written, {free / 1e9:.1f} GB free")
