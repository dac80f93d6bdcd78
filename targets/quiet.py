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

SWITCHES = {
    # ONNX Runtime (1.29 and later): its own function for this comes after the first event, the variable before.
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# OpenVINO reports each import by this package, and has no switch but a file in the user's home. Without the package it
# takes a stand-in of its own that does nothing.
REPORTER = "openvino_telemetry"
HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")


def keep_quiet() -> None:
    """Throws the switches in this process, whatever they were set to before."""
    os.environ.update(SWITCHES)
    sys.modules[REPORTER] = None  # type: ignore[assignment]  # what makes an import fail, in Python's own words


@contextmanager
def away_from_home() -> Iterator[None]:
    """Inside the block libraries take our temporary folder for the user's home and caches, and keep it when they are
    imported here for the first time: matplotlib writes a list of fonts there, and the Adversarial Robustness Toolbox
    its settings. Their messages about that are held back.
    """
    from .temporary import own_folder

    before = {name: os.environ.get(name) for name in HOMES}
    chatter = logging.getLogger("matplotlib")
    level = chatter.level
    os.environ.update(dict.fromkeys(HOMES, str(own_folder())))
    chatter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatter.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
