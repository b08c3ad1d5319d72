"""ONNX import: from an exported graph to the rom dialect. docs/architecture.md has a map of it."""
