"""Public keys and certificates in PEM files: read with care, and whether a signature is by them.

Elliptic curves P-256, P-384 and P-521 alone, because OpenSSF model signing knows no other keys.
"""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..errors import InputError, quoted
from ..untrusted.files import ordinary_file

SIZE_CAP = 2**20  # bytes
HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
MADE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


class UntrustedError(Exception):
    """A certificate does not vouch for the key that signed; the message is a sentence."""


def public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The key to check a signature with.

    Raises:
        InputError: there is none, or it is of another kind.
    """
    name, raw = f"The key {quoted(path, 200)}", read_pem(path, "the key")
    if b"PRIVATE KEY" in raw:
        raise InputError(
            f"{name} is a private key. A signature is checked with its public half, which alone should travel: openssl "
            "pkey -in KEY -pubout -out public.pem"
        )
    if b"CERTIFICATE" in raw:
        raise InputError(f"{name} is a certificate: name it with --certificate instead of --key.")
    try:
        key = serialization.load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{name} holds no public key in PEM ({str(error)[:100]}).") from None
    return elliptic(key, name)


def certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file.

    Raises:
        InputError: there are none.
    """
    try:
        return read_certificates(read_pem(path, "the certificate"))
    except ValueError as error:
        raise InputError(f"{quoted(path, 200)} holds no certificate in PEM ({str(error)[:100]}).") from None


def read_certificates(raw: bytes) -> list[x509.Certificate]:
    """The certificates in PEM text. Raises ValueError."""
    return x509.load_pem_x509_certificates(raw)


def trusted_key(signer: list[x509.Certificate], trusted: list[x509.Certificate]) -> ec.EllipticCurvePublicKey:
    """The key of whoever signed, when certificates that the verifier trusts vouch for it today.

    A signature carries no time that could be proven, so that one whose certificate has expired is not accepted.

    Args:
        signer: the signer's certificate and its issuers', as the signature carries them; empty: the signer is the
            first of `trusted`.
        trusted: the signer's own certificate, or issuers'.

    Raises:
        UntrustedError: nobody vouches for it, or the certificate is not valid now.
    """
    chain = signer or trusted[:1]
    check_chain(chain, trusted, "the signer")
    if signer and not may_sign(chain[0]):
        raise UntrustedError("the certificate of the signer does not allow its key to sign")
    try:
        return elliptic(public_of(chain[0], "The certificate"), "The certificate of the signer")
    except InputError as error:
        raise UntrustedError(f"the certificate of the signer cannot be used: {str(error)[:200]}") from None


def check_chain(chain: list[x509.Certificate], trusted: list[x509.Certificate], whose: str) -> None:
    """That trusted certificates vouch for the first of `chain` today, by way of the others.

    Raises:
        UntrustedError: they do not, or it is not valid now.
    """
    from OpenSSL import crypto

    if (wrong := not_valid(chain[0])) is not None:
        raise UntrustedError(f"the certificate of {whose} {wrong}")
    try:
        store = crypto.X509Store()
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # the signer's own may be what is trusted
        for one in trusted:
            store.add_cert(crypto.X509.from_cryptography(one))
        own, *others = [crypto.X509.from_cryptography(one) for one in chain]
        crypto.X509StoreContext(store, own, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        raise UntrustedError(f"the certificate of {whose} is not trusted: {str(error)[:200]}") from None
    except (crypto.Error, ValueError, UnsupportedAlgorithm) as error:
        raise UntrustedError(f"the certificate of {whose} cannot be used: {str(error)[:200]}") from None


def keyid(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 (hex) of the key in DER."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(encoding, form)).hexdigest()


def verifies(key: ec.EllipticCurvePublicKey, signature: bytes, raw: bytes) -> bool:
    try:
        key.verify(signature, raw, ec.ECDSA(HASHES[key.curve.name]))
    except InvalidSignature:
        return False
    return True


def read_pem(path: Path, what: str) -> bytes:
    with ordinary_file(path, what, SIZE_CAP).open("rb") as stream:
        return stream.read(SIZE_CAP)


def elliptic(key: object, name: str) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in HASHES:
        raise InputError(f"{name} holds a key of a kind that OpenSSF model signing does not know. {wanted(key)}")
    return key


def wanted(key: object) -> str:
    curve = getattr(getattr(key, "curve", None), "name", None) or type(key).__name__.strip("_")
    return f"It is {curve}; wanted is an elliptic curve key, P-256, P-384 or P-521. To make one: {MADE}"


def public_of(certificate: x509.Certificate, name: str) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{name} has a key that cannot be read ({str(error)[:100]}).") from None


def not_valid(certificate: x509.Certificate) -> str | None:
    now = datetime.datetime.now(datetime.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        return f"is not valid before {first:%Y-%m-%d %H:%M} UTC"
    return f"expired on {last:%Y-%m-%d %H:%M} UTC" if now > last else None


def may_sign(certificate: x509.Certificate) -> bool:
    """The rule of OpenSSF model signing."""
    try:
        said = [one.value for one in certificate.extensions]
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False
    return any(
        (isinstance(one, x509.KeyUsage) and one.digital_signature)
        or (isinstance(one, x509.ExtendedKeyUsage) and x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in one)
        for one in said
    )
