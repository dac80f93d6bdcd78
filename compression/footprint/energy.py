"""Modelled energy of an answer: operations and bytes read, at published costs each."""

from __future__ import annotations

from collections.abc import Sequence

from ...targets.onnx_graph.operations import Operation

# Picojoule per operation at 45 nm: M. Horowitz, "Computing's energy problem", ISSCC 2014. There is no figure for
# fewer than 8 bits: they are counted as 8.
FLOAT32_MULTIPLY_ADD = 3.7 + 0.9
FLOAT16_MULTIPLY_ADD = 1.1 + 0.4
INT8_MULTIPLY_INT32_ADD = 0.2 + 0.1
DRAM_PER_32_BITS = 640.0


def energy(counted: Sequence[Operation], payload_size: int) -> tuple[float, float]:
    """Modelled microjoule for one record, and the share of it that is reading the weights; not a measurement.

    A multiply-accumulate costs a float32 multiplication and addition; where both factors are 16 bits, a float16 one;
    where both are integers of at most 8 bits, an int8 multiplication and an int32 addition (Horowitz 2014, 45 nm; there
    is no figure for 4 bits, which are taken for 8). The packed weights are read once from DRAM. Activations' traffic,
    normalisation, activation functions and leakage are left out; weight-only quantisation computes in float32, and
    fewer than 8 bits save on reading only.
    """

    def cost(operation: Operation) -> float:
        widest = max(operation.weight_bits, operation.activation_bits)
        each = (
            INT8_MULTIPLY_INT32_ADD if widest <= 8 else FLOAT16_MULTIPLY_ADD if widest <= 16 else FLOAT32_MULTIPLY_ADD
        )
        return operation.macs * each

    arithmetic, memory = sum(cost(operation) for operation in counted), payload_size / 4 * DRAM_PER_32_BITS
    total = arithmetic + memory
    return round(total / 1e6, 6), round(memory / total, 6) if total else 0.0
