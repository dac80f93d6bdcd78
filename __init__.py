"""crushproof: robustness and privacy audits of compressed neural networks.

The public face. Everything is imported when first used, so that `import crushproof` and the command line start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# By its full name: pytest reads this file of a checkout, whatever the checkout's folder is called, as a package's too.
from crushproof.targets.quiet import keep_quiet as _keep_quiet

__version__ = "0.1.0"

_HOMES = {
    "audit_model": ".audit.api",
    "AuditResult": ".audit.result",
    "Audit": ".audit.schema.rows",
    "Finding": ".audit.schema.rows",
    "Training": ".training.loop",
    "Chain": ".compression.chain",
    "Distill": ".compression.distillation.distill",
    "DynamicSparsity": ".compression.pruning.dynamic_sparsity",
    "Factorize": ".compression.factorization.factorize",
    "MixedPrecision": ".compression.quantization.mixed_precision",
    "Prune": ".compression.pruning.prune",
    "Quantize": ".compression.quantization.quantize",
    "Share": ".compression.share",
    "evade": ".attacks.evasion.evade",
    "extract": ".attacks.extraction.extract",
    "audit_dp": ".attacks.dp_audit.worlds",
    "GradientCanaries": ".attacks.dp_audit.one_run",
    "train_shadows": ".attacks.membership.infer",
    "infer_membership": ".attacks.membership.infer",
    "load": ".targets.serving.serve",
    "Evasion": ".attacks.evasion.evasion",
    "Membership": ".attacks.membership.membership",
    "Extraction": ".attacks.extraction.extraction",
    "CrushproofError": ".targets.errors",
    "InputError": ".targets.errors",
    "UnsafeInput": ".targets.errors",
    "Incomplete": ".targets.errors",
    "NotApplicable": ".targets.errors",
}

_keep_quiet()  # before anything imports a library that reports to somebody

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crushproof' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
