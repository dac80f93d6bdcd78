"""Other runtimes than ONNX Runtime, in which an ONNX file can be run as well; other packages may bring theirs."""

from __future__ import annotations

from abc import abstractmethod
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

from ..errors import Unavailable
from ..model import Target
from ..technique import Registry, Technique
from ..untrusted.model_file import CheckedOnnx


class Runtime(Technique):
    """Where a plan's ONNX files are run too (`runtimes`), to see how far it agrees with ONNX Runtime.

    Every figure of an audit is measured in ONNX Runtime, which is none of these.
    """

    kind: str
    phrase: ClassVar[str]  # what sentences call it, e.g. "OpenVINO"
    packages: ClassVar[tuple[str, ...]]  # distributions that bring it: what their versions are decides its answers

    @abstractmethod
    def open(self, model: CheckedOnnx, *, output: str | None = None) -> Target:
        """The model, loaded.

        Args:
            model: parsed and checked; `model.usable` are the bytes to load.
            output: the name of the one that holds the logits; None: the first.

        Raises:
            InputError, NotApplicable: it cannot run this model, or the model is no classifier.
            Unavailable: it cannot run on this machine, now: nothing is kept, and the next audit tries again.
        """

    def check(self) -> None:
        """Raises Unavailable, with the reason and the way out, unless it can run on this machine."""
        if all(release_of(package) is None for package in self.packages):
            raise Unavailable(f"{self.phrase} is not installed: pip install {self.packages[0]}.")


def release_of(*packages: str) -> str | None:
    """The version of the first distribution that is installed, if any is."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


RUNTIMES: Registry[Runtime] = Registry("runtime", __package__ or "", "crushproof.runtimes", Runtime)
