"""Words in a file that name people and machines, or say how a model was made."""

from __future__ import annotations

import re
from bisect import bisect
from dataclasses import dataclass

from .contents.texts import ascii_text

SHOWN = 4  # characters of a word that a report shows
MOST = 200  # words that are kept of a file
_RUN = re.compile(rb"[\x20-\x7e]{8,}")
_UNNAMED = re.compile(rb"(?i)[=:]\s?[\"']?(?:none|null|str|string|int|true|false|self|unknown|optional)$")
_NOBODY = {"user", "username", "name", "root", "you", "me", "runner", "shared", "public", "default"}

_SORTS: tuple[tuple[str, bool, tuple[bytes, ...]], ...] = (  # what a word is called, whether it is private, its looks
    (
        "secret",
        True,
        (
            rb"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[0-9A-Za-z]{36}|hf_[0-9A-Za-z]{30,}|sk-[0-9A-Za-z_-]{32,}|"
            rb"github_pat_[0-9A-Za-z_]{50,}|xox[baprs]-[0-9A-Za-z-]{20,}|AIza[0-9A-Za-z_-]{35})\b",
            rb"(?<![\w.-])eyJ[\w-]{10,}+\.eyJ[\w-]{10,}+\.[\w-]{10,}+",
            rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
        ),
    ),
    ("address with a password", True, (rb"\b[a-z][a-z0-9+]{2,9}://[^\s\0/:@]+:[^\s\0/@]+@[\w.-]+",)),
    ("e-mail address", True, (rb"\b[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{2,63}\.){1,4}[A-Za-z]{2,10}\b",)),
    (
        "home folder",
        True,
        (rb"(?:/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})[\w.-]{2,32}(?:[/\\][^\s\0\"':;,<>|]*)?",),
    ),
    (
        "path",
        True,
        (
            rb"(?<![\w./:-])/(?:mnt|data|srv|scratch|work|workspace|opt|nfs|media|root|tmp|var|usr)/[\w.-]+/[\w./-]+",
            rb"\b[A-Z]:\\{1,2}(?:[\w .-]+\\{1,2})+[\w.-]+",  # JSON writes two
            rb"(?<![\w\\])\\{2,4}[A-Za-z][\w.-]{1,62}(?:\\{1,2}[\w.$-]+){2,}",
            rb"\b(?:s3a?|gs|abfss?|wasbs?|hdfs|dbfs|smb|sftp|ssh)://[\w.@-]{2,}(?:[/:][\w./=-]*)?",
        ),
    ),
    (
        "user name",
        True,
        (
            rb"(?i)(?<![\w.-])(?:user_?name|user|login|author|created_by)[\"']? ?[=:] ?[\"']?"
            rb"[a-z][\w.-]{2,40}(?![\w(<\[])",
        ),
    ),
    (
        "host name",
        True,
        (
            rb"\bhost_?name[\"']? ?[=:] ?[\"']?[A-Za-z][\w.-]{1,62}",
            rb"\b[a-z0-9][a-z0-9-]{1,62}\.(?:local|internal|corp|lan|intranet)\b",
        ),
    ),
    (
        "private network address",
        True,
        (rb"(?<![\d.])(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}(?![\d.])",),
    ),
    (
        "hyper-parameter",
        False,
        (
            rb"\b(?:learning_rate|lr|batch_size|epochs?|weight_decay|momentum|dropout|seed|optimi[sz]er|num_layers|"
            rb"noise_multiplier|epsilon|delta)[\"']? ?[=:] ?[\"']?[\w.+-]{1,24}",
        ),
    ),
    (
        "version",
        False,
        (
            rb"\b(?:torch|pytorch|tensorflow|tf|keras|onnx|onnxruntime|sklearn|scikit-learn|jax|flax|python|cuda|"
            rb"transformers|timm|safetensors)[ _=:v\"/-]{1,4}\d+(?:\.\d+){1,3}\w{0,16}",
            rb"\b(?:commit|revision|git[_-]?(?:sha|hash|commit))[\"']? ?[=: ] ?[\"']?[0-9a-f]{7,40}\b",
        ),
    ),
)
_KINDS = tuple((name, private, re.compile(b"|".join(looks))) for name, private, looks in _SORTS)
SORTS = tuple(dict.fromkeys(name for name, private, _ in _KINDS if private))


@dataclass(frozen=True)
class Word:
    """Args:
    kind: "e-mail address"; private: whether it names somebody or something of somebody's.
    offset: of its first byte, in its part.
    text: the whole word.
    """

    kind: str
    private: bool
    offset: int
    text: str

    @property
    def shown(self) -> str:
        """Its first characters and its length: a report must not repeat what it warns of."""
        return f"{self.text[:SHOWN]}... ({len(self.text)} characters)"


def words_in(content: bytes) -> list[Word]:
    """Each word once, at its first place, in the order of the places; `MOST` at most, the private ones first."""
    found: dict[tuple[str, str], Word] = {}
    written = ascii_text(content)
    text, taken = written.content, bytearray(len(written.content))  # each character is part of one word at most
    runs = [match.span() for match in _RUN.finditer(text)]
    begins = [begin for begin, _ in runs]
    for kind, private, pattern in _KINDS:
        for match in pattern.finditer(text):
            begin, end = match.span()
            run = bisect(begins, begin) - 1
            if run < 0 or end > runs[run][1] or 1 in taken[begin:end]:
                continue
            taken[begin:end] = b"\1" * (end - begin)
            word = match.group()[:300].decode("ascii")
            if kind == "home folder" and re.split(r"[/\\]+", word)[2].lower() in _NOBODY:
                continue
            if kind == "user name" and _UNNAMED.search(match.group()):
                continue
            found.setdefault((kind, word), Word(kind, private, written.place(begin), word))
            if len(found) >= MOST:
                return sorted(found.values(), key=lambda one: one.offset)
    return sorted(found.values(), key=lambda one: one.offset)
