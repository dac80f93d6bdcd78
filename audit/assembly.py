"""From evidence to findings: each attack's own module turns its evidence into rows."""

from __future__ import annotations

from ..attacks.evasion.evasion import Evasion
from ..attacks.extraction.extraction import Extraction
from ..attacks.membership.membership import Membership
from .evasion_findings import evasion
from .extraction_findings import extraction
from .findings import Finding
from .lineup import Contender
from .membership_findings import membership
from .reader import Reader
from .suite import Suite


def findings_of(reader: Reader, contender: Contender) -> list[Finding]:
    """Every finding of one contender, measured or not (rule 9: none is silently missing)."""
    found: list[Finding] = []
    for attack, label in reader.suite.attacks:
        if isinstance(attack, Evasion):
            found += evasion(reader, contender, attack, label)
        elif isinstance(attack, Membership):
            found += membership(reader, contender, attack, label)
        elif isinstance(attack, Extraction):
            found += extraction(reader, contender, attack, label)
    return found


def unread(suite: Suite) -> list[str]:
    """Labels of attacks that ran and whose evidence this version does not know how to turn into findings."""
    known = (Evasion, Membership, Extraction)
    return [label for attack, label in suite.attacks if not isinstance(attack, known)]
