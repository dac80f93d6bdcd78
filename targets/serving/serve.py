"""A file is served only as it was audited: signature, digest and verdict are checked first, its weights in use."""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ..errors import InputError, UnsafeInput, quoted
from ..model import Target
from ..runtimes.onnx import OnnxTarget
from ..untrusted.files import ordinary_file
from ..untrusted.model_file import check_onnx
from ..untrusted.other_formats import unpacked
from .attestation import Attestation, SnpReport, attested
from .buffers import Digests, watched_session
from .encryption import decrypted, is_encrypted
from .envelope import UnsignedError, signed_statement
from .query_streams import Watcher
from .smoothed import Counts, Floats, Voted, vote_of
from .statement import ENVELOPE, RowVerdict, SignedModel, Statement

LARGEST = 2 * 2**30  # bytes of a model
WITHIN = 100_000  # calls that look at every byte of the weights, at most
PASSED: frozenset[RowVerdict] = frozenset({"pass"})


@dataclass(frozen=True)
class Admitted:
    """What the signed statement says of a file that is served.

    Args:
        name: of the candidate.
        verdict: on it.
        sha256: hex, of its bytes as they were audited.
        statement: as it was signed.
        enclave: what a processor attests of this machine; None: nothing was supplied, and nothing is claimed.
    """

    name: str
    verdict: RowVerdict
    sha256: str
    statement: Statement
    enclave: SnpReport | None


class Served:
    """An audited model that answers, and stops answering once its weights in memory are no longer what was audited.

    A `Target`. Made by `load`. Calls of several threads are answered one after another. A file that says so is served
    by majority vote under noise, as it was audited; the key of the noise is drawn here and told nobody.

    Args:
        within: calls that together look at every byte of the weights: a change is noticed at the latest by so many
            calls after it, before that call answers.
        query_budget: records that are answered in all; None: no limit.
        honest: float32 [n, *shape], n at least 200, queries as one honest client asks them. A client whose own look
            otherwise gets no more answers (`query_streams.Watcher`). They count in `queries`. None: nobody watches.
    """

    def __init__(
        self,
        content: bytes,
        admitted: Admitted,
        *,
        within: int,
        query_budget: int | None,
        threads: int,
        honest: Tensor | None = None,
    ) -> None:
        for name, value in (
            ("within", within),
            ("query_budget", 1 if query_budget is None else query_budget),
            ("threads", threads),
        ):
            if not isinstance(value, int) or value < 1 or (name == "within" and value > WITHIN):
                most = f"to {WITHIN:,}" if name == "within" else "on"
                raise InputError(f"{name} is {quoted(str(value))}: give a whole number, from 1 {most}.")
        checked = check_onnx(content)
        made = watched_session(checked, threads)
        self.admitted = admitted
        self.unwatched = made.unwatched
        self._target: Target = OnnxTarget(checked, threads, session=made.session)
        if (vote := vote_of(checked.model)) is not None:
            self._target = Voted(self._target, vote, secrets.randbits(62))
        self._record = checked.inputs[0].shape[1:]
        self._lock = threading.Lock()
        self._digests = Digests(made.arrays, within)
        self._budget = query_budget
        self._stopped: str | None = None
        self._watcher: Watcher | None = None
        if honest is not None:
            self._check_records(honest)
            self._watcher = Watcher.calibrated(honest, self._target.logits(honest).argmax(1))

    @property
    def queries(self) -> int:
        """Records answered so far."""
        return self._target.queries

    def logits(self, x: Tensor, client: str = "") -> Tensor:
        """float32 [n, classes], what the audited file answers for x [n, *shape].

        Args:
            client: who asks, where queries are watched: a name that it cannot choose itself.

        Raises:
            UnsafeInput: the weights in memory were changed since the file was loaded. Nothing is answered any more.
            InputError: the records do not fit the model, or hold what is no finite number; the query budget does not
                reach for them; or the client's queries look like an extraction: then neither these nor later ones are
                answered.
        """
        with self._lock:
            self._check(x)
            if self._watcher is None:
                return self._target.logits(x)
            if self._watcher.noticed(client) is None:
                answers = self._target.logits(x)
                self._watcher.see(client, x, answers.argmax(1))
            after = self._watcher.noticed(client)
        if after is not None:
            raise InputError(
                f"After {after:,} queries those of client {quoted(client)} look like an extraction of the model: their "
                "distances to earlier ones are not spread as an honest client's are. It gets no more answers."
            )
        return answers

    def certified(self, x: Tensor, *, alpha: float = 0.001) -> tuple[Counts, Floats]:
        """Labels int64 [n] and the L2 radii float64 [n], in [0, 1] units, as `Voted.certified`. Nobody watches these
        queries: they are for the owner's use.

        Raises:
            InputError: the file is not served by vote under noise; or as `logits`.
            UnsafeInput: as `logits`.
        """
        if not isinstance(self._target, Voted):
            raise InputError(
                f"{quoted(self.admitted.name)} is not served by vote under noise, so it has no certified radius: audit "
                "a candidate with `defense: randomized-smoothing`."
            )
        with self._lock:
            self._check(x)
            return self._target.certified(x, alpha=alpha)

    def _check_records(self, x: Tensor) -> None:
        """Whether the model can answer them, and the audit speaks of such."""
        if not isinstance(x, Tensor):
            raise InputError(
                f"The records are {type(x).__name__}. Give a tensor: torch.from_numpy(x) makes one of an array."
            )
        plain = x.layout == torch.strided and not (x.is_quantized or x.is_complex() or x.is_meta)
        fits = x.dim() == 1 + len(self._record) and all(
            not isinstance(own, int) or size == own for size, own in zip(x.shape[1:], self._record, strict=False)
        )
        if not plain or not fits:
            wanted = ", ".join(map(str, ("n", *self._record)))
            raise InputError(f"The records are {x.dtype} {list(x.shape)}: the model takes [{wanted}] of plain numbers.")
        if math.isfinite(float(x.sum())):  # quicker than a look at each value; of finite ones it may overflow
            return
        sound = x.isfinite().flatten(1).all(1)
        if not bool(sound.all()):
            first = int((~sound).nonzero()[0])
            raise InputError(
                f"Record {first} holds NaN or infinity. The audit says nothing about such inputs, so none of these "
                f"{len(x):,} is answered."
            )

    def _check(self, x: Tensor) -> None:
        """Whether these records may be answered."""
        self._check_records(x)
        changed = None if self._stopped else self._digests.check()
        if changed is not None:
            self._stopped = (
                f"The weights of {quoted(self.admitted.name)} in memory are no longer those that were audited "
                f"({changed}). Nothing is answered any more: load the file again, and find out what writes there."
            )
        if self._stopped is not None:
            raise UnsafeInput(self._stopped)
        if self._budget is not None and self.queries + len(x) > self._budget:
            raise InputError(
                f"The query budget of {self._budget:,} records does not reach for {len(x):,} more: {self.queries:,} "
                "were answered."
            )


def load(
    path: Path | str,
    key: Path | str | None = None,
    *,
    certificate: Path | str | None = None,
    statement: Path | str | None = None,
    verdicts: RowVerdict | Collection[RowVerdict] = PASSED,
    decryption_key: Path | str | None = None,
    attestation: Attestation | None = None,
    within: int = 32,
    query_budget: int | None = None,
    honest: Tensor | None = None,
    threads: int = 1,
) -> Served:
    """An ONNX file, ready to answer, if a signed audit (`crushproof sign`) says that it may ship.

    Args:
        path: the file that was audited, as it is, gzipped or encrypted (`crushproof encrypt`).
        key: the signer's public key, PEM; or
        certificate: the signer's certificate or an issuer's, PEM.
        statement: the audit's `audit.intoto.jsonl`; None: the one beside the file.
        verdicts: on this model, that are good enough; one alone may be given as it is.
        decryption_key: of an encrypted file: 64 hexadecimal digits in a file.
        attestation: of the enclave that this runs in; where it is given it must hold.
        within, query_budget, honest: see `Served`.
        threads: of the runtime, within an operator.

    Raises:
        InputError: key, certificate or file cannot be used, or the file is no ONNX file.
        UnsafeInput: signature, digest, verdict, decryption or attestation do not hold. Nothing was run.
    """
    verdicts = {verdicts} if isinstance(verdicts, str) else set(verdicts)
    unknown = verdicts - set(get_args(RowVerdict))
    if unknown or not verdicts:
        raise InputError(
            f"verdicts names {quoted(', '.join(sorted(map(str, unknown)))) if unknown else 'none'}: give some of "
            f"{', '.join(get_args(RowVerdict))}."
        )
    path = Path(path)
    envelope = path.with_name(ENVELOPE) if statement is None else Path(statement)
    try:
        said = signed_statement(
            envelope,
            key=None if key is None else Path(key),
            certificate=None if certificate is None else Path(certificate),
        )
    except UnsignedError as error:
        raise UnsafeInput(f"{quoted(path, 200)} is not served: {error}") from None
    content = ordinary_file(path, "the model", LARGEST).read_bytes()
    if is_encrypted(content):
        if decryption_key is None:
            raise InputError(f"{quoted(path, 200)} is encrypted: name the file that holds its key (decryption_key).")
        content = decrypted(content, Path(decryption_key), path)
    elif decryption_key is not None:
        raise InputError(f"{quoted(path, 200)} is not encrypted, and a key to decrypt it was named: is it the file?")
    content = unpacked(content, path.name, LARGEST)
    name, model = _admitted(path, hashlib.sha256(content).hexdigest(), said, verdicts)
    enclave = None if attestation is None else attested(attestation, model.sha256)
    admitted = Admitted(name, model.verdict, model.sha256, said, enclave)
    return Served(content, admitted, within=within, query_budget=query_budget, threads=threads, honest=honest)


def _admitted(path: Path, digest: str, said: Statement, verdicts: Collection[RowVerdict]) -> tuple[str, SignedModel]:
    """The model of the statement that has this digest, if its verdict will do."""
    audit = said.predicate
    found = {name: model for name, model in audit.models.items() if model.sha256 == digest}
    if not found:
        raise UnsafeInput(
            f"{quoted(path, 200)} is not served: its bytes (sha256 {digest[:16]}...) are none of the "
            f"{len(audit.models)} models of the audit {quoted(audit.name)}. It was changed after the audit, or belongs "
            "to another one."
        )
    for name, model in found.items():
        if model.verdict in verdicts:
            return name, model
    name, model = next(iter(found.items()))
    raise UnsafeInput(
        f"{quoted(path, 200)} is not served: the verdict of the audit {quoted(audit.name)} on {quoted(name)} is "
        f"{model.verdict}, and {' or '.join(sorted(verdicts))} is asked for."
    )
