"""A model file's own signature in the form of OpenSSF model signing, written by its library.

Its verifier is not asked: it takes no account of an expired certificate (it sets the time of the check to the
certificate's first day). The statement about the audit holds the signature's digest instead, as of every other file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...targets.temporary import scratch
from ..writing import write
from .signing_keys import plain_pem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


def write_model_signature(
    model: Path, signature: Path, key: ec.EllipticCurvePrivateKey, certificate: Path | None
) -> None:
    """Signs a model file, as `model_signing sign key` (or `certificate`) does.

    Args:
        certificate: PEM: the signer's, then its issuers'.

    Raises:
        OSError: the signature cannot be written.
    """
    from model_signing.signing import Config

    with scratch() as folder, _through_a_pipe(plain_pem(key)) as path:
        config = Config()
        if certificate is None:
            config.use_elliptic_key_signer(private_key=path)
        else:
            config.use_certificate_signer(
                private_key=path, signing_certificate=certificate, certificate_chain=[certificate]
            )
        config.sign(model.resolve(), folder / "signature")
        write(signature, (folder / "signature").read_text("utf-8"))


@contextlib.contextmanager
def _through_a_pipe(secret: bytes) -> Iterator[Path]:
    """A path that can be read once: the library wants one, and a private key is never written to a disk."""
    reading, writing = os.pipe()
    try:
        with open(writing, "wb") as stream:
            stream.write(secret)
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
