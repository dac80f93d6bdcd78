"""What can go wrong in a way the user can mend. Each error carries its exit code (README, "Exit codes")."""

from __future__ import annotations


class CrushproofError(Exception):
    """Base of every error whose message is written for the user: what happened, where, and how to mend it."""

    exit_code = 4


class InputError(CrushproofError):
    """A plan, an argument or a data file is wrong in an honest way: misspelt key, NaN pixel, missing file."""

    exit_code = 2


class NotApplicable(CrushproofError):
    """A recipe, attack or defense cannot do its work on this model or data; the message says why.

    The suite turns it into a row "not measured: <message>", so an audit never loses its other results to it.
    """

    exit_code = 2


class Incomplete(CrushproofError):
    """The audit could not finish now (another run holds the folder, a cell failed); what is computed is kept."""

    exit_code = 3


class UnsafeInput(CrushproofError):
    """A file may be crafted: a pickle, a bomb, a malformed header. It was refused and nothing in it was executed."""

    exit_code = 5
