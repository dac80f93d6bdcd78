"""A torch module as the ONNX file that ships.

Quantised layers ship as what they are. Weights: int8, int4 or int2 tensors behind a DequantizeLinear with a scale per
tensor, channel or block; 16-bit floats behind a Cast. Static activations go through QuantizeLinear and DequantizeLinear
(u8), biases then are int32: the QDQ form of the ONNX standard, which a runtime may compute as written, or by integer
kernels where the layer's output is quantised again. Dynamic activations are integer arithmetic in the file itself:
DynamicQuantizeLinear, then MatMulInteger or ConvInteger.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable
from ...targets.serving.smoothed import PROPERTY, NoisyVote
from ..layers.edit import replace_layers
from ..quantization.onnx_weight import SHIPPINGS, Shipping, element_type, int8_codes, weight_operator
from ..quantization.quantized_layer import QuantizedLayer
from ..quantization.weight_codes import SIXTEEN_BITS, WeightFormat
from ..smoothed import SmoothedAnswers

if TYPE_CHECKING:
    import onnx

OPSET = 17
EXPORTERS_LAST_OPSET = 20  # what torch's exporter knows; later ones only widened the types that operators take
BLOCK_OPSET, INT2_OPSET = 21, 25  # the first with 4-bit integers and block-wise scales; with 2-bit integers
IR_VERSIONS = {BLOCK_OPSET: 10, INT2_OPSET: 13}
FLAT = "flat"  # the shape of a flattened batch: [0, -1], its first axis and the rest
INPUT, OUTPUT = "input", "logits"


def to_onnx(module: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The module in evaluation mode as ONNX: input "input" [batch, *shape], output "logits", both float32.

    The same module gives the same bytes. Batch norms behind a float convolution are folded into it by the exporter,
    which moves logits by float rounding only. Every layer that defines `shipped()` is replaced by what it returns.
    The opset is 17; 21 where a file needs 4-bit weights or groups; 25 where it needs 2-bit ones (binary and ternary
    weights are among them; 3-bit ones ship in 4).

    Args:
        shape: of one record.

    Raises:
        NotApplicable: the model does something the exporter cannot express; the message carries its reason.
    """
    if any(isinstance(layer, SmoothedAnswers) and layer is not module for layer in module.modules()):
        raise NotApplicable("A file is served by vote under noise as a whole: nothing goes around it in the same file.")
    example = torch.zeros(2, *shape)
    shipped = copy.deepcopy(module).cpu().eval()
    for parameter in shipped.parameters():  # not the module's requires_grad_, which TorchScript does not have
        parameter.requires_grad_(False)
    while stand_ins := {layer: ship() for layer in shipped.modules() if (ship := getattr(layer, "shipped", None))}:
        shipped = replace_layers(shipped, stand_ins)  # what stands in may hold such layers itself
    quantized = [layer for layer in shipped.modules() if isinstance(layer, QuantizedLayer)]
    formats = [getattr(layer, "format", None) for layer in shipped.modules()]
    opset = max([OPSET, *(_opset(format) for format in formats if isinstance(format, WeightFormat))])
    shipped = replace_layers(shipped, {layer: _Shipped(layer) for layer in quantized}).eval()
    file = io.BytesIO()
    shippings: dict[str, Shipping] = {}
    token, fused = SHIPPINGS.set(shippings), torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        # The TorchScript exporter takes 20 ms where its successor takes seconds; torch announces its end, not its date.
        for announcement in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
            warnings.filterwarnings("ignore", announcement, DeprecationWarning)
        # Of an LSTM's or GRU's initial states, which follow the batch: nobody here builds them for a batch of two.
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1", UserWarning)
        # torch's own recurrent and attention layers compare sizes; remarks on a user's code are let through.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", module=r"torch\.nn")
        warnings.filterwarnings(
            "ignore", "Converting a tensor to a Python boolean", module=r"crushproof\.(compression|targets)"
        )
        log = torch._C._jit_onnx_log
        try:
            torch._C._jit_onnx_log = lambda *_: None  # else a failure prints its graph
            torch.backends.mha.set_fastpath_enabled(False)  # of attention: kernels that no operator of ONNX stands for
            torch.onnx.export(
                shipped,
                (example,),
                file,  # type: ignore[arg-type]  # its stub forgets files, its documentation does not
                dynamo=False,
                opset_version=min(opset, EXPORTERS_LAST_OPSET),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise NotApplicable(f"The model cannot be exported to ONNX (opset {OPSET}): {reason}") from error
        finally:
            torch._C._jit_onnx_log = log
            torch.backends.mha.set_fastpath_enabled(fused)
            SHIPPINGS.reset(token)
    return _tidy(file.getvalue(), opset, shippings, module.vote if isinstance(module, SmoothedAnswers) else None)


def _opset(format: WeightFormat) -> int:
    """The first opset that can write a layer's weights."""
    if format.number in SIXTEEN_BITS:
        return OPSET
    if format.width <= 2:
        return INT2_OPSET
    return BLOCK_OPSET if format.width <= 4 or format.granularity == "group" else OPSET


class _Shipped(nn.Module):
    """A quantised layer during export: the tensors that go into the file."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.layer = [layer]  # in a list, so that its float bias is no part of the file
        held = {"codes": layer.codes}
        scale = layer.weight_scale
        if scale is not None:
            scale = scale.view(()) if layer.granularity == "tensor" else scale
            held["weight_scale"] = scale
            held["weight_zero_point"] = torch.zeros(scale.shape, dtype=torch.int8)
        if layer.granularity == "group":
            held["codes"] = layer.codes.flatten(1)
            held["shape"] = torch.tensor(layer.shape)
        if layer.input_scale is not None and layer.input_zero_point is not None:
            held["input_scale"] = layer.input_scale
            held["input_zero_point"] = layer.input_zero_point.to(torch.uint8)
        if layer.bias_codes is not None and layer.input_scale is not None and scale is not None:
            held["bias_codes"], held["bias_scale"] = layer.bias_codes, layer.input_scale * scale
        elif layer.bias is not None:
            held["bias"] = layer.bias
        if _integer_arithmetic(layer):
            channels = (-1, *[1] * (len(layer.shape) - 2))  # to multiply and add behind a convolution
            if scale is not None and scale.dim():
                held["weight_scale"] = scale.view(channels)
            if layer.bias is not None:
                held["bias"] = layer.bias.view(channels)
        self.tensors = list(held)
        for name, value in held.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [getattr(self, name) for name in self.tensors]
        output: Tensor = _Quantized.apply(x, self.layer[0], tuple(self.tensors), *tensors)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return output


class _Quantized(torch.autograd.Function):
    """Computes the layer in torch, and writes it down in ONNX as integers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLayer, names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        state = torch._C._get_tracing_state()
        # The tracer would take tensors that are no part of the file for constants, and trip over a second call.
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # torch's stub forgets it
        try:
            output: Tensor = layer(x)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]  # torch's stub forgets it
        return output

    @staticmethod
    def symbolic(g: Any, x: Any, layer: QuantizedLayer, names: tuple[str, ...], *tensors: Any) -> Any:
        of = dict(zip(names, tensors, strict=True))
        if _integer_arithmetic(layer):
            return _dynamic(g, x, layer, of)
        weight = weight_operator(g, layer.format, of, widen=layer.activations != "float")
        if "shape" in of:
            weight = g.op("Reshape", weight, of["shape"])
        if layer.operation == "embedding":
            return g.op("Gather", weight, x, axis_i=0)
        rank = x.type().dim()
        if layer.activations == "dynamic":
            x = g.op("DequantizeLinear", *g.op("DynamicQuantizeLinear", x, outputs=3))
        elif "input_scale" in of:
            grid = of["input_scale"], of["input_zero_point"]
            x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, *grid), *grid)
        bias = [of["bias"]] if "bias" in of else []
        if "bias_codes" in of:
            axis = {} if layer.granularity == "tensor" else {"axis_i": 0}
            bias = [g.op("DequantizeLinear", of["bias_codes"], of["bias_scale"], **axis)]
        if layer.operation != "linear":
            return g.op("Conv", x, weight, *bias, **_geometry(layer))
        if rank == 2:
            return g.op("Gemm", x, weight, *bias, transB_i=1)
        output = g.op("MatMul", x, g.op("Transpose", weight, perm_i=[1, 0]))
        return g.op("Add", output, *bias) if bias else output


def _integer_arithmetic(layer: QuantizedLayer) -> bool:
    """Whether the file says integer products: dynamic activations, and one weight scale for a whole product."""
    return layer.activations == "dynamic" and layer.granularity != "group"


def _dynamic(g: Any, x: Any, layer: QuantizedLayer, of: dict[str, Any]) -> Any:
    """The form in which ONNX Runtime writes and recognises dynamic quantisation.

    Its linear layers are quick; its convolutions (ConvInteger) take five times as long as in float32 (measured).
    """
    rounded, scale, zero_point = g.op("DynamicQuantizeLinear", x, outputs=3)
    codes = int8_codes(layer.format, of)
    if layer.operation == "linear":
        codes = g.op("Transpose", codes, perm_i=[1, 0])
        sums = g.op("MatMulInteger", rounded, codes, zero_point)
    else:
        sums = g.op("ConvInteger", rounded, codes, zero_point, **_geometry(layer))
    output = g.op("Mul", g.op("Cast", sums, to_i=element_type("FLOAT")), g.op("Mul", scale, of["weight_scale"]))
    return g.op("Add", output, of["bias"]) if "bias" in of else output


def _geometry(layer: QuantizedLayer) -> dict[str, Any]:
    return {
        "kernel_shape_i": list(layer.shape[2:]),
        "strides_i": list(layer.stride),
        "pads_i": list(layer.padding) * 2,
        "dilations_i": list(layer.dilation),
        "group_i": layer.groups,
    }


def _tidy(data: bytes, opset: int, shippings: dict[str, Shipping], vote: NoisyVote | None) -> bytes:
    """The exported file with every constant in its own type and without what does not run or runs twice.

    That is: doc strings, aliases of equal constants, and a second rounding of one tensor to one grid (a runtime fuses
    integer kernels only where a tensor is rounded once).
    """
    import onnx

    model = onnx.load_model_from_string(data)
    if vote is not None:
        model.metadata_props.add(key=PROPERTY, value=vote.written())
    graph = model.graph
    constants = {initializer.name: initializer for initializer in graph.initializer}
    scalars: dict[tuple[int, bytes], str] = {}
    aliases: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for name, constant in constants.items():
        shipping = shippings.get(name, Shipping("INT8"))
        if not constant.dims and constant.raw_data:
            first = scalars.setdefault((constant.data_type, constant.raw_data), name)
            aliases |= {name: first} if first != name else {}
        elif shipping.kind != "INT8":
            _retype(constant, shipping.kind)
        if shipping.widen:
            kept.append(
                onnx.helper.make_node("Cast", [name], [f"{name}_int8"], f"{name}/Cast", to=element_type("INT8"))
            )
    aliases |= {node.input[0]: node.output[0] for node in kept}
    roundings: dict[tuple[str, ...], str] = {}
    for node in graph.node:
        shipping = shippings.get(node.input[0], Shipping("INT8")) if node.input else Shipping("INT8")
        node.input[:] = [aliases.get(name, name) for name in node.input]
        node.doc_string = ""
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] != OUTPUT:
            aliases[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and shipping.kind in ("FLOAT16", "BFLOAT16"):
            cast = onnx.helper.make_node("Cast", node.input[:1], node.output, node.name, to=element_type("FLOAT"))
            kept.append(cast)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and not node.attribute:
            first = roundings.setdefault((node.op_type, *node.input), node.output[0])
            if first == node.output[0] or node.output[0] == OUTPUT:
                kept.append(node)
            else:
                aliases[node.output[0]] = first
        else:
            kept.append(node)
            if shipping.block_size and node.op_type == "DequantizeLinear":
                node.attribute.append(onnx.helper.make_attribute("block_size", shipping.block_size))
    used = {name for node in kept for name in node.input}
    kept = [node for node in kept if node.op_type != "Constant" or node.output[0] in used | {OUTPUT}]
    _reshape_before_rounding(kept, graph)
    initializers = [initializer for initializer in graph.initializer if aliases.get(initializer.name) not in constants]
    del graph.node[:], graph.initializer[:], model.opset_import[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    model.doc_string = graph.doc_string = ""
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    model.ir_version = IR_VERSIONS.get(opset, model.ir_version)
    tidied: bytes = model.SerializeToString(deterministic=True)
    return tidied


def _reshape_before_rounding(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> None:
    """Flattening of what is then rounded becomes a Reshape.

    ONNX Runtime moves a rounding ahead of a Reshape, to the layer that made the tensor, which then runs in integers.
    It does not do so with Flatten.
    """
    from onnx import helper, numpy_helper

    rounded = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    flattened = [node for node in nodes if node.op_type == "Flatten" and node.output[0] in rounded]
    for node in flattened:
        if helper.get_node_attr_value(node, "axis") == 1:
            node.op_type = "Reshape"
            node.input.append(FLAT)
            del node.attribute[:]
    if any(node.op_type == "Reshape" for node in flattened):
        graph.initializer.append(numpy_helper.from_array(np.array([0, -1]), FLAT))


def _retype(constant: onnx.TensorProto, kind: str) -> None:
    """Codes int8, or the bits of 16-bit floats int16, become what they stand for."""
    from onnx import helper, numpy_helper

    if kind in ("INT2", "INT4"):
        codes = np.frombuffer(constant.raw_data, dtype=np.int8).reshape(tuple(constant.dims))
        small = codes.astype(helper.tensor_dtype_to_np_dtype(element_type(kind)))
        constant.CopyFrom(numpy_helper.from_array(small, constant.name))
    constant.data_type = element_type(kind)
