"""What every loader checks first about a file that may come from a stranger: its kind, its size, its zip structure."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, UnsafeInput, nearest_hint, quoted

FETCH_HINT = (
    "Nothing in it was executed. Fetch or write the file again; if it comes from somebody else, ask how it was made."
)
RATIO = 100  # uncompressed / compressed; real arrays stay below, a deflate bomb comes close to 1,032
SMALL = 64 * 2**20  # bytes; below it a high ratio is a sparse array, not a bomb
ENTRIES = 100_000
PART = 2**20

_LOCAL = struct.Struct("<4s5H3I2H")  # zip local file header, APPNOTE 4.3.7
_DESCRIBED = 0x8  # flag bit: sizes follow the data
_UTF8 = 0x800
_ENCRYPTED = 0x1
_ZIP64 = 0xFFFFFFFF


def ordinary_file(path: Path | str, what: str, limit: int) -> Path:
    """`path`, once it is known to be a readable, non-empty ordinary file (or a link to one) of at most `limit` bytes.

    What is no such file was named by mistake (exit 2): nothing in it was read. Malformed content is its reader's to
    refuse, by UnsafeInput (exit 5).

    Args:
        what: names the file's part in the audit, for example "the weights".

    Raises:
        InputError: it is missing, a broken link, a folder, a device, a pipe, empty, unreadable or too large.
    """
    path = Path(path)
    name = f"{what[0].upper()}{what[1:]} {quoted(path, 200)}"
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(
                f"{name} is a link to {quoted(os.readlink(path), 200)}, which does not exist. Mend the link or name "
                "the file itself."
            ) from None
        known = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest_hint(path.name, known)
        if "~" in path.parts:
            hint = " A ~ in it stands for no home folder here."
        raise InputError(f"{name} does not exist.{hint} Check the path and the folder it is looked up in.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{name} cannot be looked up ({reason}). Check the path.") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name} is a folder. Name the file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is a device, a pipe or a socket. Name an ordinary file.")
    if status.st_size == 0:
        raise InputError(f"{name} is empty (0 bytes). Write or fetch it again.")
    if status.st_size > limit:
        raise InputError(
            f"{name} has {status.st_size:,} bytes; at most {limit:,} are read here. Name another file or a smaller one."
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"{name} may not be read by this user. Change its permissions.")
    return path


def is_pickle(head: bytes | bytearray) -> bool:
    """Whether a file that starts with `head` (at least 2 bytes) is a pickle of protocol 2 or newer."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def open_archive(stream: BinaryIO, where: str, *, limit: int) -> zipfile.ZipFile:
    """A zip archive whose structure leaves no room for two readers to see different things.

    Checked: no password, only stored and deflated entries, unique plain names, local headers equal to the central
    directory, entries that neither overlap nor leave gaps, nothing before or behind the archive, at most `limit` bytes
    when unpacked and no compression ratio that only a bomb reaches.

    Args:
        where: the file's name as shown in messages.

    Raises:
        UnsafeInput: any of these does not hold.
    """
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError, OverflowError) as error:
        raise UnsafeInput(f"{where} is a damaged or crafted zip archive ({error}). {FETCH_HINT}") from None
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > limit or (unpacked > SMALL and unpacked > RATIO * packed):
        raise UnsafeInput(
            f"{where} would unpack from {packed:,} to {unpacked:,} bytes, as a zip bomb does; at most {limit:,} bytes, "
            f"and {RATIO} times the packed size, are accepted. Nothing was unpacked. Save fewer records, or save them "
            "without compression."
        )
    fault = _archive_fault(stream, archive, entries)
    if fault:
        raise UnsafeInput(f"{where} is a damaged or crafted zip archive: {fault}. {FETCH_HINT}")
    return archive


def _archive_fault(stream: BinaryIO, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> str | None:
    stream.seek(-22, os.SEEK_END)
    if archive.comment or stream.read(4) != b"PK\x05\x06":
        return "it carries a comment or other bytes at its end"
    if {*struct.unpack("<2H", stream.read(8)[4:])} != {min(len(entries), 0xFFFF)}:
        return "its directory has not as many entries as it says"
    if len(entries) > ENTRIES:
        return f"it has {len(entries):,} entries"
    names: set[str] = set()
    end = 0
    for entry in sorted(entries, key=lambda item: item.header_offset):
        name = entry.orig_filename
        if entry.flag_bits & _ENCRYPTED:
            return f"entry {quoted(name)} is protected by a password; save it without one"
        if entry.flag_bits & ~(_DESCRIBED | _UTF8) or entry.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            return f"entry {quoted(name)} has flags or a compression method that array files do not use"
        if fault := name_fault(name):
            return f"the name {quoted(name)} of an entry {fault}"
        if name.casefold() in names:
            return f"two entries are named {quoted(name)}"
        names.add(name.casefold())
        if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
            return f"entry {quoted(name)} is stored, yet its two sizes differ"
        if not 0 <= entry.header_offset - end <= (24 if end else 0):  # 24: the largest data descriptor
            return f"entry {quoted(name)} overlaps another or leaves a gap"
        length = _local_length(stream, entry)
        if length is None:
            return f"the local header of entry {quoted(name)} differs from the central directory"
        end = entry.header_offset + length + entry.compress_size
    if not 0 <= archive.start_dir - end <= 24:
        return "its directory does not follow its last entry"
    return None


def _local_length(stream: BinaryIO, entry: zipfile.ZipInfo) -> int | None:
    """Bytes of the entry's local header, or None when it says anything else than the central directory."""
    stream.seek(entry.header_offset)
    fixed = stream.read(_LOCAL.size)
    if len(fixed) != _LOCAL.size:
        return None
    magic, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = _LOCAL.unpack(fixed)
    name = stream.read(name_length)
    same = (
        magic == b"PK\x03\x04"
        and flags == entry.flag_bits
        and method == entry.compress_type
        and name == entry.orig_filename.encode("utf-8" if flags & _UTF8 else "cp437")
    )
    if not flags & _DESCRIBED:
        same = same and crc == entry.CRC and packed in (entry.compress_size, _ZIP64)
        same = same and unpacked in (entry.file_size, _ZIP64)
    return _LOCAL.size + name_length + extra_length if same else None


def name_fault(name: str) -> str | None:
    """What is wrong with `name` as the name of an entry or a tensor: "contains ..." or None."""
    if not name or len(name) > 1000:
        return "is empty or longer than 1,000 characters"
    if any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in name):
        return "contains control characters"
    if any(0xD800 <= ord(character) < 0xE000 for character in name):
        return "contains half of a surrogate pair"
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "is a path that leads out of the file"
    return None


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> bytearray:
    """The entry's bytes: never more than it declares.

    Raises:
        UnsafeInput: they do not unpack to what the directory declares.
    """
    content = bytearray()
    try:
        with archive.open(entry) as handle:
            while part := handle.read(PART):  # read() would unpack up to 2 GiB whatever the entry declares
                content += part
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise UnsafeInput(f"Entry {quoted(entry.filename)} of {where} is damaged ({error}). {FETCH_HINT}") from None
    if len(content) != entry.file_size:
        raise UnsafeInput(f"Entry {quoted(entry.filename)} of {where} has another size than it declares. {FETCH_HINT}")
    return content
