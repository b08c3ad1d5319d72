"""What is said of a compiled model: memory, cycles, power, pictures."""
