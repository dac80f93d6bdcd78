"""A differentiable module that answers as an ONNX file does."""
