"""Whether a statement about an audit was signed by somebody who is trusted."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError, quoted
from .statement import MalformedError, Statement, decoded, read_envelope, signed_bytes, statement_in


class UnsignedError(Exception):
    """There is no statement that a trusted signature covers; the message is a sentence."""


def signed_statement(path: Path, *, key: Path | None = None, certificate: Path | None = None) -> Statement:
    """The statement in an envelope, once its signature holds.

    Args:
        key: the signer's public key, PEM; or
        certificate: the signer's certificate or an issuer's, PEM.

    Raises:
        InputError: not one of the two is given, or it is not what it should be.
        UnsignedError: the envelope is missing or malformed, or its signature does not hold.
    """
    if (key is None) == (certificate is None):
        raise InputError("A signature is checked against a key or against a certificate: name one of the two.")
    need("cryptography", "OpenSSL")
    from .keys import UntrustedError, certificates, keyid, public_key, read_certificates, trusted_key, verifies

    own = None if key is None else public_key(key)
    trusted = [] if certificate is None else certificates(certificate)
    name = f"The signature {quoted(path, 200)}"
    if not os.path.lexists(path):
        raise UnsignedError(f"{name} is missing: this audit is not signed.")
    try:
        envelope = read_envelope(path)
        payload = decoded(envelope.payload, "its payload")
        (one,) = envelope.signatures
        if own is None:
            try:
                chain = [] if one.cert is None else read_certificates(one.cert.encode())
            except ValueError as error:
                raise MalformedError(f"its certificate cannot be read ({str(error)[:100]})") from None
            own = trusted_key(chain, trusted)
        if one.keyid != keyid(own):
            raise UnsignedError(f"{name} does not hold: it is by another key.")
        if not verifies(own, decoded(one.sig, "its signature"), signed_bytes(payload)):
            raise UnsignedError(f"{name} does not hold: it was changed, or is by another key.")
        return statement_in(payload)
    except MalformedError as error:
        raise UnsignedError(f"{name} is malformed: {error}.") from None
    except UntrustedError as error:
        raise UnsignedError(f"{name} does not hold: {error}.") from None


def need(*packages: str) -> None:
    """Raises InputError where packages of the `sign` extra are not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(f"Signatures need {', '.join(missing)}: pip install 'crushproof[sign]'")
