"""Words in a file that name people and machines, or say how a model was made."""

from __future__ import annotations

import re
from dataclasses import dataclass

SHOWN = 4  # characters of a word that a report shows
MOST = 200  # words that are kept of a file
_RUN = re.compile(rb"[\x20-\x7e]{8,}")
_NOBODY = {"user", "username", "name", "root", "you", "me", "runner", "shared", "public", "default"}

_SORTS: tuple[tuple[str, bool, tuple[bytes, ...]], ...] = (  # what a word is called, whether it is private, its looks
    (
        "secret",
        True,
        (
            rb"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[0-9A-Za-z]{36}|hf_[0-9A-Za-z]{30,}|sk-[0-9A-Za-z_-]{32,})\b",
            rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
        ),
    ),
    ("address with a password", True, (rb"\b[a-z][a-z0-9+]{2,9}://[^\s/:@]+:[^\s/@]+@[\w.-]+",)),
    ("e-mail address", True, (rb"\b[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{2,63}\.){1,4}[A-Za-z]{2,10}\b",)),
    ("home folder", True, (rb"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[\w.-]{2,32}(?:[/\\][^\s\"':;,<>|]*)?",)),
    (
        "path",
        True,
        (
            rb"(?<![\w./:-])/(?:mnt|data|srv|scratch|work|workspace|opt|nfs|media|root|tmp|var|usr)/[\w.-]+/[\w./-]+",
            rb"\b[A-Z]:\\(?:[\w .-]+\\)+[\w.-]+",
        ),
    ),
    ("host name", True, (rb"\b[a-z0-9][a-z0-9-]{1,62}\.(?:local|internal|corp|lan|intranet)\b",)),
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
            rb"noise_multiplier|epsilon|delta)[\"']?\s?[=:]\s?[\"']?[\w.+-]{1,24}",
        ),
    ),
    (
        "version",
        False,
        (
            rb"\b(?:torch|pytorch|tensorflow|tf|keras|onnx|onnxruntime|sklearn|scikit-learn|jax|flax|python|cuda|"
            rb"transformers|timm|safetensors)[ _=:v\"/-]{1,4}\d+(?:\.\d+){1,3}\w{0,16}",
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
    """Each word once, at its first place, in the order of the places; `MOST` at most."""
    found: dict[tuple[str, str], Word] = {}
    for run in _RUN.finditer(content):
        text = run.group()[: 2**20]
        taken: list[tuple[int, int]] = []
        for kind, private, pattern in _KINDS:
            for match in pattern.finditer(text):
                begin, end = match.span()
                if any(begin < high and end > low for low, high in taken):
                    continue
                taken.append((begin, end))
                word = match.group()[:300].decode("ascii")
                if kind == "home folder" and re.split(r"[/\\]", word)[2].lower() in _NOBODY:
                    continue
                found.setdefault((kind, word), Word(kind, private, run.start() + begin, word))
                if len(found) >= MOST:
                    return sorted(found.values(), key=lambda one: one.offset)
    return sorted(found.values(), key=lambda one: one.offset)
