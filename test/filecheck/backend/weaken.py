"""Reads a program, and lets the first instruction whose line matches wait for one less.

Usage: weaken.py PATTERN COUNTER
"""

import re
import sys

pattern, counter = sys.argv[1:]
weakened = False
for line in sys.stdin:
    wait = re.search(rf"\b{counter} = (\d+)", line)
    if not weakened and wait and re.search(pattern, line):
        line = f"{line[: wait.start(1)]}{int(wait[1]) - 1}{line[wait.end(1) :]}"
        weakened = True
    sys.stdout.write(line)
assert weakened
