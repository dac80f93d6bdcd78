"""The cells in an output folder for who only reads them: nothing is made, moved or thrown away."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...targets.form import Form, WithoutModelError
from ...targets.recent import Recent
from ..engine.cells import MANIFEST, Cell, DamagedError, Result, check_form, unpack
from ..engine.on_disk import read_folder
from ..engine.store import REMEMBERED, cell_folder


class StoredCells:
    """What `findings.assemble` asks a store, of a folder that is left as it is.

    Args:
        folder: an audit's output folder.

    Attributes:
        damaged: where cells lie whose files are not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.damaged = folder, dict[str, str]()
        self._forms: dict[str, Form] = {}
        self._recent: Recent[dict[str, bytes]] = Recent(REMEMBERED)

    def expect(self, forms: Mapping[str, Form]) -> None:
        """What the results under these keys look like: any other is damaged. Those at hand are read anew."""
        self._forms |= forms
        self._recent = Recent(REMEMBERED)

    def has(self, key: str) -> bool:
        return self._read(key) is not None

    def get(self, key: str) -> Result:
        """Raises KeyError: nothing intact is stored under this key."""
        parts = self._read(key)
        if parts is None:
            raise KeyError(key)
        return unpack(parts)

    def evidence(self, key: str) -> tuple[str, str]:
        """As `Store.evidence`."""
        parts = self._read(key)
        if parts is None:
            raise KeyError(key)
        return cell_folder(self.folder, key).relative_to(self.folder).as_posix(), _digest(parts)

    def keep_failure(self, cell: Cell, trace: str) -> None:
        """Nothing is written here."""

    def _read(self, key: str) -> dict[str, bytes] | None:
        if (parts := self._recent.get(key)) is not None:
            return parts
        folder = cell_folder(self.folder, key)
        if folder.relative_to(self.folder).as_posix() in self.damaged:
            return None
        try:
            parts = read_folder(folder)
            if parts is not None:
                with suppress(WithoutModelError):
                    check_form(self._forms.get(key), parts)
        except DamagedError as error:
            self.damaged[folder.relative_to(self.folder).as_posix()] = str(error)
            return None
        if parts is not None:
            self._recent.put(key, parts, sum(map(len, parts.values())))
        return parts


def _digest(parts: dict[str, bytes]) -> str:
    return hashlib.sha256(parts[MANIFEST]).hexdigest()
