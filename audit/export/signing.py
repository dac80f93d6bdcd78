"""Signing an audit: `crushproof sign`.

`audit.intoto.jsonl` beside audit.json is a statement about files by their digests: audit.json, report.html, the plan as
it was resolved, the manifest of every result in the evidence (which holds the digests of that result's own files), and
the audited models. A model that is up for release has a signature of its own beside it, by OpenSSF model signing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...targets.errors import InputError
from ..engine.cells import canonical_json
from ..schema.read import read_audit
from ..schema.rows import Audit
from ..verdict.judging import check_verdicts
from ..writing import write, writing
from .checking import ENVELOPE, need
from .in_toto import AuditPredicate, Digest, Statement, Subject, envelope_line, payload_of, signed_bytes
from .subjects import (
    CELLS,
    SUFFIX,
    audited_models,
    check_findings,
    folder_of,
    is_manifest,
    nobody_at_work,
    of_the_folder,
    plan_folder,
    results_in,
)


@dataclass(frozen=True)
class Signed:
    """What was signed.

    Args:
        keyid: sha256 (hex) of the signer's public key, DER.
        signatures: by candidate up for release: where its own signature lies, beside the model.
        stored: of those, the ones whose finished file is not where the plan names it, seen from here.
    """

    statement: Statement
    keyid: str
    signatures: dict[str, Path]
    stored: list[str]

    @property
    def results(self) -> int:
        """Of the evidence, how many."""
        return sum(is_manifest(row.name) for row in self.statement.subject)


def sign_audit(folder: Path, key: Path, certificate: Path | None = None, *, fixed_at: str | None = None) -> Signed:
    """Signs the audit in `folder`: writes `audit.intoto.jsonl` there, and a `.sig` beside each model up for release.

    Args:
        key: a private key, PEM.
        certificate: of that key, followed by its issuers', PEM.
        fixed_at: when plan and policy were fixed, before the first attack.

    Raises:
        InputError: key or certificate cannot be used, there is no whole audit, or a file it judged has changed since.
        UnsafeInput: audit.json and the evidence do not belong together.
        Incomplete: another run is at work in the folder, or the disk is full.
    """
    need("cryptography", "OpenSSL", "model_signing")
    from .keys import certificates, check_signer, keyid, pem, private_key, sign
    from .model_signature import write_model_signature

    folder = folder_of(folder)
    secret, chain = private_key(key), [] if certificate is None else certificates(certificate)
    if certificate is not None:
        check_signer(chain, secret, certificate)
    audit = read_audit(folder)
    check_verdicts(audit, folder)
    if not (folder / CELLS).is_dir():
        raise InputError(
            f"{folder} holds no evidence, and a signature is on an audit with all that its figures rest on. Sign the "
            "folder that `crushproof audit` wrote."
        )
    with writing(folder), nobody_at_work(folder):
        results = results_in(folder)
        check_findings(audit, results.manifests)
        models, outside = audited_models(audit, folder, results.models)
        subjects = results.manifests | of_the_folder(folder)
        signatures: dict[str, Path] = {}
        for name, one in models.items():
            subjects |= dict.fromkeys([one.stored, *([] if one.file is None else [one.file])], one.sha256)
            if one.signature is not None:
                known = one.signature.removesuffix(SUFFIX)
                model = outside.get(known, folder / known)
                signatures[name] = model.with_name(model.name + SUFFIX)
                write_model_signature(model, signatures[name], secret, certificate)
                subjects[one.signature] = hashlib.sha256(signatures[name].read_bytes()).hexdigest()
        predicate = AuditPredicate(
            name=audit.name,
            verdict=audit.verdict,
            plan_digest=audit.plan_digest,
            policy=audit.policy_name,
            policy_digest=policy_digest(audit),
            suite_version=audit.environment.versions.get("crushproof"),
            fixed_at=fixed_at,
            plan_folder=plan_folder(audit),
            release=audit.release,
            models=models,
        )
        rows = [Subject(name=name, digest=Digest(sha256=digest)) for name, digest in sorted(subjects.items())]
        statement, own = Statement(subject=rows, predicate=predicate), keyid(secret.public_key())
        payload = payload_of(statement)
        line = envelope_line(payload, sign(secret, signed_bytes(payload)), own, pem(chain) or None)
        write(folder / ENVELOPE, line)
    stored = [name for name in signatures if models[name].file is not None and models[name].file not in outside]
    return Signed(statement, own, signatures, stored)


def policy_digest(audit: Audit) -> str:
    """sha256 (hex) of the limits as they were applied, as canonical JSON of `name` and `limits`."""
    limits = [one.model_dump(mode="json") for one in audit.policy_limits]
    return hashlib.sha256(canonical_json({"name": audit.policy_name, "limits": limits})).hexdigest()
