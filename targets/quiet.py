"""What keeps an audit to itself: no library may report anything to anybody, or write into the user's home.

Most libraries read their switches when they load, so they are thrown when `crushproof` is imported, which every worker
does too; other processes inherit the environment, or are given `SWITCHES` (sandbox.py).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

SWITCHES = {
    # ONNX Runtime (1.29 and later): its own function for this comes after the first event, the variable before.
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# OpenVINO reports each import by this package, and has no switch but a file in the user's home. Without the package it
# takes a stand-in of its own that does nothing.
REPORTER = "openvino_telemetry"
HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
SETTINGS = "MATPLOTLIBRC"  # names the file that matplotlib takes its settings from


def keep_quiet() -> None:
    """Throws the switches in this process, whatever they were set to before."""
    os.environ.update(SWITCHES)
    sys.modules[REPORTER] = None  # type: ignore[assignment]  # what makes an import fail, in Python's own words


@contextmanager
def away_from_home() -> Iterator[None]:
    """Inside the block libraries take our temporary folder for the user's home and caches, and keep it when they are
    imported here for the first time: matplotlib writes a list of fonts there, and the Adversarial Robustness Toolbox
    its settings. Their messages about that are held back. Of matplotlib only the caches move: its settings are the
    user's, and so is the folder that it takes styles from.
    """
    from .temporary import own_folder

    before = {name: os.environ.get(name) for name in (*HOMES, SETTINGS)}
    chatter = logging.getLogger("matplotlib")
    level = chatter.level
    if (settings := _settings()) is not None:
        os.environ[SETTINGS] = str(settings)
    os.environ.update(dict.fromkeys(HOMES, str(own_folder())))
    chatter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatter.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _settings() -> Path | None:
    """The file that matplotlib would find, or its own when the user has none: told of it, matplotlib does not ask for
    the user's folder, which it would make when it is not there, and remember for as long as the process lives.
    """
    if "matplotlib" in sys.modules or (found := find_spec("matplotlib")) is None or found.origin is None:
        return None
    name, known, linux = "matplotlibrc", os.environ, sys.platform.startswith(("linux", "freebsd"))
    at_home = Path(known.get("XDG_CONFIG_HOME") or "~/.config", "matplotlib") if linux else Path("~/.matplotlib")
    places = [Path(known[SETTINGS]), Path(known[SETTINGS], name)] if known.get(SETTINGS) else []
    places.append(Path(os.path.expanduser(known.get("MPLCONFIGDIR") or at_home), name))
    return next((place for place in places if os.path.isfile(place)), Path(found.origin).parent / "mpl-data" / name)
