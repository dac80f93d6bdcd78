"""Draws parts.svg from the contracts that import-linter holds (pyproject.toml). `python docs/draw_parts.py` writes it.

Plain SVG, so that a page needs no script: one frame per folder of the package, the rooms inside in the order of their
own contract, where there is one. Imports run downwards only.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "crushproof"
WIDTH, MARGIN, PAD, GAP = 920, 20, 14, 8
LINE, BOX, CHARACTER = 18, 26, 7.6  # heights of a line of text and of a room; width of a character at 13 px
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1c2733}.n{font-weight:600;font-size:15px}.s{fill:#51606f}"
    ".b{fill:#f4f7fa;stroke:#b8c4d0}.r{fill:#fff;stroke:#8fa1b3}.a{stroke:#51606f;stroke-width:1.5;fill:none}"
)


def contracts(pyproject: str) -> dict[str, list[list[str]]]:
    """By package: its layers from the top down, each the names that share it; from every contract of layers."""
    found: dict[str, list[list[str]]] = {}
    for contract in tomllib.loads(pyproject)["tool"]["importlinter"]["contracts"]:
        if contract["type"] != "layers":
            continue
        layers = [[name.strip(" ()") for name in re.split(r"[|:]", layer)] for layer in contract["layers"]]
        for container in contract.get("containers") or [layers[0][0].rpartition(".")[0]]:
            rows = [[name.removeprefix(f"{container}.") for name in layer] for layer in layers]
            if sum(map(len, rows)) > sum(map(len, found.get(container, []))):
                found[container] = rows
    return found


def sentence(module: str) -> str:
    """The first sentence of a module's docstring, or of a package's; nothing where there is no such module."""
    path = ROOT.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = re.match('"""(.*?)"""', file.read_text(), re.DOTALL) if file.is_file() else None
    return " ".join(found[1].partition("\n\n")[0].split()) if found else ""


def picture(pyproject: str) -> str:
    """The SVG document."""
    layers = contracts(pyproject)
    pieces: list[str] = []
    y = MARGIN + LINE
    for name in (name for names in layers[PACKAGE] for name in names):
        y, band = _folder(f"{PACKAGE}.{name}", layers, MARGIN, y, WIDTH - 3 * MARGIN)
        pieces += band
        y += GAP
    x, end = WIDTH - MARGIN, y - GAP
    arrow = f'<path class="a" d="M{x} {MARGIN + LINE}V{end}m-4 -8l4 8l4 -8"/>'
    words = f'<text class="s" x="{x + 5}" y="{MARGIN + 6}" text-anchor="end">imports run down</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN - GAP}" role="img" '
        f'aria-label="The folders of {PACKAGE} from the top down, as pyproject.toml has them">\n'
        f"<style>{STYLE}</style>\n" + "\n".join([*pieces, arrow, words]) + "\n</svg>\n"
    )


def _folder(package: str, layers: dict[str, list[list[str]]], left: int, top: int, width: int) -> tuple[int, list[str]]:
    """Where a folder's frame ends, and its drawing: name, sentence, and its rooms, which may be such folders too."""
    inside, room = left + PAD, width - 2 * PAD
    y = top + PAD + LINE
    pieces = [f'<text class="n" x="{inside}" y="{y - 4}">{package.rpartition(".")[2]}/</text>']
    for line in textwrap.wrap(sentence(package), int(room / (CHARACTER * 0.85))):
        y += LINE
        pieces.append(f'<text class="s" x="{inside}" y="{y - 4}">{escape(line)}</text>')
    for row in layers.get(package, []):
        plain = [name for name in row if f"{package}.{name}" not in layers]
        if plain:
            y, boxes = _row(package, plain, inside, y + GAP, room)
            pieces += boxes
        for name in sorted(set(row) - set(plain)):
            y, band = _folder(f"{package}.{name}", layers, inside, y + GAP, room)
            pieces += band
    frame = f'<rect class="b" x="{left}" y="{top}" width="{width}" height="{y + PAD - top}" rx="6"/>'
    return y + PAD, [frame, *pieces]


def _row(package: str, names: list[str], left: int, y: int, width: int) -> tuple[int, list[str]]:
    """Where a row of rooms ends, and its boxes, wrapped where they are too many for one line."""
    pieces, x = [], float(left)
    for name in names:
        size = len(name) * CHARACTER + 2 * GAP
        if x + size > left + width:
            x, y = float(left), y + BOX + GAP // 2
        pieces.append(
            f'<g><title>{escape(sentence(f"{package}.{name}"))}</title><rect class="r" x="{x:g}" y="{y}" '
            f'width="{size:g}" height="{BOX}" rx="4"/><text x="{x + size / 2:g}" y="{y + LINE}" '
            f'text-anchor="middle">{escape(name)}</text></g>'
        )
        x = round(x + size + GAP, 1)
    return y + BOX, pieces


def main() -> None:
    (ROOT / "docs" / "parts.svg").write_text(picture((ROOT / "pyproject.toml").read_text()))


if __name__ == "__main__":
    main()
