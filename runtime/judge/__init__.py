"""What compares: onnxruntime, the simulator and the hardware with each other."""
