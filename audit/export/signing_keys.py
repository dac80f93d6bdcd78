"""Private keys to sign an audit with, and whether a certificate is theirs. Nothing here writes."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...targets.errors import InputError, quoted
from ...targets.serving.keys import HASHES, MADE, elliptic, may_sign, not_valid, public_of, read_pem, wanted

PASSWORD = "CRUSHPROOF_KEY_PASSWORD"  # the name of an environment variable


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key to sign with. The password of an encrypted one is taken from CRUSHPROOF_KEY_PASSWORD.

    Raises:
        InputError: there is none, it is of another kind, or the password is missing or wrong.
    """
    name, raw = f"The key {quoted(path, 200)}", read_pem(path, "the key")
    password = os.environ.get(PASSWORD)
    try:
        key = serialization.load_pem_private_key(raw, None)
    except TypeError:  # it is encrypted
        if not password:
            raise InputError(f"{name} is encrypted: give its password in the environment as {PASSWORD}.") from None
        try:
            key = serialization.load_pem_private_key(raw, password.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(f"{name} cannot be decrypted with the password in {PASSWORD}.") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "a public key" if b"PUBLIC KEY" in raw else "a certificate" if b"CERTIFICATE" in raw else None
        found = f"is {what}" if what else f"holds no private key in PEM ({str(error)[:100]})"
        raise InputError(f"{name} {found}: to sign, name the private key. To make one: {MADE}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in HASHES:
        raise InputError(f"{name} is of a kind that OpenSSF model signing does not know. {wanted(key)}")
    return key


def check_signer(chain: list[x509.Certificate], key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """That a certificate is the key's, may sign and is valid now.

    Raises:
        InputError: it is not so.
    """
    name = f"The certificate {quoted(path, 200)}"
    if elliptic(public_of(chain[0], name), name) != key.public_key():
        raise InputError(f"{name} belongs to another key. The signer's own comes first in its file.")
    if (wrong := not_valid(chain[0])) is not None:
        raise InputError(f"{name} {wrong}. Sign with one that is valid.")
    if not may_sign(chain[0]):
        raise InputError(
            f"{name} does not say that its key may sign, and OpenSSF model signing refuses such ones. Have it made "
            "with keyUsage=digitalSignature or extendedKeyUsage=codeSigning."
        )


def sign(key: ec.EllipticCurvePrivateKey, raw: bytes) -> bytes:
    """The signature (DER)."""
    return key.sign(raw, ec.ECDSA(HASHES[key.curve.name]))


def plain_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key in PEM, not encrypted: for a pipe to a library, never for a file."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def pem(chain: list[x509.Certificate]) -> str:
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in chain)
