"""What `audit_model` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .schema.rows import Audit


@dataclass(frozen=True, repr=False)
class AuditResult:
    """A finished audit. `audit` is the whole of audit.json as typed rows; printed, it is a table with the verdict."""

    audit: Audit

    def __repr__(self) -> str:
        from .report.terminal import as_text

        return as_text(self.audit)

    def _repr_html_(self) -> str:
        from .report.terminal import as_html

        return as_html(self.audit)

    @property
    def passed(self) -> bool:
        """Whether the policy passed for every candidate up for release; inconclusive is not passed."""
        return self.audit.verdict == "pass"

    @property
    def verdict(self) -> str:
        return self.audit.verdict

    def to_html(self, path: str | Path) -> Path:
        """Writes the report; returns its path."""
        from .report.html import render

        render(self.audit, Path(path))
        return Path(path)

    def to_json(self, path: str | Path) -> Path:
        """Writes audit.json; returns its path."""
        from .writing import write

        write(Path(path), self.audit.model_dump_json(by_alias=True, indent=1))
        return Path(path)
