"""Whether names say that an input is the state of a recurrent network. It imports nothing: _usual_onnx.py loads it by
its path, in a process of its own.
"""

from __future__ import annotations

import re


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


STATES = _names("state states hidden cell cells carry")
LETTERS = _names("h c hx cx hn cn ht ct")  # as torch and the papers write them
LATER = _names("next new updated")
# What says only that it goes in or comes out, and what exporters name an output themselves.
NEUTRAL = LATER | _names("in out input output final call default identity onnx partitioned serving stateful")


def comes_back(given: str, answered: str) -> bool:
    """Whether an input of one name is a state that an output of the other name hands on: both are named as a state
    (h0 and hn, state_in and state_out), or the input is and the output's name says nothing (Identity_1). Single letters
    say little (c may be a condition): the output must then at least be called the next one.
    """
    words, others = _words(given), _words(answered)
    if not words & (STATES | LETTERS):
        return False
    silent = others <= NEUTRAL
    return bool(others & (STATES | LETTERS)) or (silent and bool(words & STATES or others & LATER))


def _words(name: str) -> frozenset[str]:
    return frozenset(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))
