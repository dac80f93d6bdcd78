"""Signed audits: how long it takes to check one whose model has 100 MB, which lies there twice: finished, and stored.

Beside it `model_signing verify key` on one such file, by its library. The files are in the page cache. (Needs the
`sign` extra.)
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from contract import Row, alternate, arguments, publish
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing.verifying import Config

from crushproof.audit.engine.cells import Result
from crushproof.audit.engine.store import Store
from crushproof.audit.export.checking import check_signature
from crushproof.audit.export.model_signature import write_model_signature
from crushproof.audit.export.signing_keys import sign
from crushproof.audit.export.subjects import digests_of, of_the_folder, results_in
from crushproof.targets.serving.keys import keyid
from crushproof.targets.serving.statement import (
    ENVELOPE,
    AuditPredicate,
    Digest,
    SignedModel,
    Statement,
    Subject,
    envelope_line,
    payload_of,
    signed_bytes,
)

SIZE, RESULTS, ROUNDS = 100_000_000, 300, 5


def signed_folder(root: Path) -> tuple[Path, Path, Path]:
    """An audit's folder with 300 results, the finished model beside it, and the public key."""
    out, model, content = root / "out", root / "model.onnx", os.urandom(SIZE)
    model.write_bytes(content)
    with Store(out) as store:
        store.put(64 * "a", Result(files={"model.onnx": content}))
        for number in range(RESULTS):
            store.put(hashlib.sha256(bytes([number % 256, number // 256])).hexdigest(), Result(document={"n": number}))
    (out / "audit.json").write_text("{}")
    (out / "report.html").write_bytes(b"<p>")
    key = ec.generate_private_key(ec.SECP256R1())
    write_model_signature(model, root / "model.onnx.sig", key, None)
    results = results_in(out)
    subjects = results.manifests | of_the_folder(out)
    subjects |= digests_of({"model.onnx": model, "model.onnx.sig": root / "model.onnx.sig"})
    own = SignedModel(
        verdict="pass",
        sha256=subjects["model.onnx"],
        stored=results.models[subjects["model.onnx"]],
        file="model.onnx",
        seen_from_here="../model.onnx",
        signature="model.onnx.sig",
    )
    predicate = AuditPredicate(
        name="benchmark",
        verdict="pass",
        plan_digest="",
        policy="release",
        policy_digest=64 * "0",
        suite_version=None,
        fixed_at="",
        release=["model"],
        models={"model": own},
    )
    rows = [Subject(name=name, digest=Digest(sha256=digest)) for name, digest in sorted(subjects.items())]
    payload = payload_of(Statement(subject=rows, predicate=predicate))
    line = envelope_line(payload, sign(key, signed_bytes(payload)), keyid(key.public_key()), None)
    (out / ENVELOPE).write_text(line)
    public = root / "public.pem"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return out, model, public


def seconds(work: Callable[[], object]) -> float:
    """Median wall seconds."""
    measured = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        work()
        measured.append(time.perf_counter() - before)
    return statistics.median(measured)


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        out, model, public = signed_folder(Path(folder))
        assert check_signature(out, key=public).differs == []
        theirs = Config().use_elliptic_key_verifier(public_key=public)
        code = (
            "import sys; from pathlib import Path; from crushproof.audit.export.checking import check_signature\n"
            "assert check_signature(Path(sys.argv[1]), key=Path(sys.argv[2])).differs == []"
        )
        ours, peer = alternate(
            lambda: check_signature(out, key=public), lambda: theirs.verify(model, f"{model}.sig"), rounds=ROUNDS
        )
        wall = seconds(lambda: check_signature(out, key=public))
        process = seconds(lambda: subprocess.run([sys.executable, "-c", code, out, public], check=True))
    where = f"a model of {SIZE / 1e6:.0f} MB and its stored copy, {RESULTS} results"
    rows = [
        Row("check of a signed audit, CPU", where, ours, "s", target=1.0),
        Row("by the clock, on two cores", where, wall, "s"),
        Row("by the clock, in a fresh process", where, process, "s"),
        Row("OpenSSF model signing's verifier, CPU", "the model alone", peer, "s"),
    ]
    publish(rows, options.json)


if __name__ == "__main__":
    main()
