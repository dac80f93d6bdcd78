"""A plan's fields without what says where files lie on one machine."""

from __future__ import annotations

from typing import Any

from ..paths import shown


def without_folders(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan, as JSON, each path in them as `paths.shown` has it; `fields` itself is changed."""
    models = [fields["model"] or {}, *fields["candidates"].values()]
    data = fields["data"]
    named = [
        *((data, key) for key in ("path", "train_path", "test_path", "forget")),
        (data.get("transfer") or {}, "path"),
        *((model, key) for model in models for key in ("file", "weights")),
        (fields, "policy"),
    ]
    for section, key in named:
        if isinstance(section.get(key), str):
            section[key] = shown(section[key])
    return fields
