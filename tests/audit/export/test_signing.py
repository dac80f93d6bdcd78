"""A signed audit: what was signed verifies, by other tools too, and one changed byte anywhere is named."""

from __future__ import annotations

import base64
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate
from signed_folder import (
    DAY,
    FINISHED,
    NOW,
    RECORD,
    audited_folder,
    certificate,
    new_key,
    stand_in,
    write_certificates,
    write_key,
)
from typer.testing import CliRunner

import crushproof
from crushproof.audit.cli import app
from crushproof.audit.engine.cells import cell_key
from crushproof.audit.engine.store import Store
from crushproof.audit.export.checking import Checked, check_signature, signed
from crushproof.audit.export.signing import sign_audit
from crushproof.targets.errors import InputError, UnsafeInput
from crushproof.targets.serving.json_text import canonical_json
from crushproof.targets.serving.statement import ENVELOPE

KEY, EXTENDED = new_key(), "extended key usage"
MODEL = f"evidence/cells/{cell_key('model', 'int4')[:2]}/{cell_key('model', 'int4')}/files/model.onnx"
PAGE = Path(crushproof.__file__).parent / "docs" / "signing.md"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed audit (out), its plan, and the key."""
    root = tmp_path_factory.mktemp("signed")
    audited_folder(root)
    write_key(root / "key.pem", KEY)
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        sign_audit(root / "out", root / "key.pem")
    return root


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "copy")


def check(root: Path, key: str = "key.pub") -> Checked:
    return check_signature(root / "out", key=root / key)


def flip(path: Path, at: int | None = None) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 1
    path.write_bytes(raw)


def test_round_trip(root: Path) -> None:
    checked = check(root)
    assert (checked.differs, checked.absent) == ([], [])
    assert checked.statement is not None
    said = checked.statement.predicate
    audit = json.loads((root / "out/audit.json").read_text())
    assert (said.verdict, said.plan_digest, said.policy) == (audit["verdict"], audit["plan_digest"], "release")
    assert (said.suite_version, said.fixed_at) == (
        audit["environment"]["versions"]["crushproof"],
        RECORD.fixed,
    )
    names = [row.name for row in checked.statement.subject]
    assert {"audit.json", "report.html", "resolved-plan.yaml", MODEL, f"{MODEL}.sig", FINISHED, f"{FINISHED}.sig"} <= {
        *names
    }
    assert sum(name.endswith("/manifest.json") for name in names) == 1 + len(audit["candidates"] + audit["findings"])
    assert {name: one.signature is not None for name, one in said.models.items()} == {
        row["name"]: row["name"] in ("int8", "int4") for row in audit["candidates"]
    }
    assert signed(root / "out")
    assert not signed(root / "plan")
    with Store(root / "out") as store:
        assert all(store.has(path.name) for path in (root / "out/evidence/cells").glob("??/*")), "evidence stays intact"


def test_one_changed_byte_is_named_and_a_missing_file_too(root: Path) -> None:
    result = Path(MODEL).parents[1]
    inside = ["audit.json", "report.html", "resolved-plan.yaml", MODEL, f"{MODEL}.sig"]
    inside += [f"{result}/{name}" for name in ("manifest.json", "document.json", "files/payload.bin")]
    for name in [*inside, f"../plan/{FINISHED}", f"../plan/{FINISHED}.sig"]:
        path = (root / "out" / name).resolve()
        shown = f"'{name if name in inside else path}'"
        kept = path.read_bytes()
        flip(path)
        assert check(root).differs == [f"{shown} was changed after it was signed."]
        path.unlink()
        checked = check(root)
        if path.name == Path(FINISHED).name:  # where there is none, the copy in the evidence is what was checked
            assert (checked.differs, checked.absent) == ([], [FINISHED, f"{FINISHED}.sig"])
        else:
            assert checked.differs == [f"{shown} is missing."]
        path.write_bytes(kept)
    assert check(root).differs == []


def test_a_finished_file_is_checked_where_it_lay_and_where_the_plan_names_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = shutil.copytree(root / "plan", root / "elsewhere/plan")
    flip(elsewhere / FINISHED)
    assert check(root).differs == []
    named = check_signature(root / "out", key=root / "key.pub", home=elsewhere)
    assert named.differs == [f"'{elsewhere / FINISHED}' was changed after it was signed."]
    shutil.rmtree(root / "plan")
    assert check(root).absent == [FINISHED, f"{FINISHED}.sig"]
    monkeypatch.chdir(elsewhere)
    assert check(root).differs == [f"'{FINISHED}' was changed after it was signed."]


def test_the_audit_may_be_named_by_its_file(root: Path) -> None:
    named = root / "out" / "audit.json"
    done = CliRunner().invoke(app, ["sign", str(named), "--key", str(root / "key.pem")])
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"wrote {root / 'out' / ENVELOPE}\n")
    assert check_signature(named, key=root / "key.pub").differs == []


def test_a_packed_file_is_signed_as_it_is(root: Path) -> None:
    path = root / "plan" / FINISHED
    path.write_bytes(gzip.compress(path.read_bytes()))
    sign_audit(root / "out", root / "key.pem")
    assert check(root).differs == []
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert "changed" in check(root).differs[0]


def test_other_tools_verify_it(root: Path) -> None:
    """OpenSSF's own verifier on the models; openssl and sha256sum on the rest, by the commands of the documentation."""
    from model_signing.verifying import Config

    for model in (root / "out" / MODEL, root / "plan" / FINISHED):
        check = Config().use_elliptic_key_verifier(public_key=root / "key.pub")
        check.verify(model, model.with_name(f"{model.name}.sig"))
        flip(model)
        with pytest.raises(ValueError, match="mismatch"):
            check.verify(model, model.with_name(f"{model.name}.sig"))
        flip(model)
    shutil.copy(root / "key.pub", root / "out/public.pem")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (commands,) = (block for block in blocks if "openssl dgst" in block)
    run = lambda: subprocess.run(["bash", "-ec", commands], cwd=root / "out", capture_output=True, text=True)  # noqa: E731 (two calls of one line)
    done = run()
    assert done.returncode == 0, done.stderr
    assert "Verified OK" in done.stdout
    assert "audit.json: OK" in done.stdout
    assert "FAILED" not in done.stdout
    flip(root / "out/report.html")
    assert "report.html: FAILED" in run().stdout


def test_another_key_and_no_signature(root: Path) -> None:
    write_key(root / "other.pem", new_key())
    (sentence,) = check(root, "other.pub").differs
    assert "by another key" in sentence
    assert check(root, "other.pub").statement is None
    envelope = json.loads((root / "out" / ENVELOPE).read_text())
    write_key(root / "curve.pem", new_key(ec.SECP384R1()))
    sign_audit(root / "out", root / "curve.pem")
    assert check(root, "curve.pub").differs == []
    own = json.loads((root / "out" / ENVELOPE).read_text())["signatures"][0]["keyid"]
    envelope["signatures"][0]["keyid"] = own
    (root / "out" / ENVELOPE).write_text(json.dumps(envelope))
    assert "does not hold" in check(root, "curve.pub").differs[0], "a key id proves nothing"
    (root / "out" / ENVELOPE).unlink()
    assert "not signed" in check(root).differs[0]


def test_certificates(root: Path) -> None:
    other = new_key()
    authority = certificate(other, authority=True, name="authority")
    middle_key = new_key()
    middle = certificate(middle_key, (authority, other), authority=True, name="middle")
    leaf = certificate(KEY, (middle, middle_key))
    chain = write_certificates(root / "chain.pem", leaf, middle)
    sign_audit(root / "out", root / "key.pem", chain)
    stranger = certificate(new_key(), authority=True, name="authority")
    expired = certificate(other, authority=True, name="authority", first=NOW - 2 * DAY, last=NOW - DAY)
    trusted = {"authority": authority, "middle": middle, "leaf": leaf, "stranger": stranger, "expired": expired}
    told = {}
    for name, one in trusted.items():
        path = write_certificates(root / f"{name}.pem", one)
        told[name] = check_signature(root / "out", certificate=path).differs
    assert told["authority"] == told["middle"] == told["leaf"] == []
    assert "not trusted" in told["stranger"][0]
    assert "expired" in told["expired"][0]
    from model_signing.verifying import Config

    Config().use_certificate_verifier(certificate_chain=[root / "authority.pem"]).verify(
        root / "out" / MODEL, root / "out" / f"{MODEL}.sig"
    )


def test_a_signer_whose_certificate_has_expired_since(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its day of signing cannot be proven. Signing with it was refused before."""
    old = write_certificates(root / "old.pem", certificate(KEY, first=NOW - 9 * DAY, last=NOW - DAY))
    with pytest.raises(InputError, match="expired on"):
        sign_audit(root / "out", root / "key.pem", old)
    new = write_certificates(root / "new.pem", certificate(KEY, first=NOW + DAY))
    assert "not valid before" in check_signature(root / "out", certificate=new).differs[0]
    sign_audit(root / "out", root / "key.pem", write_certificates(root / "x.pem", certificate(KEY, signs=EXTENDED)))
    for module in ("crushproof.targets.serving.keys", "crushproof.audit.export.signing_keys"):
        monkeypatch.setattr(f"{module}.not_valid", lambda _: None)
    sign_audit(root / "out", root / "key.pem", old)
    monkeypatch.undo()
    (sentence,) = check_signature(root / "out", certificate=old).differs
    assert "expired on" in sentence


def envelope_with(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(raw: bytes) -> bytes:
        values = json.loads(raw)
        change(values)
        return json.dumps(values).encode()

    return changed


def signed_again(payload: bytes) -> Callable[[bytes], bytes]:
    """Whatever the signer has signed for another purpose."""
    from crushproof.audit.export.signing_keys import sign
    from crushproof.targets.serving.keys import keyid
    from crushproof.targets.serving.statement import envelope_line, signed_bytes

    return lambda _: envelope_line(payload, sign(KEY, signed_bytes(payload)), keyid(KEY.public_key()), None).encode()


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no JSON": lambda _: b"{",
    "no UTF-8": lambda raw: b"\xff\xfe" + raw,
    "nested": lambda _: b"[" * 100_000,
    "a list": lambda _: b"[]",
    "NaN": lambda raw: raw.replace(b'"signatures"', b'"x":NaN,"signatures"'),
    "a key twice": lambda raw: raw.replace(b'"signatures"', b'"payload":"","signatures"'),
    "a key more": envelope_with(lambda one: one.update(x=1)),
    "other type": envelope_with(lambda one: one.update(payloadType="text/plain")),
    "no signature": envelope_with(lambda one: one.update(signatures=[])),
    "two signatures": envelope_with(lambda one: one["signatures"].append(one["signatures"][0])),
    "a number": envelope_with(lambda one: one.update(payload=5)),
    "no base64": envelope_with(lambda one: one.update(payload="*")),
    "other base64": envelope_with(lambda one: one.update(payload=one["payload"] + "\n")),
    "signature no DER": envelope_with(lambda one: one["signatures"][0].update(sig="AAAA")),
    "certificate": envelope_with(lambda one: one["signatures"][0].update(cert="x" * 2**20)),
    "other statement": signed_again(b'{"_type":"https://in-toto.io/Statement/v1","predicateType":"x","predicate":{}}'),
    "text": signed_again(b"\xff"),
    "surrogates": signed_again(b'{"\\ud800": 1}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_envelopes(root: Path, name: str) -> None:
    path = root / "out" / ENVELOPE
    path.write_bytes(HOSTILE[name](path.read_bytes()))
    (sentence,) = check(root).differs
    assert re.search(r"is malformed: .|does not hold: .", sentence), sentence
    sentence.encode()


def test_hostile_certificates_and_files_of_other_kinds(root: Path) -> None:
    path = root / "out" / ENVELOPE
    trusted = write_certificates(root / "mine.pem", certificate(KEY))
    raw = path.read_bytes()
    lines = trusted.read_text().splitlines()
    for cert in ("", "x", "\ud800", "\n".join([lines[0], lines[1], lines[-1]]), "\n".join(lines[:-1])):
        path.write_bytes(envelope_with(lambda one, cert=cert: one["signatures"][0].update(cert=cert))(raw))
        (sentence,) = check_signature(root / "out", certificate=trusted).differs
        assert "malformed" in sentence or "does not hold" in sentence
    path.unlink()
    for make in (os.mkfifo, os.mkdir, lambda at: os.symlink("/dev/zero", at), lambda at: os.symlink("nowhere", at)):
        make(path)
        assert "malformed" in check(root).differs[0]
        path.rmdir() if path.is_dir() else path.unlink()
    report = root / "out/report.html"
    report.unlink()
    os.mkfifo(report)
    path.write_bytes(raw)
    assert check(root).differs == ["'report.html' was changed after it was signed."]


def test_any_changed_byte_of_the_envelope(root: Path) -> None:
    path = root / "out" / ENVELOPE
    raw = path.read_bytes()
    for at in range(3, len(raw) - 1, 211):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert check(root).differs, f"byte {at}"


def test_keys_that_cannot_sign_or_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRUSHPROOF_KEY_PASSWORD", raising=False)
    locked = write_key(root / "locked.pem", KEY, b"secret")
    write_key(root / "ed25519.pem", ed25519.Ed25519PrivateKey.generate())
    write_key(root / "rsa.pem", rsa.generate_private_key(65537, 1024))
    write_key(root / "koblitz.pem", new_key(ec.SECP256K1()))
    (root / "noise.pem").write_bytes(os.urandom(100))
    write_certificates(root / "mine.pem", certificate(KEY))
    table = {
        "locked.pem": "CRUSHPROOF_KEY_PASSWORD",
        "key.pub": "is a public key",
        "mine.pem": "is a certificate",
        "ed25519.pem": "Ed25519.*P-256",
        "rsa.pem": "RSA.*P-256",
        "koblitz.pem": "secp256k1.*P-256",
        "noise.pem": "no private key in PEM",
        "nowhere.pem": "does not exist",
    }
    for name, words in table.items():
        with pytest.raises(InputError, match=words):
            sign_audit(root / "out", root / name)
    for name, words in {"key.pem": "is a private key", "mine.pem": "--certificate", "ed25519.pub": "P-256"}.items():
        with pytest.raises(InputError, match=words):
            check(root, name)
    for name in ("key.pub", "noise.pem"):
        with pytest.raises(InputError, match="no certificate"):
            check_signature(root / "out", certificate=root / name)
    for both in ({}, {"key": root / "key.pub", "certificate": root / "mine.pem"}):
        with pytest.raises(InputError, match="one of the two"):
            check_signature(root / "out", **both)
    der = certificate(KEY).public_bytes(Encoding.DER)
    twice = load_der_x509_certificate(der.replace(b"\x55\x1d\x13", b"\x55\x1d\x0f"))  # two extensions of one name
    for one, words in (
        (certificate(new_key()), "another key"),
        (certificate(KEY, signs=""), "may sign"),
        (twice, "may sign"),
    ):
        with pytest.raises(InputError, match=words):
            sign_audit(root / "out", root / "key.pem", write_certificates(root / "bad.pem", one))
    monkeypatch.setenv("CRUSHPROOF_KEY_PASSWORD", "wrong")
    with pytest.raises(InputError, match="cannot be decrypted"):
        sign_audit(root / "out", locked)
    monkeypatch.setenv("CRUSHPROOF_KEY_PASSWORD", "secret")
    sign_audit(root / "out", locked)
    assert check(root).differs == []
    secret = base64.b64decode("".join((root / "key.pem").read_text().splitlines()[1:-1]))
    kept = [path for path in (root / "out").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if secret in path.read_bytes() or b"PRIVATE KEY" in path.read_bytes()]


def test_what_is_not_one_audit_is_not_signed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, key = root / "out", root / "key.pem"
    (out / ENVELOPE).unlink()

    def refused(error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            sign_audit(out, key)
        assert not signed(out)

    flip(root / "plan" / FINISHED)
    refused(InputError, "not the file that was audited as int8")
    (root / "plan" / FINISHED).unlink()
    assert sign_audit(out, key).absent == {"int8": FINISHED}
    (out / ENVELOPE).unlink()
    flip(out / MODEL)
    refused(UnsafeInput, "not what its manifest says")
    flip(out / MODEL)
    manifest = out / Path(MODEL).parents[1] / "manifest.json"
    listed = json.loads(manifest.read_text())
    (out / MODEL).write_bytes(b"another model")
    listed["files/model.onnx"] = hashlib.sha256(b"another model").hexdigest()
    manifest.write_bytes(canonical_json(listed))
    refused(UnsafeInput, "no model with the digest that audit.json gives int4")
    monkeypatch.undo()
    refused(InputError, "cannot be verified: .*record")  # the invented figures
    shutil.rmtree(out / "evidence")
    refused(InputError, "cannot be verified")


def test_the_command_says_what_it_signed(root: Path) -> None:
    def call(*words: str | Path) -> Any:
        return CliRunner().invoke(app, ["sign", *map(str, words)])

    out = root / "out"
    (out / ENVELOPE).unlink()
    done = call(out, "--key", root / "key.pem")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    audit = json.loads((out / "audit.json").read_text())
    for words in (
        f"verdict: {audit['verdict'].upper()}",
        audit["plan_digest"][:16],
        "int4 (",
        f"{MODEL}.sig",
        ENVELOPE,
    ):
        assert words in text
    assert check(root).differs == []
    assert call(out).exit_code == 2
    assert call(out, "--key", root / "key.pub").exit_code == 2
    assert call(root / "plan", "--key", root / "key.pem").exit_code == 2
    with (out / "evidence/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call(out, "--key", root / "key.pem").exit_code == 3
    (out / "evidence/lock").unlink()
    os.mkfifo(out / "evidence/lock")  # nobody is waited for
    assert call(out, "--key", root / "key.pem").exit_code == 2
    (out / "evidence/lock").unlink()
    flip(out / MODEL)
    assert call(out, "--key", root / "key.pem").exit_code == 5


def test_a_check_needs_neither_torch_nor_the_library_that_signed(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from crushproof.audit.export.checking import check_signature as check\n"
        f"assert check(Path({str(root / 'out')!r}), key=Path({str(root / 'key.pub')!r})).differs == []\n"
        "print([name for name in ('torch', 'model_signing', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
