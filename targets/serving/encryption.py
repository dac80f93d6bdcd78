"""A model at rest, encrypted by AES-256-GCM (NIST SP 800-38D): who lacks the key can neither read nor change it."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UnsafeInput, quoted
from ..untrusted.files import ordinary_file
from .envelope import need

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"crushproof AES-256-GCM 1\n"  # the first bytes of an encrypted file; authenticated with the rest
NONCE = 12  # bytes, drawn anew for every file
MADE = "openssl rand -hex 32 > model.key"


def is_encrypted(content: bytes) -> bool:
    return content.startswith(MAGIC)


def encrypted(content: bytes, key: Path) -> bytes:
    """`content` under the key in a file: MAGIC, a nonce, and the ciphertext with its tag.

    Raises:
        InputError: the file holds no key.
    """
    cipher, nonce = _cipher(key), secrets.token_bytes(NONCE)
    sealed: bytes = cipher.encrypt(nonce, content, MAGIC)
    return MAGIC + nonce + sealed


def decrypted(content: bytes, key: Path, name: Path) -> bytes:
    """What was encrypted.

    Args:
        name: of the encrypted file, for the message.

    Raises:
        InputError: the file named as the key holds none.
        UnsafeInput: it was encrypted by another key, or changed since.
    """
    cipher = _cipher(key)  # says which package is missing before anything of it is imported here
    from cryptography.exceptions import InvalidTag

    start = len(MAGIC)
    try:
        plain: bytes = cipher.decrypt(content[start : start + NONCE], content[start + NONCE :], MAGIC)
    except (InvalidTag, ValueError):
        raise UnsafeInput(
            f"{quoted(name, 200)} cannot be decrypted with {quoted(key, 200)}: another key encrypted it, or it was "
            "changed or cut off since."
        ) from None
    return plain


def _cipher(key: Path) -> AESGCM:
    need("cryptography")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    text = ordinary_file(key, "the key", 2**16).read_bytes().strip()
    if re.fullmatch(rb"[0-9a-fA-F]{64}", text) is None:
        raise InputError(
            f"{quoted(key, 200)} holds no key to encrypt with: wanted are 64 hexadecimal digits. To make one: {MADE}"
        )
    return AESGCM(bytes.fromhex(text.decode()))
