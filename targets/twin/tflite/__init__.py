"""The twin of a TFLite file: its graph as ONNX nodes, which the twin of an ONNX file runs."""
