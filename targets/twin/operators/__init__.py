"""ONNX operators as differentiable steps of a twin."""
