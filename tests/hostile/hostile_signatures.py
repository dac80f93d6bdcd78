"""Signatures: keys and certificates that are none or of another kind, and envelopes that lie."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hostile_audits import audit
from hostile_case import UNSAFE, USAGE, Case

PKCS8, NO_PASSWORD = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


def private(key: Any, password: bytes | None = None) -> bytes:
    how = NO_PASSWORD if password is None else serialization.BestAvailableEncryption(password)
    return bytes(key.private_bytes(serialization.Encoding.PEM, PKCS8, how))


def public(key: Any) -> bytes:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))


@cache
def keys() -> dict[str, bytes]:
    own = ec.generate_private_key(ec.SECP256R1())
    return {
        "private": private(own),
        "public": public(own),
        "encrypted": private(own, b"secret"),
        "rsa": private(rsa.generate_private_key(65537, 1024)),
        "edwards": private(ed25519.Ed25519PrivateKey.generate()),
        "koblitz": private(ec.generate_private_key(ec.SECP256K1())),
        "public edwards": public(ed25519.Ed25519PrivateKey.generate()),
        "public koblitz": public(ec.generate_private_key(ec.SECP256K1())),
    }


def no_keys() -> dict[str, bytes]:
    """What is no key at all."""
    return {
        "text": b"my secret key",
        "HTML": b"<html>",
        "zeros": bytes(500),
        "a head alone": b"-----BEGIN PRIVATE KEY-----\n",
        "nothing between head and tail": b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        "words between head and tail": b"-----BEGIN EC PRIVATE KEY-----\nhello\n-----END EC PRIVATE KEY-----\n",
        "zeros between head and tail": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "a certificate of nothing": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "cut off": keys()["private"][:120],
        "no UTF-8": b"\xff\xfe" * 40,
        "2 MB": b"x" * 2**21,
    }


def envelopes() -> dict[str, bytes]:
    good = {
        "payload": base64.b64encode(b"{}").decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": "0" * 64, "sig": "AAAA"}],
    }

    def with_(**changed: Any) -> bytes:
        return json.dumps({**good, **changed}).encode()

    return {
        "by nobody": with_(),
        "no JSON": b"signed, me",
        "a list": b"[]",
        "NaN": b'{"payload": NaN}',
        "nested deep": b'{"payload": ' + b"[" * 100_000,
        "5,000 digits": b'{"payload": ' + b"9" * 5000 + b"}",
        "a key twice": b'{"payload": "", "payload": ""}',
        "no UTF-8": b"\xff\xff",
        "zeros": bytes(100),
        "no signature": with_(signatures=[]),
        "two signatures": with_(signatures=good["signatures"] * 2),
        "a signature that is a number": with_(signatures=[1]),
        "a signature that is no base64": with_(signatures=[{"keyid": "0", "sig": "@@@"}]),
        "a signature too long": with_(signatures=[{"keyid": "0", "sig": "A" * 9999}]),
        "a certificate that is none": with_(signatures=[{"keyid": "0", "sig": "AAAA", "cert": "x"}]),
        "a certificate of zeros": with_(signatures=[{"keyid": "0", "sig": "AAAA", "cert": "\0" * 50}]),
        "half a surrogate pair": b'{"payload": "\\ud800"}',
        "a payload that is no base64": with_(payload="@@@@"),
        "a payload that is a number": with_(payload=1),
        "a payload of another type": with_(payloadType="text/html"),
        "one thing more": with_(more=1),
    }


def asked(words: list[str], **files: bytes) -> Callable[[Path], list[str]]:
    def call(folder: Path) -> list[str]:
        (folder / "audit.json").write_text(json.dumps(audit()))
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        return words

    return call


def cases() -> Iterator[Case]:
    sign, check = ["sign", ".", "--key", "key"], ["verify", ".", "--key", "key"]
    trust = ["verify", ".", "--certificate", "key"]
    for name, content in no_keys().items():
        for words in (sign, check, trust):
            yield Case(f"{words[0]} {words[2]}: {name}", asked(words, key=content), USAGE)
    for name in ("rsa", "edwards", "koblitz", "encrypted", "public"):
        yield Case(f"sign: {name}", asked(sign, key=keys()[name]), USAGE)
    for name in ("private", "encrypted", "public edwards", "public koblitz"):
        yield Case(f"verify: {name}", asked(check, key=keys()[name]), USAGE)
    yield Case("verify: a key for a certificate", asked(trust, key=keys()["public"]), USAGE)
    yield Case("verify: both", asked([*check, "--certificate", "key"], key=keys()["public"]), USAGE)
    yield Case("verify: unsigned", asked(check, key=keys()["public"]), UNSAFE)
    yield Case("sign: no evidence", asked(sign, key=keys()["private"]), UNSAFE)
    for name, content in envelopes().items():
        files = {"key": keys()["public"], "audit__intoto__jsonl": content}
        yield Case(f"verify: an envelope, {name}", asked(check, **files), UNSAFE)
