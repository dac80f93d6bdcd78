"""What every row of audit.json is: frozen, with no unknown key and no NaN; and the ranges of its numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Figure = Annotated[float, Field(ge=-1e100, le=1e100)]  # its square and its differences are numbers too
Amount = Annotated[float, Field(ge=0, le=1e100)]
DIGEST = r"^[0-9a-f]{64}$"  # a sha256; what is read from a file is held to it (consistent.py)
Digest = Annotated[str, Field(json_schema_extra={"pattern": DIGEST})]
Share = Annotated[float, Field(ge=0, le=1)]


class Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
