"""ONNX import: from an exported graph to the rom dialect."""
