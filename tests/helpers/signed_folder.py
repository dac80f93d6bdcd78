"""The folder of an audit with invented figures and a real store of evidence; keys and certificates to sign it with."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from synthetic_audit import synthetic_audit

from crushproof.audit.engine.cells import Result, cell_key
from crushproof.audit.engine.store import Store
from crushproof.audit.schema.rows import RecordedAt
from crushproof.audit.schema.standing import MEASURED
from crushproof.audit.verdict.judging import rejudge
from crushproof.audit.verdict.policy import BUILT_IN

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
MODELS = ("dense", "int8", "int4")
RECORD = RecordedAt(key=cell_key("record"), digest=64 * "0", ended=64 * "0", fixed="2026-11-26 08:00:00 UTC")
FINISHED = "files/int8.onnx"  # as the plan names it, which lies in the folder `plan`


def audited_folder(root: Path, models: dict[str, bytes] | None = None) -> Path:
    """`root`/out as an audit of `root`/plan/plan.yaml leaves it: int8 was a finished file there, int4 was made here.

    Args:
        models: the bytes of some models, by candidate.
    """
    out = root / "out"
    audit = synthetic_audit()
    with Store(out) as store:
        rows = []
        for row in [one for one in audit.candidates if one.name in MODELS]:
            content = (models or {}).get(row.name, f"the bytes of {row.name}".encode())
            store.put(cell_key("model", row.name), Result(files={"model.onnx": content, "payload.bin": b"packed"}))
            rows.append(row.model_copy(update={"digest": hashlib.sha256(content).hexdigest()}))
        findings = []
        for one in [one for one in audit.findings if one.candidate in MODELS]:
            key = cell_key("attack", one.id)
            store.put(key, Result({"evidence/fooled": np.arange(9)}, {"finding": one.id}))
            path, digest = store.evidence(key)
            told = {
                "evidence": path,
                "evidence_digest": digest,
                "reproduce": "crushproof audit plan/plan.yaml --only x",
                "transfers": [other for other in one.transfers if other.model in MODELS],
            }
            findings.append(one.model_copy(update=told))
        store.put(RECORD.key, Result(document={}))
    environment = audit.environment.model_copy(update={"record": RECORD})
    update = {"candidates": rows, "findings": findings, "release": ["int8", "int4"], "environment": environment}
    audit = rejudge(audit.model_copy(update=update), BUILT_IN["release"])
    (out / "audit.json").write_text(audit.model_dump_json(by_alias=True, indent=1))
    (out / "report.html").write_text("<p>report")
    (out / "resolved-plan.yaml").write_text("name: digits\n")
    (root / "plan/files").mkdir(parents=True)
    (root / "plan" / FINISHED).write_bytes((models or {}).get("int8", b"the bytes of int8"))
    return out


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """The invented figures follow from no evidence: signing takes them, and the plan, as they stand."""
    asked = {
        "name": "digits",
        "data": {"kind": "digits"},
        "model": {"architecture": "crushproof.training.networks:digits_mlp"},
        "candidates": {"int8": {"file": FINISHED}, "int4": "int4"},
    }
    record = SimpleNamespace(home="../plan", asked=asked, versions={"crushproof": "0.1.0"})
    home = "crushproof.audit.export.signing"
    patch.setattr(f"{home}.held_against_evidence", lambda read, _: (read, MEASURED))
    patch.setattr(f"{home}.verify", lambda _: [])
    patch.setattr(f"{home}.render", lambda _, path, standing: path.write_text(f"<p>{standing.words}"))
    patch.setattr(f"{home}.read_record", lambda *_: (record, None))


def new_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def write_key(path: Path, key: Any, password: bytes | None = None) -> Path:
    """Writes a private key, and its public half beside it: `key.pem`, `key.pub`."""
    how = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, how))
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, public))
    return path


def certificate(
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    *,
    first: datetime.datetime = NOW - DAY,
    last: datetime.datetime = NOW + 30 * DAY,
    signs: str = "key usage",
    authority: bool = False,
    name: str = "somebody",
) -> x509.Certificate:
    """A certificate of `key`, by itself or by an issuer."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if signs == "extended key usage":
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    elif signs:
        others = dict.fromkeys(["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False)
        usage = x509.KeyUsage(
            digital_signature=not authority,
            key_cert_sign=authority,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
            **others,
        )
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())


def write_certificates(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates))
    return path
