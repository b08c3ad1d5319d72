"""From placed operators to a program: instructions, blocks, waits, cycles, power."""
