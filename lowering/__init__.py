"""The passes: ONNX to rom, rom to integers, integers to fabric, fabric to program."""
