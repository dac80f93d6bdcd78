"""Signing an audit: `crushproof sign`.

`audit.intoto.jsonl` beside audit.json is a statement about files by their digests: audit.json, report.html, the plan as
it was resolved, the manifest of every result in the evidence (which holds the digests of that result's own files), and
the audited models. A model that is up for release has a signature of its own beside it, by OpenSSF model signing.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ...targets.errors import InputError, UnsafeInput
from ...targets.serving.envelope import need
from ...targets.serving.json_text import canonical_json
from ...targets.serving.statement import (
    ENVELOPE,
    AuditPredicate,
    Digest,
    Statement,
    Subject,
    envelope_line,
    payload_of,
    signed_bytes,
)
from ..plan.plan import Plan
from ..report.html import render
from ..schema.read import folder_of, read_audit
from ..schema.rows import Audit
from ..schema.standing import SIGNED
from ..subject.finished_file import paths_of
from ..verification.checks import verify
from ..verification.rebuild import held_against_evidence
from ..verification.record import read_record
from ..verification.stored import StoredCells
from ..writing import write, writing
from .subjects import (
    AGAIN,
    REPORT,
    SUFFIX,
    audited_models,
    digests_of,
    is_manifest,
    nobody_at_work,
    of_the_folder,
    results_in,
)


@dataclass(frozen=True)
class Signed:
    """What was signed.

    Args:
        keyid: sha256 (hex) of the signer's public key, DER.
        signatures: by candidate up for release: where its own signature lies, beside the model.
        absent: finished files that are not where the plan names them, by candidate: the stored copy was signed.
    """

    statement: Statement
    keyid: str
    signatures: dict[str, Path]
    absent: dict[str, str]

    @property
    def results(self) -> int:
        """Of the evidence, how many."""
        return sum(is_manifest(row.name) for row in self.statement.subject)


def sign_audit(folder: Path, key: Path, certificate: Path | None = None) -> Signed:
    """Signs the audit in `folder`: writes `audit.intoto.jsonl` there, and a `.sig` beside each model up for release.

    Args:
        key: a private key, PEM.
        certificate: of that key, followed by its issuers', PEM.

    Raises:
        InputError: key or certificate cannot be used, there is no whole audit, or a file it judged has changed since.
        UnsafeInput: audit.json, the evidence, the plan and the files do not belong together.
        Incomplete: another run is at work in the folder, or the disk is full.
    """
    need("cryptography", "OpenSSL", "model_signing")
    from ...targets.serving.keys import certificates, keyid
    from .model_signature import write_model_signature
    from .signing_keys import check_signer, pem, private_key, sign

    folder = folder_of(folder)
    secret, chain = private_key(key), [] if certificate is None else certificates(certificate)
    if certificate is not None:
        check_signer(chain, secret, certificate)
    audit, standing = held_against_evidence(read_audit(folder), folder)
    at = audit.environment.record
    if not standing.verified or at is None:
        raise InputError(f"{folder} cannot be signed, because it cannot be verified: {standing.words}. {AGAIN}")
    wrong = [f"{check.what}: {check.words}" for check in verify(folder) if check.state == "bad"]
    if wrong:
        raise UnsafeInput(f"{folder} cannot be signed, because it does not verify: {wrong[0]}. {AGAIN}")
    record, _ = read_record(at.key, StoredCells(folder).get(at.key))
    home = Path() if record.home is None else Path(os.path.normpath(folder / record.home))
    with writing(folder), nobody_at_work(folder):
        results = results_in(folder)
        render(audit, folder / REPORT, SIGNED)  # its head is to say so, and it is signed as it says so
        models = audited_models(audit, folder, results.models, paths_of(Plan.model_validate(record.asked)), home)
        subjects = results.manifests | of_the_folder(folder) | {one.model.stored: one.model.sha256 for one in models}
        subjects |= digests_of({one.model.file: one.path for one in models if one.model.file is not None})
        signatures: dict[str, Path] = {}
        for one in models:
            if one.model.signature is not None:
                path = signatures[one.name] = one.path.with_name(one.path.name + SUFFIX)
                write_model_signature(one.path, path, secret, certificate)
                subjects |= digests_of({one.model.signature: path})
        predicate = AuditPredicate(
            name=audit.name,
            verdict=audit.verdict,
            plan_digest=audit.plan_digest,
            policy=audit.policy_name,
            policy_digest=policy_digest(audit),
            suite_version=record.versions.get("crushproof"),
            fixed_at=at.fixed,
            known_by_then=at.known,
            release=audit.release,
            models={one.name: one.model for one in models},
        )
        rows = [Subject(name=name, digest=Digest(sha256=digest)) for name, digest in sorted(subjects.items())]
        statement, own = Statement(subject=rows, predicate=predicate), keyid(secret.public_key())
        payload = payload_of(statement)
        line = envelope_line(payload, sign(secret, signed_bytes(payload)), own, pem(chain) or None)
        write(folder / ENVELOPE, line)
    return Signed(statement, own, signatures, {one.name: one.absent for one in models if one.absent is not None})


def policy_digest(audit: Audit) -> str:
    """sha256 (hex) of the limits as they were applied, as canonical JSON of `name` and `limits`."""
    limits = [one.model_dump(mode="json") for one in audit.policy_limits]
    return hashlib.sha256(canonical_json({"name": audit.policy_name, "limits": limits})).hexdigest()
