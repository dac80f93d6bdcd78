"""A served file: only as it was audited and signed, and no longer than its weights stay what they were."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from signed_folder import DAY, NOW, audited_folder, certificate, new_key, stand_in, write_certificates, write_key
from torch import nn
from typer.testing import CliRunner

import crushproof
from crushproof.audit.cli import app
from crushproof.audit.export.signing import sign_audit
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, UnsafeInput
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.serving.attestation import Attestation, attested
from crushproof.targets.serving.buffers import Digests, Octets, watched_session
from crushproof.targets.serving.encryption import decrypted, encrypted
from crushproof.targets.serving.serve import Served, load
from crushproof.targets.serving.statement import ENVELOPE
from crushproof.targets.untrusted.model_file import check_onnx

X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A small CNN as float32 and as static int8."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    net = nn.Sequential(*layers).eval()
    small = Quantize().apply(net, Records(X, torch.zeros(8, dtype=torch.long)), Bounds.of(0, 1), seed=0)
    return {"int4": to_onnx(net, (1, 8, 8)), "int8": to_onnx(small, (1, 8, 8))}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Path:
    root = tmp_path_factory.mktemp("served")
    audited_folder(root, files)
    write_key(root / "key.pem", new_key())
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        sign_audit(root / "out", root / "key.pem")
    shutil.copy(root / "out" / ENVELOPE, root)
    for name, content in files.items():
        (root / f"{name}.onnx").write_bytes(content)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A device: two models, the signed statement beside them, the signer's public key."""
    for name in ("int8.onnx", "int4.onnx", ENVELOPE, "key.pub"):
        shutil.copy(template / name, tmp_path)
    return tmp_path


ANY = ("pass", "fail", "inconclusive")  # the synthetic audit's verdicts are not what is tested


def served(root: Path, name: str = "int8", **options: Any) -> Served:
    return load(root / f"{name}.onnx", root / "key.pub", verdicts=ANY, **options)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_was_audited_answers_as_it_was_audited(root: Path, files: dict[str, bytes], name: str) -> None:
    model = served(root, name)
    assert torch.equal(model.logits(X).argmax(1), OnnxTarget(files[name]).logits(X).argmax(1))
    torch.testing.assert_close(model.logits(X), OnnxTarget(files[name]).logits(X), atol=1e-5, rtol=1e-5)
    assert (model.admitted.name, model.unwatched, model.queries) == (name, (), 16)
    assert crushproof.load is load


def test_other_bytes_and_other_signers_are_refused(root: Path) -> None:
    path = root / "int8.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UnsafeInput, match=r"none of the 3 models .* changed after the audit, or belongs to another"):
        served(root)
    write_key(root / "other.pem", new_key())
    with pytest.raises(UnsafeInput, match="by another key"):
        load(root / "int4.onnx", root / "other.pub", verdicts=ANY)
    (root / ENVELOPE).unlink()
    with pytest.raises(UnsafeInput, match="is missing"):
        served(root, "int4")


def test_a_file_that_says_so_is_served_by_vote(root: Path) -> None:
    """By noise that no other process draws; a file that does not say so has no certified radius."""
    bare = served(root)
    with pytest.raises(InputError, match="not served by vote under noise"):
        bare.certified(X)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    known = Records(X, torch.zeros(8, dtype=torch.long))
    recipe = RECIPES.parse({"kind": "vote-under-noise", "samples": 8, "recipe": {"kind": "prune", "sparsity": 0.3}})
    content = to_onnx(recipe.apply(net, known, Bounds.of(0, 1), seed=0), (1, 8, 8))
    one, other = (Served(content, bare.admitted, within=4, query_budget=16, threads=1) for _ in range(2))
    answers = one.logits(X)
    assert ((answers.exp() * 8).round() / 8).clamp_min(1e-6).allclose(answers.exp()), "shares of eight votes"
    assert torch.equal(one.logits(X), answers), "asking again tells nothing"
    assert not torch.equal(other.logits(X), answers)
    labels, radii = other.certified(X)
    assert ((labels >= 0) == (radii >= 0)).all()
    with pytest.raises(InputError, match="query budget of 16"):
        one.certified(X)


def test_a_verdict_that_will_not_do(root: Path, template: Path) -> None:
    verdicts = {name: served(root, name).admitted.verdict for name in ("int8", "int4")}
    for name, verdict in verdicts.items():
        others = [one for one in ANY if one != verdict]
        with pytest.raises(UnsafeInput, match=f"the verdict of the audit .* is {verdict}, and "):
            load(root / f"{name}.onnx", root / "key.pub", verdicts=others)
        assert load(root / f"{name}.onnx", root / "key.pub", verdicts=verdict).admitted.verdict == verdict
    with pytest.raises(InputError, match="give some of pass"):
        load(root / "int8.onnx", root / "key.pub", verdicts="passed")


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_flip_in_any_buffer_changes_the_answers_and_is_noticed(files: dict[str, bytes], name: str) -> None:
    """The arrays are what the runtime multiplies with: flip one bit of each, look at the answers, put it back."""
    checked = check_onnx(files[name])
    made = watched_session(checked, 1)
    target = OnnxTarget(checked, session=made.session)
    before = target.logits(X)
    changed = 0
    for where, array in made.arrays.items():
        digests = Digests(made.arrays, 3)
        at = int(np.argmax(array != 0)) if array.any() else 0
        array[at] ^= 0x40
        try:
            changed += not torch.equal(target.logits(X), before)
        except InputError:  # of a shape: nothing fits any more
            changed += 1
        assert sum(where in (digests.check() or "") for _ in range(3)) == 1, "seen once in the three shares"
        array[at] ^= 0x40
    assert changed >= len(made.arrays) - 2  # a zero point of nothing, a bit below a rounding step
    assert torch.equal(target.logits(X), before)


def test_a_flip_in_use_stops_the_model_for_good(root: Path) -> None:
    model = served(root, within=4)
    for _ in range(5):
        model.logits(X)
    array = max(_arrays(model), key=len)
    array[len(array) // 2] ^= 1
    said = [_answers(model) for _ in range(4)]
    assert sum("in memory are no longer those that were audited" in one for one in said) >= 1
    array[len(array) // 2] ^= 1
    assert "Nothing is answered any more" in _answers(model)


def _answers(model: Served) -> str:
    try:
        model.logits(X)
    except UnsafeInput as error:
        return str(error)
    return ""


def _arrays(model: Served) -> list[Octets]:
    return [part for due in model._digests._rounds for _, _, part, _ in due]


def test_the_query_budget_ends(root: Path) -> None:
    model = served(root, query_budget=20)
    model.logits(X)
    model.logits(X)
    with pytest.raises(InputError, match="budget of 20 records does not reach for 8 more: 16 were answered"):
        model.logits(X)
    assert len(model.logits(X[:4])) == 4
    with pytest.raises(InputError, match="records are ndarray"):
        model.logits(X.numpy())  # type: ignore[arg-type]  # the mistake


def test_what_the_audit_does_not_speak_of_is_not_answered_and_costs_nothing(root: Path) -> None:
    """int8 kernels would make a class of NaN like of any value."""
    model = served(root, query_budget=9)
    for x, words in (
        (torch.where(X.flatten()[-1] < X, X, torch.nan), "Record 0 holds NaN or infinity"),
        (torch.full_like(X, -torch.inf), "none of these 8 is answered"),
        (X[0], r"\[1, 8, 8\]: the model takes \[n, 1, 8, 8\] of plain numbers"),
        (X[:, :, 1:], "the model takes"),
        (torch.tensor(1.0), "the model takes"),
        (X.to(torch.complex64), "of plain numbers"),
        (X.to_sparse(), "of plain numbers"),
    ):
        with pytest.raises(InputError, match=words):
            model.logits(x)
    assert model.queries == 0
    assert len(model.logits(X)) == 8
    for options in ({"within": 0}, {"within": 10**9}, {"query_budget": "5"}, {"threads": 0}):
        with pytest.raises(InputError, match="give a whole number, from 1 "):
            served(root, **options)
    with pytest.raises(InputError, match="as far from each other as copies"):
        served(root, honest=X[:1].expand(250, 1, 8, 8))


def test_a_weight_of_no_dimensions_stays_one() -> None:
    """The place that a sequence is read at, in a file of token ids."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.recurrent, self.out = nn.Embedding(9, 4), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.out(self.recurrent(self.embed(x.long()))[0][:, -1])
            return logits

    checked = check_onnx(to_onnx(Last().eval(), (5,)))
    made = watched_session(checked, 1)
    tokens = torch.randint(9, (6, 5), generator=torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(
        OnnxTarget(checked, session=made.session).logits(tokens), OnnxTarget(checked).logits(tokens)
    )


def test_a_client_whose_queries_look_like_an_extraction_gets_no_more_answers(root: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    model = served(root, honest=torch.rand(250, 1, 8, 8, generator=draw))
    start = torch.rand(110, 1, 8, 8, generator=draw)
    for client in ("honest", "thief"):
        assert model.logits(start, client).shape == (110, 10)
    model.logits(torch.rand(90, 1, 8, 8, generator=draw), "honest")
    with pytest.raises(InputError, match=r"queries those of client 'thief' look like an extraction"):
        model.logits(start[:90] + 0.01, "thief")
    asked = model.queries
    with pytest.raises(InputError, match="no more answers"):
        model.logits(X, "thief")
    assert model.queries == asked
    model.logits(X, "honest")


@settings(max_examples=30)
@given(content=st.binary(max_size=300), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_encryption_round_trip_and_any_changed_bit(
    content: bytes, at: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = tmp_path_factory.getbasetemp() / "model.key"
    key.write_text(secrets.token_hex(32) + "\n")
    sealed = encrypted(content, key)
    assert decrypted(sealed, key, Path("m")) == content
    assert content not in sealed or len(content) < 4
    raw = bytearray(sealed)
    raw[25 + at % (len(raw) - 25)] ^= 1 << bit  # behind the first line, which says what it is
    for other in (bytes(raw), sealed[:-1], sealed[:30]):
        with pytest.raises(UnsafeInput, match="cannot be decrypted"):
            decrypted(other, key, Path("m"))


def test_an_encrypted_file_is_served_with_its_key_alone(root: Path) -> None:
    key, sealed = root / "model.key", root / "sealed.onnx"
    key.write_text(secrets.token_hex(32))
    runner = CliRunner()
    done = runner.invoke(app, ["encrypt", str(root / "int8.onnx"), "--key", str(key), "--out", str(sealed)])
    assert done.exit_code == 0, done.output
    model = load(sealed, root / "key.pub", verdicts=ANY, decryption_key=key)
    assert torch.equal(model.logits(X), served(root).logits(X))
    with pytest.raises(InputError, match="is encrypted: name the file that holds its key"):
        load(sealed, root / "key.pub", verdicts=ANY)
    with pytest.raises(InputError, match="is not encrypted, and a key to decrypt it was named"):
        served(root, decryption_key=key)
    key.write_text("secret")
    with pytest.raises(InputError, match="wanted are 64 hexadecimal digits"):
        load(sealed, root / "key.pub", verdicts=ANY, decryption_key=key)


MODEL = hashlib.sha256(b"model").hexdigest()


def report(chip: ec.EllipticCurvePrivateKey, *, policy: int = 0x30000, model: str = MODEL) -> bytes:
    """As AMD's firmware writes it: its fields by the specification's offsets, signed by the chip."""
    raw = bytearray(1184)
    raw[0:4], raw[8:16], raw[0x34:0x38] = (2).to_bytes(4, "little"), policy.to_bytes(8, "little"), b"\1\0\0\0"
    raw[0x50:0x70], raw[0x90:0xC0] = bytes.fromhex(model), b"m" * 48
    for at, number in zip(
        (0x2A0, 0x2A0 + 72), decode_dss_signature(chip.sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384()))), strict=True
    ):
        raw[at : at + 72] = number.to_bytes(72, "little")
    return bytes(raw)


def test_an_attestation_holds_for_this_model_this_chip_and_this_guest(tmp_path: Path) -> None:
    chip, root_key = new_key(ec.SECP384R1()), new_key(ec.SECP384R1())
    root = certificate(root_key, authority=True, name="ARK")
    own = write_certificates(tmp_path / "vcek.pem", certificate(chip, (root, root_key), signs=""))
    trusted = write_certificates(tmp_path / "ark.pem", root)
    path = tmp_path / "report.bin"
    asked = Attestation(path, own, trusted)
    path.write_bytes(report(chip))
    found = attested(Attestation(path, own, trusted, measurement="6D" * 48), MODEL)
    assert found.words == f"AMD SEV-SNP, launch measurement {'6d' * 8}..., verified"
    for content, given_, words in (
        (report(chip), Attestation(path, own, trusted, measurement="00" * 48), "about another guest"),
        (report(chip, model="00" * 32), asked, "not about this model"),
        (report(chip, policy=0xB0000), asked, "may be debugged"),
        (report(root_key), asked, "another chip signed it"),
        (report(chip)[:0x90] + b"n" + report(chip)[0x91:], asked, "was changed"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnsafeInput, match=words):
            attested(given_, MODEL)
    path.write_bytes(report(chip))
    stranger = write_certificates(tmp_path / "x.pem", certificate(new_key(ec.SECP384R1()), authority=True, name="ARK"))
    with pytest.raises(UnsafeInput, match="is not trusted"):
        attested(Attestation(path, own, stranger), MODEL)
    late = certificate(chip, (root, root_key), signs="", first=NOW - 9 * DAY, last=NOW - DAY)
    with pytest.raises(UnsafeInput, match="expired on"):
        attested(Attestation(path, write_certificates(tmp_path / "late.pem", late), trusted), MODEL)
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="has 5 bytes, an AMD SEV-SNP report 1184"):
        attested(asked, MODEL)
