"""The schema of audit.json as JSON Schema (2020-12), for programs that read it without this package."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from .rows import SCHEMA, Audit


class _Untitled(GenerateJsonSchema):
    """Without a title per field, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """What docs/audit.schema.json holds. `version` is the one of `SCHEMA`: it rises when an old reader would fail.

    Looser than the models in what JSON Schema cannot say: that an estimate lies within its interval and counts add up.
    """
    name, _, version = SCHEMA.rpartition("/")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{name.replace('.', ':')}:{version}",
        "title": "An audit by crushproof: audit.json",
        "version": version,
    }
    body = Audit.model_json_schema(by_alias=True, schema_generator=_Untitled)
    return {**head, **{key: value for key, value in body.items() if key not in head}}
