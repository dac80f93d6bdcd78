"""`crushproof sign`, and what `crushproof verify` says of a signature."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
        from ..schema.standing import ENVELOPE
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
        typer.echo(f"wrote {folder / ENVELOPE}")


def signature_check(folder: Path, key: Path | None, certificate: Path | None, plan: Path | None = None) -> Check:
    """One line of `crushproof verify`: whether the audit is as it was signed by whom the verifier trusts.

    Args:
        key, certificate: see `check_signature`; neither: only whether it is signed is said, and nothing is checked.
        plan: where it lies, if that is known.

    Raises:
        InputError: both are given, or what is given is no key and no certificate.
    """
    from ..verification.checks import Check
    from .checking import check_signature, signed

    if key is None and certificate is None:
        words = "not looked at: name --key or --certificate" if signed(folder) else "none: the evidence is unsigned"
        return Check("signature", "left", words)
    found = check_signature(folder, key=key, certificate=certificate, home=None if plan is None else plan.parent)
    if found.statement is None or found.differs:
        return Check("signature", "bad", " ".join(found.differs))
    said = found.statement.predicate
    words = f"{len(found.statement.subject)} files as they were signed; plan and policy were fixed at {said.fixed_at}"
    if found.absent:
        words += f". Not here, so that their stored copies were looked at: {', '.join(found.absent)}"
    return Check("signature", "ok", words)
