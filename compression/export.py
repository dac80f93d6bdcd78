"""A torch module as the ONNX file that ships.

Quantised layers ship as integers: int8 weights and int32 biases behind a DequantizeLinear each, inputs through
QuantizeLinear and DequantizeLinear (u8). That is the QDQ form of the ONNX standard: a runtime may compute it as
written, or replace the pattern by integer kernels where the layer's output is quantised again.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..targets.errors import NotApplicable
from .fake_quantize import QuantizedLayer
from .layers import replace_layers

OPSET = 17
INPUT, OUTPUT = "input", "logits"


def to_onnx(module: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The module in evaluation mode as ONNX: input "input" [batch, *shape], output "logits", both float32.

    The same module gives the same bytes. Batch norms behind a float convolution are folded into it by the exporter,
    which moves logits by float rounding only.

    Args:
        shape: of one record.

    Raises:
        NotApplicable: the model does something the exporter cannot express; the message carries its reason.
    """
    example = torch.zeros(2, *shape)
    shipped = copy.deepcopy(module).cpu().eval()
    shipped = replace_layers(
        shipped, {layer: _Shipped(layer) for layer in shipped.modules() if isinstance(layer, QuantizedLayer)}
    ).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The TorchScript exporter takes 20 ms where its successor takes seconds; torch announces its end, not its date.
        for announcement in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
            warnings.filterwarnings("ignore", announcement, DeprecationWarning)
        try:
            torch.onnx.export(
                shipped,
                (example,),
                file,  # type: ignore[arg-type]  # its stub forgets files, its documentation does not
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise NotApplicable(f"The model cannot be exported to ONNX (opset {OPSET}): {reason}") from error
    return _tidy(file.getvalue())


class _Shipped(nn.Module):
    """A quantised layer during export: its integers, and the zero points that runtimes look for when they fuse."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.layer = [layer]  # in a list, so that its float bias is no part of the file
        self.tensors = ["codes", "weight_scale", "weight_zero_point"]
        self.register_buffer("codes", layer.codes)
        self.register_buffer("weight_scale", layer.weight_scale)
        self.register_buffer("weight_zero_point", torch.zeros(len(layer.codes), dtype=torch.int8))
        if layer.input_scale is not None and layer.input_zero_point is not None:
            self.tensors += ["input_scale", "input_zero_point"]
            self.register_buffer("input_scale", layer.input_scale)
            self.register_buffer("input_zero_point", layer.input_zero_point.to(torch.uint8))
        if layer.bias_codes is not None and layer.input_scale is not None:
            self.tensors += ["bias_codes", "bias_scale"]
            self.register_buffer("bias_codes", layer.bias_codes)
            self.register_buffer("bias_scale", layer.input_scale * layer.weight_scale)
        elif layer.bias is not None:
            self.tensors += ["bias"]
            self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [getattr(self, name) for name in self.tensors]
        output: Tensor = _Quantized.apply(x, self.layer[0], tuple(self.tensors), *tensors)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return output


class _Quantized(torch.autograd.Function):
    """Computes the layer in torch, and writes it down in ONNX as integers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLayer, names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        output: Tensor = layer(x)
        return output

    @staticmethod
    def symbolic(g: Any, x: Any, layer: QuantizedLayer, names: tuple[str, ...], *tensors: Any) -> Any:
        of = dict(zip(names, tensors, strict=True))
        rank = x.type().dim()
        if "input_scale" in of:
            grid = of["input_scale"], of["input_zero_point"]
            x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, *grid), *grid)
        weight = g.op("DequantizeLinear", of["codes"], of["weight_scale"], of["weight_zero_point"], axis_i=0)
        bias = [of["bias"]] if "bias" in of else []
        if "bias_codes" in of:
            bias = [g.op("DequantizeLinear", of["bias_codes"], of["bias_scale"], axis_i=0)]
        if layer.operation != "linear":
            return g.op(
                "Conv",
                x,
                weight,
                *bias,
                kernel_shape_i=list(layer.codes.shape[2:]),
                strides_i=list(layer.stride),
                pads_i=list(layer.padding) * 2,
                dilations_i=list(layer.dilation),
                group_i=layer.groups,
            )
        if rank == 2:
            return g.op("Gemm", x, weight, *bias, transB_i=1)
        output = g.op("MatMul", x, g.op("Transpose", weight, perm_i=[1, 0]))
        return g.op("Add", output, *bias) if bias else output


def _tidy(data: bytes) -> bytes:
    """The exported file without what does not run: doc strings, and aliases of equal constants."""
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    constants = {initializer.name for initializer in graph.initializer}
    aliases = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] != OUTPUT
    }
    kept = [node for node in graph.node if node.output[0] not in aliases]
    for node in kept:
        node.doc_string = ""
        node.input[:] = [aliases.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
    model.doc_string = graph.doc_string = ""
    tidied: bytes = model.SerializeToString(deterministic=True)
    return tidied
