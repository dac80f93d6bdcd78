"""Looks at an ONNX file before a runtime does: it may have been crafted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import UnsafeInput

if TYPE_CHECKING:
    import onnx

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # operators of the standard; others are code of the runtime's or somebody's own


def check_onnx(data: bytes) -> onnx.ModelProto:
    """The model in `data`; UnsafeInput unless it is well formed and needs nothing but itself and the standard."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    try:
        model = onnx.load_model_from_string(data)
        nodes = len(model.graph.node)
    except (DecodeError, ValueError):
        nodes = 0
    if not nodes:
        raise UnsafeInput(
            f"This is not an ONNX model, or one that was cut off ({len(data):,} bytes). It was not run. Export the "
            "model again, or fetch the file again and compare its size with the original's."
        )
    asked = sorted({opset.domain for opset in model.opset_import} - set(DOMAINS))
    _walk(model, asked)
    if asked:
        raise UnsafeInput(
            f"The ONNX model uses operators outside the standard ({', '.join(repr(name) for name in asked)}), whose "
            "code is not known. It was not run. Export it with standard operators only."
        )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: a name that is not UTF-8
        reason = str(error).strip().splitlines()[0]
        raise UnsafeInput(f"The ONNX model is malformed and was not run: {reason}") from None
    return model


def _walk(message: Any, domains: list[str]) -> None:
    """Walks every message of the model: refuses data outside the file, collects the domains of nodes."""
    kind = message.DESCRIPTOR.name
    if kind == "TensorProto" and (message.data_location == message.EXTERNAL or message.external_data):
        raise UnsafeInput(
            "The ONNX model keeps weights in other files (external data), by paths that it names itself. Nothing was "
            "read from them. Save it as one file: onnx.save(model, path, save_as_external_data=False)."
        )
    if kind == "NodeProto" and message.domain not in (*DOMAINS, *domains):
        domains.append(message.domain)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for item in [value] if hasattr(value, "DESCRIPTOR") else value:
                _walk(item, domains)
