"""What an ONNX file holds and computes: constants, weights, operations, and what is alive in it."""
