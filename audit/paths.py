"""Paths as a report may show them: where files lie on this machine, and whose machine it is, is nobody's business."""

from __future__ import annotations

import re
from pathlib import PurePath, PureWindowsPath

ROOT = r"(?:~[\w.-]*|[A-Za-z]:)?[/\\]"
QUOTED = re.compile(rf"(['\"`])(?:file://)?{ROOT}(?:[^'\"`]*[/\\])?([^'\"`/\\]*)\1")
BARE = re.compile(rf"(?<![\w/\\.:~-])(?:file://)?{ROOT}(?:[^\s'\"`<>|;,()/\\]+[/\\])+([^\s'\"`<>|;,()/\\]*)")


def shown(path: str | PurePath) -> str:
    """A path inside the folder it is seen from as it is; of any other the file's name alone."""
    text = str(path)
    if re.match(r"[A-Za-z]:[/\\]|\\\\", text):
        return PureWindowsPath(text).name
    pure = PurePath(text)
    return pure.name if pure.is_absolute() or ".." in pure.parts or text.startswith("~") else text


def without_paths(sentence: str) -> str:
    """A sentence in which absolute paths are the names of their files, as errors of others may have them."""
    return BARE.sub(r"\1", QUOTED.sub(r"\1\2\1", sentence))
