"""CPU seconds that the simulator takes for a token, of compiled folders beside each other.

    python bench/decode_speed.py build/int8 build/half8 [--tokens 8] [--turns 5]
    python bench/decode_speed.py OTHER/.venv/bin/python:build/before build/now

Each folder is decoded by a process of its own, with the Python named before a colon (of another
build of Intaglio) or this one. They take turns, so that other load troubles all alike; the median
of the turns is shown, and its ratio to the first folder's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CHILD = """
import sys, time
import intaglio

chip, tokens = intaglio.load(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    taken = []
    for _ in chip.stream([1, 2], tokens + 1):
        taken.append(time.process_time())
    print((taken[-1] - taken[0]) / (len(taken) - 1), flush=True)
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="[PYTHON:]OUT")
    parser.add_argument("--tokens", type=int, default=8, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    running: list[subprocess.Popen[str]] = []
    for text in arguments.folders:
        python, _, folder = text.rpartition(":")
        command = [python or sys.executable, "-P", "-c", CHILD, folder, str(arguments.tokens)]
        running.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    seconds: list[list[float]] = [[] for _ in running]
    # The first turn reads the files and compiles the kernels.
    for turn in range(arguments.turns + 1):
        for process, taken in zip(running, seconds, strict=True):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            value = float(process.stdout.readline())
            if turn:
                taken.append(value)
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
        _ = process.wait()
    first = statistics.median(seconds[0])
    for text, taken in zip(arguments.folders, seconds, strict=True):
        middle = statistics.median(taken)
        print(
            f"{middle:8.4f} CPU s a token ({min(taken):.4f} to {max(taken):.4f})  "
            f"x{middle / first:.3f}  {text}"
        )


if __name__ == "__main__":
    main()
