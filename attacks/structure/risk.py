"""What a report says of masks and code books that tell of training records, and its two figures."""

from __future__ import annotations

from ..inference.risk import figures_of

STRUCTURE = figures_of("structure", "Members exposed by the mask or code book", "by the mask or code book alone")
