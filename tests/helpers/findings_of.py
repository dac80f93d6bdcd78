"""What two runs of one audit have to agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def findings(out: Path) -> dict[str, Any]:
    """audit.json without what two identical runs may differ in."""
    audit = json.loads((out / "audit.json").read_text())
    del audit["environment"]
    for finding in audit["findings"]:
        del finding["reproduce"]  # names the command line, which names the folder
    return audit  # type: ignore[no-any-return]  # json gives Any
