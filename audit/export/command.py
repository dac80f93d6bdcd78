"""The commands `sign`, `verify`, `encrypt` and `exposure`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...targets.errors import UnsafeInput
from ..exit_codes import exit_codes

if TYPE_CHECKING:
    from ..verification.checks import Check


def sign(
    folder: Annotated[Path, typer.Argument(help="Holds audit.json, report.html and the evidence.")],
    key: Annotated[Path, typer.Option(help="A private key in PEM: P-256, P-384 or P-521.")],
    certificate: Annotated[
        Path | None, typer.Option(help="In PEM: the key's certificate, then those of its issuers.")
    ] = None,
) -> None:
    """Sign a finished audit, and each model up for release.

    Writes audit.intoto.jsonl, and a .sig beside the models. The password of an encrypted key: CRUSHPROOF_KEY_PASSWORD.
    """
    with exit_codes():
        from ...targets.serving.statement import ENVELOPE
        from ..schema.read import folder_of
        from .signing import sign_audit

        done = sign_audit(folder, key, certificate)
        said = done.statement.predicate
        typer.echo(f"signed by the key {done.keyid[:16]}: audit.json, report.html, {done.results} results of evidence")
        typer.echo(f"verdict: {said.verdict.upper()}; plan {said.plan_digest[:16]}; policy {said.policy_digest[:16]}")
        for name, one in said.models.items():
            path = done.signatures.get(name)
            own = (
                "no signature of its own, not up for release"
                if path is None
                else f"its own signature: {os.path.normpath(path)}"
            )
            typer.echo(f"model {name} ({one.verdict}): {one.sha256[:16]}; {own}")
        for name, file in done.absent.items():
            typer.echo(f"{file} is not where it was: the stored copy of {name} was signed in its place.")
        typer.echo(f"wrote {folder_of(folder) / ENVELOPE}")


def verify(
    folder: Annotated[Path, typer.Argument(help="Holds audit.json and its evidence.")],
    plan: Annotated[Path | None, typer.Option(help="The plan, if it is not where it was.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also ask the deployed files again; runs the plan's own code.")
    ] = False,
    key: Annotated[Path | None, typer.Option(help="The signer's public key, in PEM: check the signature too.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Or a certificate that is trusted, in PEM.")] = None,
) -> None:
    """Hold an audit.json against its evidence, its plan, its files and its signature.

    Every figure and verdict is made again from the evidence; exit 5 says what differs.
    """
    with exit_codes():
        from ..verification.checks import verify as checks_of

        with contextlib.redirect_stdout(sys.stderr):  # what the plan's own code prints
            checks = [_signature(folder, key, certificate, plan), *checks_of(folder, plan, deep=deep)]
        for check in checks:
            typer.echo(f"{check.state:>4}  {check.what}: {check.words}")
        bad = [check for check in checks if check.state == "bad"]
        left = [check.what for check in checks if check.state == "left"]
        if bad:
            raise UnsafeInput(f"{folder} does not verify: {', '.join(check.what for check in bad)}.")
        typer.echo(f"VERIFIED: {folder}" + (f" (not looked at: {', '.join(left)})" if left else ""))


def encrypt(
    model: Annotated[Path, typer.Argument(help="The file to encrypt.")],
    key: Annotated[Path, typer.Option(help="64 hexadecimal digits in a file: openssl rand -hex 32 > model.key")],
    out: Annotated[Path, typer.Option(help="The file to write; it must not be there yet.")],
) -> None:
    """Encrypt a model for a disk (AES-256-GCM); `crushproof.load` serves it with the key.

    The signature of the audit stays that of the model itself: it is checked after decryption.
    """
    with exit_codes():
        from ...targets.errors import InputError, quoted
        from ...targets.serving.encryption import encrypted
        from ...targets.serving.serve import LARGEST
        from ...targets.untrusted.files import ordinary_file
        from ..writing import write_new

        if os.path.lexists(out):
            raise InputError(f"{quoted(out, 200)} is there already: name a file that is not, or remove it.")
        write_new(out, encrypted(ordinary_file(model, "the model", LARGEST).read_bytes(), key))
        typer.echo(f"wrote {out}: AES-256-GCM; only who has {key} can read it.")


def exposure(
    folder: Annotated[Path, typer.Argument(help="Holds audit.json and its evidence.")],
    out: Annotated[Path, typer.Option(help="The file to write; it must not be there yet.")] = Path("exposure.csv"),
) -> None:
    """Write how exposed each training record is, by id: for the data officer, and SENSITIVE.

    Of audits with the attack `exposure`. The file says who was in training; it is readable by you alone (mode 0600).
    """
    with exit_codes():
        from .per_record import write_per_record

        written = write_per_record(folder, out)
        typer.echo(f"wrote {out}: {written} lines. SENSITIVE: it names training records. Delete it when it is read.")


def _signature(folder: Path, key: Path | None, certificate: Path | None, plan: Path | None) -> Check:
    from ..verification.checks import Check
    from .checking import check_signature, signed

    if key is None and certificate is None:
        claims = "there is one: name --key or --certificate" if signed(folder) else "unsigned"
        return Check("signature", "left", claims)
    home = None if plan is None else plan.parent
    found = check_signature(folder, key=key, certificate=certificate, home=home)
    if found.differs:
        return Check("signature", "bad", " ".join(found.differs))
    gone = "".join(f"; {name} is not where it was, its stored copy was looked at" for name in found.absent)
    return Check("signature", "ok", f"audit, report, evidence and models are as they were signed{gone}")
