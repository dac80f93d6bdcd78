"""A served model: what the checks cost, whether a changed weight in memory is noticed, how long decryption takes.

    python benchmarks/serving.py [--json FILE]

The network is the MNIST CNN of compression.py (124,266 parameters, untrained: only its time counts), as float32 and as
static int8, at batch 32. `checks`: answers of `Served` against its own session without them; `a check`: the part of
such an answer that checks of records, weights and budget take, by themselves, which a loaded machine blurs less.
`buffers of ours`: that session against ONNX Runtime's usual one, which packs operands and keeps them to itself.
`flips`: one bit of a weight in the runtime's buffers, 200 times, each in a model of its own. CPU seconds, one thread.
(Needs the `sign` extra.)
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compression_nets import mnist_cnn
from contract import Row, alternate, arguments, publish

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import Target
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.serving.buffers import Digests, watched_session
from crushproof.targets.serving.encryption import decrypted, encrypted
from crushproof.targets.serving.serve import Admitted, Served
from crushproof.targets.untrusted.model_file import check_onnx

BATCH, CALLS, CHECKS, WITHIN, FLIPS, SIZE = 32, 30, 2000, 32, 200, 100_000_000


def files() -> dict[str, bytes]:
    torch.manual_seed(0)
    net = mnist_cnn().eval()
    known = Records(torch.rand(256, 1, 28, 28), torch.zeros(256, dtype=torch.long))
    small = Quantize().apply(net, known, Bounds.of(0, 1), seed=0)
    return {"float32": to_onnx(net, (1, 28, 28)), "static int8": to_onnx(small, (1, 28, 28))}


def costs(name: str, content: bytes) -> list[Row]:
    statement: Any = None  # none is looked at here
    admitted = Admitted(name, "pass", hashlib.sha256(content).hexdigest(), statement, None)
    served = Served(content, admitted, within=WITHIN, query_budget=None, threads=1)
    checked = check_onnx(content)
    bare = served._target  # the same session: two of them differ by how their buffers lie in memory
    usual, x = OnnxTarget(checked), torch.rand(BATCH, 1, 28, 28)

    def ask(target: Target) -> None:
        for _ in range(CALLS):
            target.logits(x)

    mine, without, default = (
        one / CALLS * 1000 for one in alternate(lambda: ask(served), lambda: ask(bare), lambda: ask(usual), rounds=7)
    )
    setting = f"MNIST CNN, {name}, batch {BATCH}, every byte within {WITHIN} calls"
    started = time.process_time()
    for _ in range(CHECKS):
        served._check(x)
    alone = (time.process_time() - started) / CHECKS * 1000
    return [
        Row("a check", setting, alone / without, "share", target=0.05),
        Row("checks", setting, mine, "ms", without, target=1.05),
        Row("buffers of ours", f"MNIST CNN, {name}, batch {BATCH}", without, "ms", default),
    ]


def noticed(name: str, content: bytes) -> Row:
    made = watched_session(check_onnx(content), 1)
    weights = max(made.arrays.values(), key=len)
    seen = 0
    for place in np.random.default_rng(0).integers(0, 8 * len(weights), FLIPS):
        digests = Digests(made.arrays, WITHIN)
        weights[place // 8] ^= np.uint8(1 << place % 8)
        seen += any(digests.check() is not None for _ in range(WITHIN))
        weights[place // 8] ^= np.uint8(1 << place % 8)
    setting = f"one bit of the largest tensor, {name}, within {WITHIN} calls"
    return Row("flips noticed", setting, seen / FLIPS, "share", target=1.0, better="higher")


def decryption() -> Row:
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "model.key"
        key.write_text(secrets.token_hex(32))
        sealed = encrypted(os.urandom(SIZE), key)
        seconds = []
        for _ in range(3):
            started = time.process_time()
            decrypted(sealed, key, key)
            seconds.append(time.process_time() - started)
    return Row("decryption", "100 MB, AES-256-GCM", sorted(seconds)[1], "s", target=1.0)


def main() -> None:
    chosen = arguments(__doc__ or "")
    torch.set_num_threads(1)
    rows = [decryption()]
    for name, content in files().items():
        rows += [*costs(name, content), noticed(name, content)]
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
