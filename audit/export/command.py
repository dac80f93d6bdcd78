"""`crushproof sign`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..exit_codes import exit_codes


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
        from .checking import ENVELOPE
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
