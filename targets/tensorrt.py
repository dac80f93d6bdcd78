"""An ONNX file as a target in TensorRT, through ONNX Runtime's execution provider."""

from __future__ import annotations

from .errors import Unavailable, UnsafeInput
from .model_file import CheckedOnnx, check_onnx
from .onnx import OnnxTarget

PROVIDER = "TensorrtExecutionProvider"


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
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers():
            raise Unavailable(
                "not measured: no GPU (this build of ONNX Runtime has no TensorRT; onnxruntime-gpu and TensorRT are "
                "needed, on a machine with an NVIDIA GPU)"
            )
        # What the CPU refuses is the file's fault; what only TensorRT refuses is the machine's.
        checked = check_onnx(model)
        OnnxTarget(checked, output=output)
        try:
            super().__init__(checked, provider=PROVIDER, output=output)
        except UnsafeInput as error:
            raise Unavailable(f"not measured: no GPU ({error})") from None
        if PROVIDER not in self._session.get_providers():
            raise Unavailable("not measured: no GPU (TensorRT found none, so ONNX Runtime would use the CPU)")
