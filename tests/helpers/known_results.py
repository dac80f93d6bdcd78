"""What an attack measures from, without an audit around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crushproof.attacks.case import Evidence


@dataclass
class Known:
    """Stands for `preparation.Results`."""

    scope: Any
    model: Any
    found: dict[str, Evidence]

    def evidence(self, ran: Any) -> Evidence | None:
        return self.found.get(ran.model)

    def why(self, ran: Any) -> str:
        return f"{ran.model} failed"

    def flags(self, model: str) -> set[str]:
        return set()
