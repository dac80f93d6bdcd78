"""What readers of strangers' models say of names and errors. Loaded by its path: it imports nothing of this package."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "...")


def listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(quoted(name) for name in ordered[:6]) + (", ..." if len(ordered) > 6 else "")


def first_line(error: Exception) -> str:
    """The first line of its message, ended; running out of memory comes without one."""
    lines = str(error).strip().splitlines()
    line = lines[0][:300].rstrip() if lines else type(error).__name__
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if line.endswith(".") else line + "."
