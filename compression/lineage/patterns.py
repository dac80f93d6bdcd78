"""Operators that choose and that a declared recipe puts there itself, as its own export of another model has them.

Dynamic sparsity keeps a tensor's largest values and puts zeros in the place of the others: TopK, Greater, Where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256

from .forms import Form


def patterns(form: Form) -> frozenset[str]:
    """How each tensor that a Where chooses from is made of one other tensor and of constants alone."""
    names = [name for node in form.graph.nodes if node.op_type == "Where" for name in node.output]
    return frozenset(made for name in names if (made := _choice(form, name)) is not None)


def passed(form: Form, base: str, known: Iterable[str]) -> str | None:
    """The tensor that a source chooses from as one of the known patterns does; None: it does something else."""
    made = _choice(form, base)
    return form.core(base).operands[1] if made is not None and made in known else None


def _choice(form: Form, base: str) -> str | None:
    """A digest of what leads to Where(mask, x, zeros): operators and attributes, down to x."""
    core = form.core(form.strip(base).base)
    if core.kind != "Where" or len(core.operands) != 3:
        return None
    zeros = form.constant(core.operands[2])
    if zeros is None or zeros.values.any():
        return None
    leaf = form.strip(core.operands[1]).base
    told = list(_told(form, form.strip(core.operands[0]).base, leaf))
    return None if None in told else sha256(repr(told).encode()).hexdigest()


def _told(form: Form, base: str, leaf: str) -> Iterator[str | None]:
    waiting, steps = [base], 0
    while waiting:
        at, steps = waiting.pop(), steps + 1
        core = form.core(at)
        if at == leaf:
            yield "x"
        elif core.kind == "constant":
            yield "constant"
        elif core.kind == "input" or at in form.ends or steps > 256:
            yield None  # it hangs on something else too
        else:
            stripped = [form.strip(name) for name in core.operands if name]
            limits = [bool(one.limits) and one.base != leaf for one in stripped]
            yield repr(
                (core.kind, core.detail[:2], [[node.op_type for node, _ in one.moves] for one in stripped], limits)
            )
            waiting += [one.base for one in stripped]
