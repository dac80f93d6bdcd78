"""An ONNX file as a target in TensorRT, through ONNX Runtime's execution provider."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..errors import Unavailable, UnsafeInput
from ..untrusted.model_file import CheckedOnnx, check_onnx
from .onnx import OnnxTarget
from .runtime import RUNTIMES, Runtime

PROVIDER = "TensorrtExecutionProvider"


@RUNTIMES.register
class TensorRt(Runtime):
    """TensorRT on an NVIDIA GPU; what it does not support runs in ONNX Runtime's CPU kernels."""

    kind: Literal["tensorrt"] = "tensorrt"
    phrase: ClassVar[str] = "TensorRT"
    packages: ClassVar[tuple[str, ...]] = (
        "onnxruntime-gpu",
        "tensorrt",
        "tensorrt-cu12",
        "tensorrt-cu13",
        "tensorrt-rtx",
    )

    def open(self, model: CheckedOnnx, *, output: str | None = None) -> TensorRtTarget:
        """See `Runtime.open`."""
        return TensorRtTarget(model, output=output)

    def check(self) -> None:
        """See `Runtime.check`; whether the GPU itself answers shows when a model is loaded."""
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers():
            raise Unavailable(
                "not measured: no GPU (this build of ONNX Runtime has no TensorRT; onnxruntime-gpu and TensorRT are "
                "needed, on a machine with an NVIDIA GPU)"
            )


class TensorRtTarget(OnnxTarget):
    """A deployed model on an NVIDIA GPU; what TensorRT does not support falls back to ONNX Runtime's CPU kernels.

    Args:
        model: an ONNX file as `OnnxTarget` takes it.
        output: as for `OnnxTarget`.

    Raises:
        Unavailable: "not measured: no GPU", with the reason: another build of ONNX Runtime, no TensorRT, no GPU.
        InputError, UnsafeInput: as for `OnnxTarget`.
    """

    def __init__(self, model: CheckedOnnx | bytes, *, output: str | None = None) -> None:
        TensorRt().check()
        # What the CPU refuses is the file's fault; what only TensorRT refuses is the machine's.
        checked = check_onnx(model)
        OnnxTarget(checked, output=output)
        try:
            super().__init__(checked, provider=PROVIDER, output=output)
        except UnsafeInput as error:
            raise Unavailable(f"not measured: no GPU ({error})") from None
        if PROVIDER not in self._session.get_providers():
            raise Unavailable("not measured: no GPU (TensorRT found none, so ONNX Runtime would use the CPU)")
