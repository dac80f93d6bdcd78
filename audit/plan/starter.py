"""The commented plan that `crushproof init` writes: it runs as it is, on digits, and says what to change."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ...targets.errors import InputError
from ..writing import write_together, writing

FILES = ("plan.yaml", "my_model.py")  # of the folder starter_files


def write_starter(folder: Path) -> list[Path]:
    """Writes plan.yaml and my_model.py into `folder`, which is made when it is not there; gives their paths.

    Raises:
        InputError: one of them is there already (nothing is written then), or the folder cannot be written.
        Incomplete: its disk is full.
    """
    source = resources.files(__package__) / "starter_files"
    files = {folder / name: source.joinpath(name).read_text(encoding="utf-8") for name in FILES}
    there = [str(path) for path in files if path.exists() or path.is_symlink()]
    if there:
        raise InputError(f"{' and '.join(there)} would be overwritten. Move it away, or name another folder.")
    with writing(folder, another="Name another folder."):
        folder.mkdir(parents=True, exist_ok=True)
        write_together(files, folder)
    return list(files)
