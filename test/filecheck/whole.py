"""Reads a program, and prints each instruction once, by its last beat, in the order of a block."""

import re
import sys

instructions: list[tuple[int, str]] = []
for line in sys.stdin:
    if "program.instruction " in line:
        number = re.search(r"of = (\d+)", line)
        if "more = 1 : i64" not in line:
            instructions.append((int(number[1]) if number else 0, line))
        continue
    for _, one in sorted(instructions, key=lambda found: found[0]):
        sys.stdout.write(one)
    instructions.clear()
    sys.stdout.write(line)
