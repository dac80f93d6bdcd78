"""The rows of audit.json that tell of the data: how many records, and what their values are."""

from __future__ import annotations

from pydantic import Field

from .row import Count, Digest, Row


class Encoding(Row):
    """A column of a table that became one 0/1 feature per category, in this order."""

    column: str
    categories: list[str]


class DataStructure(Row):
    """What the values of a record are where they are no plain numbers, as declared; features by name or position."""

    features: list[str] = Field([], description="names of all, in the order of the model's input; empty: not named")
    immutable: list[str] = Field([], description="which no attacker can change")
    one_hot: list[list[str]] = Field([], description="blocks of 0 and 1 with at most one 1")
    codes: list[str] = Field([], description="which hold the code of a category")
    integer: list[str] = Field([], description="which are whole numbers")
    tokens: bool = Field(False, description="every value is an id that the model looks up")
    whole: bool = Field(False, description="every value of an image or a sequence is a whole number")
    encoded: list[Encoding] = Field([], description="columns that became the one-hot blocks of the same order")


class DataSummary(Row):
    """The data of the audit; counts are of records."""

    name: str
    digest: Digest
    shape: list[Count] = Field(description="of one record")
    classes: list[str] = Field(description="empty where values are predicted")
    members: Count | None
    non_members: Count
    evaluation: Count
    attacker: Count
    forgotten: Count | None = Field(None, description="that the model was to forget, none of the members; None: none")
    public: Count | None = Field(None, description="that defenses may train on instead of the members; None: none")
    transfer: Count | None = Field(None, description="records of another task, for which each model is tried")
    structure: DataStructure | None = Field(None, description="None: plain numbers, as far as was declared")
