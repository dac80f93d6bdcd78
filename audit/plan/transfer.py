"""The section of a plan for another task, which every model is tried as a beginning for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from .settings import Settings, fault


class TransferPlan(Settings):
    """Records of another task: each model is tried as the beginning of one for it."""

    path: str = Field(
        min_length=1,
        description="of an .npz with x_train, y_train, x_test, y_test, seen from the plan's folder: records as the "
        "model takes them, of the same shape and within the same bounds, with classes of their own",
    )
    name: str | None = Field(None, min_length=1, description="what the report calls it; default: the file's name")


def _transfer(value: Any) -> Any:
    if isinstance(value, str):
        raise fault(f"must be a mapping that names the file of the other task, for example {{path: {value[:80]}}}")
    return value


OtherTask = Annotated[TransferPlan | None, BeforeValidator(_transfer)]
TRANSFER = "another task, for which each model is tried as a feature extractor (attack transfer-learning)"
