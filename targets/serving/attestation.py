"""What a processor attests of the enclave a model runs in: AMD SEV-SNP attestation reports, read and verified.

The form is that of AMD's SEV-SNP firmware ABI specification (document 56860), table ATTESTATION_REPORT: 1184 bytes, of
which the first 672 are signed by the chip's own key (VCEK) with ECDSA P-384 and SHA-384. Other enclaves (Intel TDX, Arm
CCA, Nitro) are not read: what is said of them is declared, not verified.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, UnsafeInput, quoted
from ..untrusted.files import ordinary_file
from .envelope import need

SIZE, SIGNED = 1184, 672  # bytes
ECDSA_P384_SHA384 = 1
NUMBER = 72  # bytes of each of the signature's two numbers, the lowest first
DEBUG = 1 << 19  # bit of the guest's policy: whoever owns the host may read the enclave's memory
VERSIONS = range(2, 6)


@dataclass(frozen=True)
class Attestation:
    """A report and who vouches for it.

    Args:
        report: the file that the guest got from its firmware (1184 bytes).
        certificate: PEM: the chip's VCEK, then AMD's intermediate (ASK).
        issuer: PEM: the root that is trusted (ARK of that processor family).
        measurement: 96 hexadecimal digits: the launch measurement that the guest must have; None: any, and it is only
            reported.
    """

    report: Path
    certificate: Path
    issuer: Path
    measurement: str | None = None


@dataclass(frozen=True)
class SnpReport:
    """What a verified report says.

    Args:
        measurement: hex, of the memory that the guest was launched with.
        policy: of the guest, as a bit field.
        report_data: hex, 64 bytes that the guest chose: here the first 32 are the model's sha256.
    """

    version: int
    measurement: str
    policy: int
    report_data: str

    @property
    def words(self) -> str:
        return f"AMD SEV-SNP, launch measurement {self.measurement[:16]}..., verified"


def attested(given: Attestation, model_sha256: str) -> SnpReport:
    """The report, once its signature holds and it is about a guest that serves this model and cannot be debugged.

    Raises:
        InputError: a file is missing, or is not what it should be.
        UnsafeInput: the report does not hold, or is about something else.
    """
    need("cryptography", "OpenSSL")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    from .keys import UntrustedError, certificates, check_chain

    name = f"The attestation {quoted(given.report, 200)}"
    raw = ordinary_file(given.report, "the attestation", 2**16).read_bytes()
    if len(raw) != SIZE:
        raise InputError(f"{name} has {len(raw)} bytes, an AMD SEV-SNP report {SIZE}. Other forms are not read.")
    version, _, policy = struct.unpack_from("<IIQ", raw, 0)
    (algorithm,) = struct.unpack_from("<I", raw, 0x34)
    if version not in VERSIONS or algorithm != ECDSA_P384_SHA384:
        raise InputError(
            f"{name} is of version {version} with signature algorithm {algorithm}; read are the versions "
            f"{VERSIONS.start} to {VERSIONS.stop - 1}, signed by ECDSA P-384 (1)."
        )
    chain, trusted = certificates(given.certificate), certificates(given.issuer)
    try:
        check_chain(chain, trusted, "the chip")
    except UntrustedError as error:
        raise UnsafeInput(f"{name} does not hold: {error}.") from None
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise InputError(f"{quoted(given.certificate, 200)} is no VCEK: its key is not of the curve P-384.")
    numbers = (raw[at : at + NUMBER] for at in (SIGNED, SIGNED + NUMBER))
    signature = encode_dss_signature(*(int.from_bytes(one, "little") for one in numbers))
    try:
        key.verify(signature, raw[:SIGNED], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise UnsafeInput(f"{name} does not hold: it was changed, or another chip signed it.") from None
    report = SnpReport(version, raw[0x90:0xC0].hex(), policy, raw[0x50:0x90].hex())
    if report.policy & DEBUG:
        raise UnsafeInput(f"{name} is about a guest that may be debugged: its host can read what it holds.")
    if not report.report_data.startswith(model_sha256):
        raise UnsafeInput(f"{name} is not about this model: its report data does not begin with the model's sha256.")
    if given.measurement is not None and report.measurement != given.measurement.lower():
        raise UnsafeInput(
            f"{name} is about another guest: its launch measurement is {report.measurement[:16]}..., and "
            f"{given.measurement[:16].lower()}... is asked for."
        )
    return report
