"""What runs a compiled model: simulator, onnxruntime, comparison, command line."""
