"""Leakage: planted records are found wherever and however they are written, clean files stay clean, nothing is run."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import pickle
import time
import zipfile
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from evasion_cases import case_of
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from safetensors.torch import save as torch_save
from torch import nn

from crushproof.attacks.measurement import Found
from crushproof.attacks.preparation import Ran
from crushproof.attacks.reconstruction.information import agreement
from crushproof.attacks.reconstruction.leakage import Known, Leakage
from crushproof.attacks.reconstruction.moments import Rows, over_windows, window_moments
from crushproof.attacks.reconstruction.search import rows_of, search_file
from crushproof.attacks.reconstruction.signatures import RecordSignatures, rows_in
from crushproof.attacks.reconstruction.words import words_in
from crushproof.targets.data.data import Data
from crushproof.targets.errors import UnsafeInput
from crushproof.targets.form import check_arrays

IDS = [3, 77, 500]


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"w{at}": (rng.standard_normal((32, 48)) * 0.1).astype(np.float32) for at in range(2)}


def onnx_file(tensors: list[onnx.TensorProto], metadata: dict[str, str] | None = None, seed: int = 0) -> bytes:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    kept = [numpy_helper.from_array(values, name) for name, values in weights(seed).items()]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:], [*kept, *tensors]
    )
    model = helper.make_model(graph)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def typed(rows: np.ndarray) -> onnx.TensorProto:
    kind = TensorProto.FLOAT if rows.dtype == np.float32 else TensorProto.UINT8
    return helper.make_tensor("rows", kind, rows.shape, rows.ravel().tolist())


def node_constant(rows: np.ndarray) -> bytes:
    model = onnx.load_from_string(onnx_file([]))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(rows, "")))
    return model.SerializeToString()


def exported(rows: np.ndarray) -> bytes:
    """As torch.export.save lays a file out, without its seconds: the example input is an archive in the archive."""
    inner, stream = io.BytesIO(), io.BytesIO()
    torch.save(((torch.from_numpy(rows),), {}), inner)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data/sample_inputs/model.pt", inner.getvalue())
        archive.writestr("archive/data/weights/w", weights()["w0"].tobytes())
    return stream.getvalue()


def view_of_storage(rows: np.ndarray) -> bytes:
    """A file that shows one value, and keeps the storage behind it."""
    stream = io.BytesIO()
    torch.save({"w": torch.from_numpy(rows)[1:2, :1]}, stream)
    return stream.getvalue()


def compressed(rows: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, rows=rows, **weights())
    return stream.getvalue()


def flat_buffers(rows: np.ndarray) -> bytes:
    """As TFLite lays a vector out: its length, then its bytes, in the order of the columns here."""
    return bytes(4) + b"TFL3" + bytes(40) + rows.nbytes.to_bytes(4, "little") + rows.T.tobytes() + bytes(64)


def array_file(rows: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(rows))
    return stream.getvalue()


def torch_columns(rows: np.ndarray) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.from_numpy(rows.T.copy()).T}, stream)
    return stream.getvalue()


def packed(rows: np.ndarray) -> bytes:
    """A file in an archive, whose values lie in the order of the columns."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/model.safetensors", save({"a": rows.T.copy()}))
    return stream.getvalue()


FILES: dict[str, Any] = {
    "base64 in lines": lambda rows: base64.encodebytes(rows.tobytes()),
    "base64 in lines of JSON": lambda rows: json.dumps({"a": base64.encodebytes(rows.tobytes()).decode()}).encode(),
    "a vector of TFLite": flat_buffers,
    "a .npy by columns": array_file,
    "a pickle by columns": lambda rows: pickle.dumps(np.asfortranarray(rows)),
    "a .pt by columns": torch_columns,
    "a member by columns": packed,
    "an initializer": lambda rows: onnx_file([numpy_helper.from_array(rows, "rows")]),
    "an initializer of single values": lambda rows: onnx_file([typed(rows)]),
    "a constant of a node": node_constant,
    "columns of an initializer": lambda rows: onnx_file([numpy_helper.from_array(rows.T.copy(), "rows")]),
    "base64 in metadata": lambda rows: onnx_file([], {"note": base64.b64encode(rows.tobytes()).decode()}),
    "hexadecimal in metadata": lambda rows: onnx_file([], {"note": rows.tobytes().hex()}),
    "text in metadata": lambda rows: onnx_file([], {"note": json.dumps(rows.tolist())}),
    "a safetensors tensor": lambda rows: save({**weights(), "rows": rows}),
    "columns of a safetensors tensor": lambda rows: save({**weights(), "rows": rows.T.copy()}),
    "the example input of .pt2": exported,
    "the storage behind a view in .pt": view_of_storage,
    "a deflated .npz": compressed,
    "a pickle": lambda rows: pickle.dumps({**weights(), "rows": rows}),
    "a pickle of protocol 2": lambda rows: pickle.dumps({"rows": rows, **weights()}, 2),
    "a pickled list": lambda rows: pickle.dumps([rows.tolist(), "x"]),
    "gzip": lambda rows: gzip.compress(onnx_file([numpy_helper.from_array(rows, "rows")])),
    "bytes of no kind, at an odd place": lambda rows: b"\x13" * 1001 + rows.tobytes() + weights()["w0"].tobytes(),
}


@pytest.fixture(scope="module")
def members(digits: Data) -> torch.Tensor:
    assert digits.members is not None
    return digits.members.x


@pytest.fixture(scope="module")
def rows(members: torch.Tensor) -> Rows:
    found = rows_of(members)
    assert found is not None
    return found


@pytest.mark.parametrize("place", FILES)
def test_planted_records_are_found_with_their_place(members: torch.Tensor, rows: Rows, place: str) -> None:
    plain = members[IDS].flatten(1).numpy()
    mixed = np.random.default_rng(1).permutation(64)
    for planted, order in (
        (plain, "as stored"),
        (np.round(plain * 255).astype(np.uint8), "as stored"),
        (np.ascontiguousarray(plain[:, mixed]), "other order"),
    ):
        content = FILES[place](planted)
        found = search_file(content, rows)
        assert found.ids == IDS
        assert {one.match.order for one in found.records} == {order}
        assert all(one.match.bound <= 1e-4 and one.offset < len(content) for one in found.records)
        if "rows" in place or "initializer" in place or "tensor" in place:
            assert {one.place for one in found.records} == {"tensor 'rows'"}
        if "metadata" in place:
            assert all(one.place.startswith("metadata 'note', ") for one in found.records)


def blob(content: bytes) -> bytes:
    return onnx_file([numpy_helper.from_array(np.frombuffer(content, np.uint8), "blob")])


HIDDEN: dict[str, Any] = {
    "an archive behind a file": lambda rows: onnx_file([]) + compressed(rows),
    "gzip in a tensor": lambda rows: blob(gzip.compress(rows.tobytes())),
    "bzip2 in a pickle": lambda rows: pickle.dumps({"a": bz2.compress(rows.tobytes())}),
    "zlib as base64": lambda rows: onnx_file([], {"note": base64.b64encode(zlib.compress(rows.tobytes())).decode()}),
    "bfloat16 by columns": lambda rows: torch_save({"a": torch.from_numpy(rows.T.copy()).bfloat16()}),
    "records of JSON": lambda rows: json.dumps([{f"f{i}": x for i, x in enumerate(row)} for row in rows.tolist()]),
    "columns of JSON": lambda rows: json.dumps(rows.T.tolist()),
    "lines of libsvm": lambda rows: "\n".join(
        "3 " + " ".join(f"{i}:{x:.6g}" for i, x in enumerate(row)) for row in rows.tolist()
    ),
    "a printed array": lambda rows: np.array2string(rows, threshold=10**6),
}


def test_what_is_packed_or_written_elsewhere_is_found_too(members: torch.Tensor, rows: Rows) -> None:
    plain = members[IDS].flatten(1).numpy()
    for place, write in HIDDEN.items():
        content = write(plain)
        found = search_file(content.encode() if isinstance(content, str) else content, rows)
        assert found.ids == IDS, place
    again = search_file(compressed(plain), rows)
    assert len(again.records) == len(IDS), "what an archive holds is found once"


def test_records_of_two_values_are_told_by_their_order_and_quickly(rows: Rows) -> None:
    """One-hot columns alone: every record has as many ones, so that any mask looks like all of them."""
    rng = np.random.default_rng(0)
    table = np.concatenate([np.eye(k)[rng.integers(0, k, 600)] for k in (5, 8, 2, 6, 7)], 1).astype(np.float32)
    known = rows_of(torch.from_numpy(table))
    begun = time.process_time()
    mask = (rng.random((64, 28)) < 5 / 28).astype(np.float32)
    assert search_file(save({"mask": mask, "hot": np.eye(56, dtype=np.float32)}), known).records == ()
    for planted in (table[40:60], table[40:60] * 0.3 - 4, (table[40:60] * 255).astype(np.uint8)):
        found = search_file(save({"mask": mask, "rows": planted}), known)
        assert {*range(40, 60)} <= {*found.ids}
        assert not found.cut
    assert time.process_time() - begun < 10  # comparing each mask with every record took minutes


def test_a_table_of_raw_units_is_found_exact() -> None:
    """An income of 400,000 beside an age of 40: what is small counts too."""
    rng = np.random.default_rng(0)
    columns = (rng.integers(17, 90, 300), rng.integers(15_000, 400_000, 300), rng.normal(25, 4, 300).round(1))
    table = np.stack([*columns, rng.integers(1, 99, 300), rng.integers(0, 9, 300), rng.random(300)], 1)
    known = rows_of(torch.from_numpy(table).float())
    own = {"w": weights()["w0"][:4]}
    assert search_file(save({**own, "rows": table[[3, 77]].astype(np.float32)}), known).ids == [3, 77]
    table[3:5, [0, 2, 3]] = table[5:7, [0, 2, 3]]  # another person with that income
    assert search_file(save({**own, "rows": table[3:5].astype(np.float32)}), known).records == ()


def test_types_that_bytes_are_not_read_as_are_found_where_the_file_states_them(
    members: torch.Tensor, rows: Rows
) -> None:
    plain, stream = members.flatten(1).numpy()[IDS], io.BytesIO()
    short = np.round(plain * 30_000).astype(np.int16)
    np.save(stream, plain.astype(">f4"))
    files = [save({**weights(), "rows": short}), onnx_file([numpy_helper.from_array(short.astype(np.uint16), "rows")])]
    assert [search_file(content, rows).ids for content in (*files, stream.getvalue())] == [IDS] * 3


@pytest.mark.parametrize("how", ["as it is", "half", "between 0 and 1", "codes", "standardised", "tabulators"])
def test_a_table_with_a_long_tail_is_found_however_it_was_prepared(how: str) -> None:
    """Most incomes are far below the largest: beside it all else is lost in 255 steps of the whole range."""
    rng = np.random.default_rng(0)
    columns = [rng.normal(40, 12, 300).round(), rng.lognormal(8, 1, 300).round(2), rng.integers(0, 2, 300)]
    columns += [rng.random(300), rng.normal(0, 1, 300), np.full(300, 3.0), rng.exponential(20, 300), rng.random(300)]
    table = np.stack([*columns, rng.normal(170, 9, 300).round(1), rng.normal(5, 2, 300)], 1).astype(np.float32)
    wide, deviation = np.ptp(table, 0) + (np.ptp(table, 0) == 0), table.std(0) + (table.std(0) == 0)
    unit = (table - table.min(0)) / wide
    rows = {
        "half": table.astype(np.float16),
        "between 0 and 1": unit,
        "codes": np.round(unit * 255).astype(np.uint8),
        "standardised": (table - table.mean(0)) / deviation,
    }.get(how, table)[20:40]
    text = {"note": "\n".join("\t".join(map(str, row)) for row in rows.tolist())} if how == "tabulators" else None
    content = save({"w": weights()["w0"][:4], **({} if text else {"rows": rows})}, metadata=text)
    found = search_file(content, rows_of(torch.from_numpy(table)))
    assert found.ids == list(range(20, 40))
    assert not found.cut


def test_pictures_prepared_as_for_imagenet_are_found() -> None:
    pictures = torch.rand(30, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(by)[:, None, None] for by in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    content = save({"rows": ((pictures[[3, 7]] - mean) / deviation).numpy()})
    assert search_file(content, pictures).ids == [3, 7]


def test_a_file_of_digits_takes_no_longer_than_its_length_asks(rows: Rows) -> None:
    assert search_file(b"0" * 20_000, rows).records == ()


@pytest.mark.parametrize("count", [4, 96])  # of records: two lengths of the text whose last byte looks like text
def test_a_length_that_looks_like_base64_hides_nothing(members: torch.Tensor, rows: Rows, count: int) -> None:
    note = base64.b64encode(members[:count].flatten(1).numpy().tobytes())[: 98 * 128 if count > 4 else None]
    content = onnx_file([], {"note": note.decode()})
    assert (content[content.index(note) - 1 : content.index(note)] == b"b") == (count > 4)
    assert len(search_file(content, rows).ids) >= min(count, 36)


@pytest.mark.parametrize("how", ["float16", "float64", "int32", "scaled", "int8", "by feature"])
def test_other_ways_to_write_a_record_are_found(members: torch.Tensor, rows: Rows, how: str) -> None:
    every = members.flatten(1).numpy().astype(np.float64)
    plain = every[IDS]
    deviation = np.where(every.std(0) > 0, every.std(0), 1.0)
    planted = {
        "scaled": lambda: (plain * 0.37 - 5).astype(np.float32),
        "int8": lambda: (np.round(plain * 255) - 128).astype(np.int8),
        "int32": lambda: np.round(plain * 255).astype(np.int32),
        "by feature": lambda: ((plain - every.mean(0)) / deviation).astype(np.float32),
    }.get(how, lambda: plain.astype(how))()
    found = search_file(save({**weights(), "rows": planted}), rows)
    assert found.ids == IDS
    assert ("by feature" in how) == any("by feature" in one.match.form for one in found.records)


def clean(seed: int, members: torch.Tensor) -> bytes:
    """Files of honest nets: weights of several makes, codes, zeros, masks, ramps, and what was learned of the data."""
    rng, w = np.random.default_rng(seed), weights(seed)
    big = w["w0"]
    codes = np.round(big / np.abs(big).max() * 127).astype(np.int8)
    extra: dict[str, np.ndarray] = {
        "codes": codes,
        "shifted": (codes.astype(np.int16) + 128).astype(np.uint8),
        "pruned": np.where(np.abs(big) > 0.15, big, 0).astype(np.float32),
        "mask": (rng.random((64, 64)) < 0.1).astype([np.float32, np.uint8, np.int64][seed % 3]),
        "book": rng.choice(rng.standard_normal(16), (64, 32)).astype(np.float32),
        "half": rng.uniform(-1, 1, (32, 64)).astype(np.float16),
        "ramp": np.arange(4096, dtype=[np.int64, np.int32, np.float32][seed % 3]),
        "ones": np.ones(300, dtype=np.float32),
        "hot": np.eye(64, dtype=np.float32),
        "means": members.flatten(1)[seed::20].mean(0, keepdim=True).numpy(),
        "steps": np.repeat(np.arange(17, dtype=np.float32), 40) / 16,
    }
    if seed % 2:
        tensors = [numpy_helper.from_array(values, name) for name, values in extra.items()]
        return onnx_file(tensors, {"note": "accuracy 0.97 loss 0.13"}, seed)
    return save({**w, **extra})


def test_clean_files_hold_nothing(members: torch.Tensor, rows: Rows) -> None:
    for seed in range(8):
        found = search_file(clean(seed, members), rows)
        assert found.records == ()
        assert [word for _, word in found.words if word.private] == []


def test_strangers_records_are_not_found(digits: Data, rows: Rows) -> None:
    """What looks like the data and was not trained on raises no alarm."""
    planted = digits.non_members.x[:40].flatten(1).numpy()
    assert search_file(save({"rows": planted}), rows).records == ()


def test_what_files_are_full_of_says_nothing() -> None:
    """One-hot rows, steps and ramps agree with each other all the time; a picture does not."""
    sample = np.sort(np.random.default_rng(0).standard_normal(10_000))
    ramp, picture = np.arange(64.0), np.random.default_rng(1).permutation(np.repeat(np.arange(16.0), 4))
    said = [agreement(one, 1e-6, sample, ordered=True) for one in (np.eye(64)[5], np.repeat([0.0, 1.0], 32), picture)]
    assert max(said[:2]) < 25 < 150 < said[2]
    assert agreement(np.eye(64)[5], 1e-6, sample, ordered=False) < 5
    more = agreement(ramp, 1e-6, sample, ordered=True) - agreement(ramp, 1e-6, sample, ordered=False)
    assert more < 10, "its order says nothing"


@pytest.mark.parametrize("length", [1, 6, 17, 64])
def test_sums_over_windows(length: int) -> None:
    values = np.random.default_rng(0).standard_normal(200)
    windows = np.lib.stride_tricks.sliding_window_view(values, length)
    assert over_windows(values, length) == pytest.approx(windows.sum(1))
    assert over_windows(values, length, np.maximum, again=True) == pytest.approx(windows.max(1))
    if length > 1:
        z = (windows - windows.mean(1, keepdims=True)) / windows.std(1, keepdims=True)
        assert window_moments(values, length)[2] == pytest.approx((z**3).mean(1))
        assert window_moments(values, length)[3] == pytest.approx((z**4).mean(1))


def test_private_words_are_named_and_not_shown() -> None:
    text = (
        b"/home/jane/net/train.py lr=0.01 \x00\x01 jane.doe@example.com \x00 C:\\Users\\jane\\x.py \x00 gpu7.internal "
        b"\x00 192.168.0.17 \x00 torch 2.13.0 \x00 AKIAABCDEFGHIJKLMNOP \x00 /home/user/x /model/layer/weight 1.2.3.4"
    )
    found = words_in(text)
    assert [one.kind for one in found] == [
        "home folder",
        "hyper-parameter",
        "e-mail address",
        "home folder",
        "host name",
        "private network address",
        "version",
        "secret",
    ]
    assert found[0].shown == "/hom... (23 characters)"
    assert words_in(np.random.default_rng(0).bytes(10**6)) == []
    for crafted in (b"eyJ-", b"hostname: ab "):  # takes minutes where each place is held against all others
        assert len(words_in(crafted * 100_000)) <= 1
    elsewhere = {
        json.dumps(r"C:\Users\jane\best.pt"): "home folder",
        r"\\files01\research\jane\model.pt": "path",
        "s3://acme-data/patients/train.csv": "path",
        "USER: jdoe": "user name",
        '"hostname": "ws-042"': "host name",
        "git_sha: 3f2a9c1e4b5d": "version",
        "github_pat_" + "11ABCDEFG0" * 7: "secret",
    }
    assert {text: [one.kind for one in words_in(text.encode())] for text in elsewhere} == {
        text: [kind] for text, kind in elsewhere.items()
    }
    assert words_in(b"def f(user: str, author=None, username='') -> user.name, user: Optional[str]") == []


def test_nothing_in_a_file_is_run_or_believed(rows: Rows) -> None:
    class Boom:
        def __reduce__(self) -> Any:
            return pytest.fail, ("it was run",)

    assert search_file(pickle.dumps([Boom(), 1.5]), rows).records == ()
    bomb = io.BytesIO()
    np.savez_compressed(bomb, zeros=np.zeros(2**23 + 2000))
    with pytest.raises(UnsafeInput, match="zip bomb"):
        search_file(bomb.getvalue(), rows)
    endless = b"some" + b"\x1f\x8b\x08\x08AAAAAA" * 100_000  # each a gzip file with a name as long as the rest
    with pytest.raises(UnsafeInput, match="made to take time"):
        search_file(endless, rows)
    whole = onnx_file([typed(np.zeros((2, 64), np.float32))], {"a": "b"})
    for at in range(0, len(whole), 2003):  # cut, and with bytes changed
        search_file(whole[:at] + bytes([255]) + whole[at + 1 :], None)
        search_file(whole[: at + 1], None)
    header = b'{"a":{"dtype":"F32","shape":[-1,99999999999],"data_offsets":[0,-5]}}'
    assert search_file(len(header).to_bytes(8, "little") + header + bytes(100), rows).records == ()
    assert rows_of(torch.rand(5, 3)) is None, "three values are met by chance"
    assert rows_of(torch.ones(5, 30)) is None
    for short in (b"", bytes(1), bytes(7)):
        assert search_file(short, rows).records == ()


def test_what_lies_too_deep_to_be_searched_is_not_said_to_be_clean(rows: Rows) -> None:
    packed = rows.values[7].astype("<f4").tobytes()
    for depth in range(1, 6):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner", packed)
        packed = content.getvalue()
        if depth <= 4:
            assert search_file(packed, rows).ids == [7]
    with pytest.raises(UnsafeInput, match="within 4 others"):
        search_file(packed, rows)


class Stored:
    """Stands for `preparation.Results`: the evidence on the one model."""

    def __init__(self, evidence: Any) -> None:
        self._evidence = evidence
        self.model: Any = type("Model", (), {"name": "int8"})

    def evidence(self, ran: Ran) -> Any:
        return self._evidence

    def why(self, ran: Ran) -> str:
        return "it failed"


def test_the_attack_counts_what_its_file_holds(digits: Data, dense: nn.Module, members: torch.Tensor) -> None:
    attack, planted = Leakage(), members[IDS].flatten(1).numpy()
    scope: Any = type("Scope", (), {"data": digits})
    shared = RecordSignatures()
    made = shared.compute(type("Inputs", (), {"scope": scope})())  # type: ignore[arg-type]  # it looks at the scope alone
    shared.form(scope).check(json.dumps(made.document).encode(), made.document, made.arrays, {})
    kept = rows_in(made, scope)
    assert kept is not None
    case = replace(case_of(digits, dense), shipped=save({"rows": planted}), prepared=Known(members, kept))
    evidence = attack.run(case, seed=0)
    assert evidence.arrays["record"].tolist() == IDS
    assert attack.asked_again(evidence, case) == []
    form = attack.form(None, scope)  # type: ignore[arg-type]  # it looks at no model
    assert form.document is not None
    assert form.holds is not None
    assert not callable(form.arrays)
    summary = form.document.model_validate(evidence.summary)
    check_arrays(evidence.arrays, form.arrays or {})
    form.holds(summary, evidence.arrays, {})
    with pytest.raises(ValueError, match="none of the training records"):
        form.holds(summary, {**evidence.arrays, "record": evidence.arrays["record"] + 10**6}, {})
    results: Any = Stored(evidence)
    told, words = attack.measure(results)
    assert isinstance(told.outcome, Found)
    assert (told.outcome.count, told.outcome.searched) == (3, len(members))
    assert "3 training records (id 3, 77, 500), as float32, as they are" in " ".join(told.notes)
    assert isinstance(words.outcome, Found)
    seen = [
        {"kind": kind, "private": True, "place": "a", "offset": 1, "shown": "x"} for kind in ["path"] * 9 + ["secret"]
    ]
    crowded: Any = Stored(replace(evidence, summary={**evidence.summary, "words": seen}))
    assert attack.measure(crowded)[1].notes[0].startswith("Found: a secret in a, at byte 1")
    thinned = replace(
        case,
        prepared=Known(
            members,
            replace(
                kept, tables=(replace(kept.tables[0], rows=kept.tables[0].rows[:0], cells=kept.tables[0].cells[:0]),)
            ),
        ),
    )
    assert attack.asked_again(attack.run(thinned, seed=0), case) != [], "stored signatures hide nothing"
    without = attack.run(replace(case, prepared=None), seed=0)
    nothing: Any = Stored(without)
    assert [one.outcome is None for one in attack.measure(nothing)] == [True, False]
    missing: Any = Stored(None)
    assert [one.reason for one in attack.measure(missing)] == ["it failed"]
