"""What ships: the ONNX file of a module, and its description without a pickle."""
