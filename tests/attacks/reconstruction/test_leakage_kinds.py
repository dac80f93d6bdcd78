"""Leakage, kind by kind: negated records, numbers of 16 bits, decimal commas, UTF-16 and pictures are found or left."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import time
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save

from crushproof.attacks.reconstruction.contents.pictures import Album, unfiltered
from crushproof.attacks.reconstruction.contents.texts import ascii_text, wide_text
from crushproof.attacks.reconstruction.moments import Rows
from crushproof.attacks.reconstruction.search import rows_of, search_file
from crushproof.targets.data.data import Data

IDS = [3, 77, 500]
SIGN = b"\x89PNG\r\n\x1a\n"
WEIGHTS = (np.random.default_rng(0).standard_normal((32, 48)) * 0.1).astype(np.float32)
MIXED = np.random.default_rng(1).permutation(64)


@pytest.fixture(scope="module")
def members(digits: Data) -> torch.Tensor:
    assert digits.members is not None
    return digits.members.x


@pytest.fixture(scope="module")
def rows(members: torch.Tensor) -> Rows:
    found = rows_of(members)
    assert found is not None
    return found


def zipped(content: bytes, how: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        archive.writestr("data/inner.bin", content)
    return stream.getvalue()


def noted(content: bytes) -> bytes:
    """An ONNX file with the bytes as metadata."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(WEIGHTS, "w")])
    )
    entry = model.metadata_props.add(key="note")
    entry.value = "Q" * len(content)
    return bytes(model.SerializeToString()).replace(b"Q" * len(content), content)


CONTAINERS: dict[str, Any] = {
    "bare": lambda content: b"\x13" * 1001 + content + WEIGHTS.tobytes(),
    "an archive": zipped,
    "a stored member": lambda content: zipped(content, zipfile.ZIP_STORED),
    "base64": base64.b64encode,
    "a pickle": lambda content: pickle.dumps([content, WEIGHTS]),
    "metadata": noted,
}


@pytest.mark.parametrize("how", ["as it is", "scaled", "inverted", "standardised", "mixed", "mixed and standardised"])
def test_negated_records_are_found_and_called_so(members: torch.Tensor, rows: Rows, how: str) -> None:
    every = members.flatten(1).numpy()
    spread = np.where(every.std(0) > 0, every.std(0), 1.0)
    standardised = ((every - every.mean(0)) / spread)[IDS].astype(np.float32)
    planted = {
        "as it is": -every[IDS],
        "scaled": every[IDS] * np.float32(-0.37) + 5,
        "inverted": 255 - np.round(every[IDS] * 255).astype(np.uint8),
        "standardised": -standardised,
        "mixed": -every[IDS][:, MIXED],
        "mixed and standardised": -2 * standardised[:, MIXED],
    }[how]
    planted = np.ascontiguousarray(planted)
    for content in (save({"w": WEIGHTS, "rows": planted}), b"\x13" * 1001 + planted.tobytes() + WEIGHTS.tobytes()):
        found = search_file(content, rows)
        assert found.ids == IDS
        assert all("negated" in one.match.form for one in found.records)
        assert {one.match.order for one in found.records} == {"other order" if "mixed" in how else "as stored"}
    if how == "as it is":
        assert {one.match.form for one in found.records} == {"negated"}
    again = search_file(save({"w": WEIGHTS, "rows": every[IDS]}), rows)
    assert {one.match.form for one in again.records} == {"as they are"}


def test_records_cut_off_to_8_bits_are_found_as_rounded_ones_are(members: torch.Tensor, rows: Rows) -> None:
    """As `(255 * x).astype(uint8)` has them: few shades, of which zero alone is exact."""
    whole = (255 * members[IDS, 0].numpy()).astype(np.uint8)
    planted = {
        "bare": whole.tobytes(),
        "mixed": np.ascontiguousarray(whole.reshape(len(IDS), -1)[:, MIXED]).tobytes(),
        "inverted": (255 - whole).tobytes(),
        "floats": (whole.astype(np.float32) / 255).tobytes(),
        "pictures": b"".join(saved(one) for one in whole),
    }
    for how, content in planted.items():
        assert search_file(b"\x13" * 1001 + content + WEIGHTS.tobytes(), rows).ids == IDS, how


def test_negated_tables_are_found_however_they_are_scaled() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.normal(40, 12, 300).round(), rng.lognormal(8, 1, 300).round(2), rng.normal(170, 9, 300)]
    table = np.stack([*columns, *rng.normal(5, 2, (5, 300)), *rng.exponential(20, (3, 300))], 1).astype(np.float32)
    hot = np.concatenate([np.eye(k)[rng.integers(0, k, 600)] for k in (5, 8, 2, 6, 7)], 1).astype(np.float32)
    unit = (table - table.min(0)) / np.ptp(table, 0)
    for known, planted in ((table, -table), (table, 1 - unit), (hot, 1 - hot)):
        found = search_file(save({"w": WEIGHTS[:4], "rows": planted[20:40]}), torch.from_numpy(known))
        assert {*range(20, 40)} <= {*found.ids}


@pytest.mark.parametrize("place", CONTAINERS)
def test_numbers_of_16_bits_without_a_header_are_found(members: torch.Tensor, rows: Rows, place: str) -> None:
    plain = members.flatten(1).numpy()[IDS].astype(np.float64)
    for planted in (
        np.round(plain * 65_535).astype("<u2"),
        np.round(plain * 65_535 - 32_768).astype("<i2"),
        np.round(plain * 255).astype("<u2"),
        np.round(plain * -20_000).astype("<i2"),
        np.round(plain[:, MIXED] * 30_000).astype("<i2"),
        plain.astype("<f2"),
    ):
        found = search_file(CONTAINERS[place](planted.tobytes()), rows)
        assert found.ids == IDS
        assert {one.match.type for one in found.records} <= {"uint16", "int16", "float16"}


def test_columns_of_16_bits_are_found_in_a_value_of_a_pickle(members: torch.Tensor, rows: Rows) -> None:
    plain = members.flatten(1).numpy()[:5].astype(np.float64)
    for codes in (np.round(plain * 65_535).astype("<u2"), np.round(plain * 65_535 - 32_768).astype("<i2")):
        assert search_file(pickle.dumps(np.asfortranarray(codes)), rows).ids == [*range(5)]


def german(rows: np.ndarray[Any, Any], between: str = ";") -> str:
    return "\r\n".join(between.join(f"{x:.4f}".replace(".", ",") for x in row) for row in rows)


TABLES: dict[str, Any] = {
    "semicolons": german,
    "tabulators": lambda rows: german(rows, "\t"),
    "quotes": lambda rows: "\n".join(",".join(f'"{x:.4f}"'.replace(".", ",") for x in row) for row in rows),
    "names and thousands": lambda rows: "\n".join(
        f"Müller{at};" + ";".join(f"{x * 5000:,.2f}".translate(str.maketrans(",.", ".,")) for x in row)
        for at, row in enumerate(rows)
    ),
    "apostrophes": lambda rows: ";".join(f"{x * 5000:,.2f}".replace(",", "'") for x in rows.ravel()),
    "English thousands": lambda rows: "\n".join(",".join(f'"{x * 5000:,.2f}"' for x in row) for row in rows),
    "thousands alone": lambda rows: ";".join(f"{x * 16_000:,.0f}".replace(",", ".") for x in rows.ravel()),
    "columns": lambda rows: german(rows.T),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_with_decimal_commas_and_thousands_are_found(members: torch.Tensor, rows: Rows, table: str) -> None:
    text = TABLES[table](members.flatten(1).numpy()[IDS])
    for encoded in (text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode("utf-16")):
        for place in ("bare", "an archive", "metadata"):
            assert search_file(CONTAINERS[place](encoded), rows).ids == IDS, place


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(10**9), 10**9), min_size=6, max_size=30),
    st.sampled_from([(",", ""), (",", "."), (",", "'"), (",", " "), (".", ""), (".", ","), (".", "'")]),
    st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]),
    st.sampled_from([";", "\t", "\n", "; ", '"|"']),
)
def test_numbers_are_read_as_they_were_written(
    cents: list[int], marks: tuple[str, str], encoding: str, between: str
) -> None:
    """Python's own formatting is the oracle."""
    values = [one / 100 for one in cents]
    written = [f"{one:,.2f}".replace(",", "G").replace(".", marks[0]).replace("G", marks[1]) for one in values]
    content = b"\xff\xff\xff" + between.join(written).encode(encoding) + b"\xff\xff\xff\xff"
    text = (ascii_text if encoding == "utf-8" else wide_text)(content)
    assert values in [one.tolist() for _, one in text.numbers()]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.text("abcXYZ/:@.-_ 019", min_size=8, max_size=40), st.binary(max_size=40))
def test_texts_are_found_where_they_are(before: bytes, word: str, after: bytes) -> None:
    for encoding, read, step in (("ascii", ascii_text, 1), ("utf-16-le", wide_text, 2), ("utf-16-be", wide_text, 2)):
        content = before + b"\xff\xfe\xff" + word.encode(encoding) + b"\xff\xff" + after
        text = read(content)
        at = text.content.index(word.encode())
        begin = len(before) + 3 + (encoding == "utf-16-be")
        every = [place for place in range(len(text.content)) if text.content.startswith(word.encode(), place)]
        assert begin in map(text.place, every)
        for place in range(at, at + len(word)):
            assert content[text.place(place) : text.place(place) + 1] == text.content[place : place + 1]
            assert text.step == step


def test_text_that_ends_where_a_chunk_does_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crushproof.attacks.reconstruction.contents.texts.CHUNK", 4096)
    for size in (4090, 4096, 8189, 12_288):
        for encoding, read in (("ascii", ascii_text), ("utf-16-le", wide_text)):
            content = b"\xff" * size + "0123456789abcdef".encode(encoding) + b"\xff" * 5000
            assert read(content).content == b"0123456789abcdef"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_private_words_in_utf_16_are_named_with_their_place(encoding: str) -> None:
    words = {
        "C:\\Users\\jane\\train.py": "home folder",
        "jane.doe@example.com": "e-mail address",
        "hostname: ws-042": "host name",
        "USER=jdoe": "user name",
        "/srv/patients/2026/train.csv": "path",
        "password: AKIAABCDEFGHIJKLMNOP": "secret",
    }
    for word, kind in words.items():
        content = b"\x07\x01\x99" * 50 + word.encode(encoding) + b"\x99\x07" * 50
        ((place, found),) = search_file(content).words
        assert (found.kind, found.text in word, place) == (kind, True, "UTF-16 text")
        assert content[found.offset :].startswith(found.text[:1].encode())
        assert found.offset == content.index(found.text.encode(encoding)) + (encoding == "utf-16-be")
    ((place, found),) = search_file(noted("jane.doe@example.com".encode(encoding))).words
    assert place == "metadata 'note', UTF-16 text"
    ((place, found),) = search_file(zipped("jane.doe@example.com".encode(encoding))).words
    assert (place, found.offset) == ("entry 'data/inner.bin', UTF-16 text", int(encoding == "utf-16-be"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(lines: bytes, width: int, height: int, depth: int = 8, colour: int = 0, pieces: int = 1) -> bytes:
    """Of rows with their filters before them."""
    packed = zlib.compress(lines)
    step = -(-len(packed) // pieces)
    parts = [chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGN + header + b"".join(parts) + chunk(b"IEND", b"")


def saved(pixels: np.ndarray[Any, Any], mode: str | None = None) -> bytes:
    stream, picture = io.BytesIO(), Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(stream, "PNG")
    return stream.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([(0, 8), (2, 8), (4, 8), (6, 8), (0, 16), (0, 1), (0, 2), (0, 4)]),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_pictures_are_decoded_as_pillow_does(
    width: int, height: int, kind: tuple[int, int], count: int, seed: int
) -> None:
    """Of any filters, in any number of pieces; random bytes are the filtered rows of some picture."""
    colour, depth = kind
    planes, rng = {0: 1, 2: 3, 4: 2, 6: 4}[colour], np.random.default_rng(seed)
    line = (width * planes * depth + 7) // 8
    made = []
    for _ in range(count):
        lines = rng.integers(0, 256, (height, line + 1), dtype=np.uint8)
        lines[:, 0] = rng.integers(0, 5, height)
        made.append(png(lines.tobytes(), width, height, depth, colour, int(rng.integers(1, 4))))
    content = b"junk".join([b"", *made])
    ((pixels, places),) = ((one.pixels, one.places) for one in Album(len(content), 1).pictures(content, []))
    assert [content[at : at + 8] for at in places] == [SIGN] * count
    for one, file in zip(pixels, made, strict=True):
        with Image.open(io.BytesIO(file)) as picture:
            wanted = np.array(picture).reshape(height, width, -1).transpose(2, 0, 1)
        assert np.array_equal(one * {2: 85, 4: 17}.get(depth, 1), wanted[: len(one)])  # Pillow fills 8 bits


@pytest.mark.parametrize("place", CONTAINERS)
def test_pictures_of_records_are_found(members: torch.Tensor, rows: Rows, place: str) -> None:
    codes = np.round(members.numpy()[IDS, 0] * 255).astype(np.uint8)
    wide = codes.astype(np.uint16) * 257
    ways = {
        "grey": [saved(one) for one in codes],
        "colours": [saved(one, "RGB") for one in codes],
        "transparent": [saved(one, "RGBA") for one in codes],
        "palette": [saved(one, "P") for one in codes],
        "16 bits": [saved(one) for one in wide],
        "inverted": [saved(255 - one) for one in codes],
    }
    for how, files in ways.items():
        content = CONTAINERS[place](b"".join(files))
        found = search_file(content, rows)
        assert found.ids == IDS, how
        assert all("PNG picture of 8 x 8 pixels" in one.place for one in found.records), how
        assert all("negated" in one.match.form for one in found.records) == (how == "inverted")
        if place in ("bare", "metadata"):
            begins = {content.index(file) for file in files}
            assert {one.offset for one in found.records} == begins, how


def test_a_picture_in_a_pickle_in_an_archive_is_found_once(members: torch.Tensor, rows: Rows) -> None:
    files = [saved(np.round(members.numpy()[at, 0] * 255).astype(np.uint8)) for at in IDS]
    found = search_file(zipped(pickle.dumps(b"".join(files)), zipfile.ZIP_STORED), rows)
    assert [one.match.record for one in found.records] == IDS


def test_pictures_in_colours_are_found() -> None:
    pictures = torch.randint(0, 256, (30, 3, 6, 6), generator=torch.Generator().manual_seed(0)) / 255
    files = [saved(np.round(one.permute(1, 2, 0).numpy() * 255).astype(np.uint8)) for one in pictures[[3, 7]]]
    found = search_file(base64.b64encode(b"".join(files)), pictures)
    assert found.ids == [3, 7]
    assert {one.match.order for one in found.records} == {"as stored"}


def test_what_is_like_the_new_kinds_and_no_record_is_left_alone(digits: Data, rows: Rows) -> None:
    """Strangers in each form, and what files hold of these types: codes, ramps, noise, pictures, tables, texts."""
    rng, strangers = np.random.default_rng(0), digits.non_members.x[:40].flatten(1).numpy()
    codes = np.round(strangers * 255).astype(np.uint8)
    files = [
        save({"w": -strangers, "u": (255 - codes), "s": -(strangers - strangers.mean(0))}),
        np.round(strangers * 65_535).astype("<u2").tobytes(),
        np.round(strangers * 65_535 - 32_768).astype("<i2").tobytes(),
        german(strangers).encode(),
        german(strangers).encode("utf-16"),
        b"".join(saved(one.reshape(8, 8)) for one in codes),
        np.round(rng.standard_normal(40_000) * 3000).astype("<i2").tobytes() + np.arange(65_536, dtype="<u2").tobytes(),
        rng.integers(0, 2**16, 40_000, dtype=np.uint16).tobytes() + np.eye(64, dtype=np.int16).tobytes(),
        saved(rng.integers(0, 256, (90, 120), dtype=np.uint8)) + saved(np.full((60, 60, 3), 255, np.uint8)),
        saved(np.linspace(0, 255, 9000).reshape(90, 100).astype(np.uint8)),
        german(rng.standard_normal((50, 64)).round(3)).encode() + b"1.234;2.345;" * 500,
        "Lorem ipsum dolor; 1,5 bis 2,5 und 7.000,00 EUR. ".encode("utf-16-le") * 400,
    ]
    for at, content in enumerate(files):
        found = search_file(content, rows)
        assert (found.records, found.words, found.cut) == ((), (), False), at


HEAD = SIGN + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
HUGE = SIGN + chunk(b"IHDR", struct.pack(">IIBBBBB", 1900, 2000, 8, 0, 0, 0, 0))
MEGABYTE = 2**20
CRAFTED: dict[str, bytes] = {
    "headers of pictures": HEAD * (MEGABYTE // len(HEAD)),
    "chunks of a picture": HEAD + chunk(b"teXt", b"") * (MEGABYTE // 12),
    "pictures in one another": b"".join(
        HEAD + struct.pack(">I4s", MEGABYTE - at, b"IDAT") for at in range(0, MEGABYTE, 41)
    ),
    "pictures that are bombs": (HUGE + chunk(b"IDAT", zlib.compress(bytes(2**22)))) * (MEGABYTE // 4200),
    "pictures of many sizes": b"".join(
        png((b"\4" + bytes(range(w))) * h, w, h) for w in range(8, 200) for h in range(8, 60)
    )[:MEGABYTE],
    "small pictures": png((b"\4" + bytes(range(8))) * 8, 8, 8) * (MEGABYTE // 90),
    "semicolons": b";" * MEGABYTE,
    "commas": b"1,1;" * (MEGABYTE // 4),
    "thousands": b"1.111," * (MEGABYTE // 6),
    "digits by threes": b"111'" * (MEGABYTE // 4),
    "pieces of UTF-16": ("abcd.fgh".encode("utf-16-le") + b"\xff\xff") * (MEGABYTE // 18),
    "words in UTF-16": "hostname: ab ".encode("utf-16-le") * (MEGABYTE // 26),
}


@pytest.mark.parametrize("how", CRAFTED)
def test_a_crafted_megabyte_takes_no_minutes(rows: Rows, how: str) -> None:
    begun = time.process_time()
    assert search_file(CRAFTED[how], rows).records == ()
    assert time.process_time() - begun < 10  # each about a second; what it guards against takes minutes


def test_a_bomb_is_refused_before_it_is_unpacked(rows: Rows) -> None:
    begun = time.process_time()
    with pytest.raises(Exception, match="as those of a zip bomb do"):
        search_file(b"some" + zlib.compress(bytes(2**24)) * 60, rows)
    assert time.process_time() - begun < 10


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_a_damaged_picture_is_none_and_harms_nothing(at: int, by: bytes) -> None:
    whole = png(bytes(9 * 8), 8, 8) + saved(np.arange(64, dtype=np.uint8).reshape(8, 8)) * 2
    content = whole[:at] + by + whole[at + len(by) :]
    for found in Album(len(content), 6).pictures(content, []):
        assert found.pixels.shape[0] == len(found.places)
    assert list(Album(len(content[:at]), 6).pictures(content[:at], [])) is not None


def test_more_pictures_than_there_is_room_for_are_said(rows: Rows) -> None:
    many = (HUGE + chunk(b"IDAT", zlib.compress(bytes(1901 * 2000)))) * 3
    assert search_file(many, rows).cut


def test_rows_without_filters_are_as_they_are() -> None:
    lines = np.random.default_rng(0).integers(0, 256, (2, 3, 7), dtype=np.uint8)
    lines[:, :, 0] = 0
    assert np.array_equal(unfiltered(lines, 3), lines[:, :, 1:])
