"""The names of what runs a compiled model."""

HARDWARE_ENGINES = ("rtl", "verilator")
"""What runs the hardware."""
CHECKED_ENGINES = ("simulator", *HARDWARE_ENGINES)
"""What onnxruntime can judge."""
ENGINES = (*CHECKED_ENGINES, "onnxruntime")
"""What can run a model."""
