"""Statements about an audit (in-toto, v1) and the envelopes that carry their signatures (DSSE, v1), as plain JSON.

https://github.com/in-toto/attestation/tree/main/spec/v1 and https://github.com/secure-systems-lab/dsse. An envelope is
untrusted until its signature is checked, and is read strictly: no key twice, no key unknown, one signature.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ..errors import InputError, quoted
from ..untrusted.files import ordinary_file
from .json_text import canonical_json, strict_json

Verdict = Literal["pass", "fail", "inconclusive"]
RowVerdict = Literal["pass", "fail", "inconclusive", "not-gated", "not-measured"]

ENVELOPE = "audit.intoto.jsonl"  # the file that carries a signed statement, beside audit.json
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://crushproof/audit/v1"
SIZE_CAP = 32 * 2**20  # bytes; a statement about 300 stored results has about 60 kB

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, alias_generator=to_camel, allow_inf_nan=False
    )


class Digest(Strict):
    sha256: Sha256


class Subject(Strict):
    """A file by its name and its digest."""

    name: str = Field(min_length=1, max_length=4096)
    digest: Digest


class SignedModel(Strict):
    """One audited model. Its files are subjects of the statement."""

    verdict: RowVerdict
    sha256: Sha256 = Field(description="of its bytes, unpacked")
    stored: str = Field(description="where its bytes lie in the audit's folder")
    file: str | None = Field(None, description="of a finished file: its name as a subject, the plan's name for it")
    seen_from_here: str | None = Field(None, description="of a finished file: where it lies, from the audit's folder")
    signature: str | None = Field(None, description="its own, a subject too: beside `file` or else `stored`")


class AuditPredicate(Strict):
    """What is said of the subjects."""

    name: str
    verdict: Verdict
    plan_digest: str
    policy: str
    policy_digest: Sha256 = Field(description="of the limits as they were applied: canonical JSON of name and limits")
    suite_version: str | None = Field(description="of crushproof, which the keys of all results depend on")
    fixed_at: str = Field(description="when plan and policy were fixed, in UTC")
    known_by_then: int = Field(ge=0, description="results of attacks that were there, from an earlier plan or policy")
    release: list[str] = Field(description="models that the verdict covers")
    models: dict[str, SignedModel]


class Statement(Strict):
    """An in-toto statement that an audit came to its verdict about the subjects."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(STATEMENT_TYPE, alias="_type")
    subject: list[Subject] = Field(min_length=1)
    predicate_type: Literal["https://crushproof/audit/v1"] = PREDICATE_TYPE
    predicate: AuditPredicate


class Signature(Strict):
    keyid: str = Field(max_length=256, description="sha256 of the public key's DER; a hint, never trusted")
    sig: str = Field(max_length=4096)
    cert: str | None = Field(None, max_length=2**18, description="PEM: the signer's certificate, then its issuers'")


class Envelope(Strict):
    """A DSSE envelope with one signature."""

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = PAYLOAD_TYPE
    signatures: list[Signature] = Field(min_length=1, max_length=1)


class MalformedError(ValueError):
    """An envelope or its payload is not what it must be; the message ends the sentence `it is malformed: `."""


def signed_bytes(payload: bytes) -> bytes:
    """What a signature is over: the pre-authentication encoding of DSSE, PAE(type, payload)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def payload_of(statement: Statement) -> bytes:
    return canonical_json(statement.model_dump(mode="json", by_alias=True))


def envelope_line(payload: bytes, signature: bytes, keyid: str, cert: str | None) -> str:
    """The envelope as one line of JSON."""
    one = Signature(keyid=keyid, sig=base64.b64encode(signature).decode(), cert=cert)
    envelope = Envelope(payload=base64.b64encode(payload).decode(), signatures=[one])
    return canonical_json(envelope.model_dump(mode="json", by_alias=True, exclude_none=True)).decode() + "\n"


def read_envelope(path: Path) -> Envelope:
    """The envelope in a file that may come from anywhere.

    Raises:
        MalformedError: it cannot be read, or is no envelope.
    """
    try:
        with ordinary_file(path, "the signature", SIZE_CAP).open("rb") as stream:
            raw = stream.read(SIZE_CAP)
    except (InputError, OSError) as error:
        raise MalformedError(str(error)) from None
    return _parsed(raw, Envelope)


def statement_in(payload: bytes) -> Statement:
    """The statement in a payload whose signature holds: it may be a statement about something else. MalformedError."""
    return _parsed(payload, Statement)


def _parsed(raw: bytes, model: type[M]) -> M:
    try:
        values: Any = strict_json(raw)
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"it is no valid JSON ({error})") from None
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])[:120]
        raise MalformedError(f"{quoted(where)}: {first['msg']}" if where else first["msg"]) from None


def decoded(text: str, what: str) -> bytes:
    """Bytes from base64 in its one spelling. Raises MalformedError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise MalformedError(f"{what} is no base64 ({error})") from None
    if base64.b64encode(raw).decode() != text:
        raise MalformedError(f"{what} is no base64 as it is written here")
    return raw
