"""CPU seconds of the simulator beside onnxruntime and beside another build, by turns in one run.

    python bench/simulator_speed.py check build/demo --text TEXT --before OTHER/.venv/bin/python
    python bench/simulator_speed.py prefill build/3b --tokens 128
    python bench/simulator_speed.py decode build/3b build/ternary

`check` is all of `intaglio check --text` on some windows, both references of onnxruntime included,
and apart from these what the simulator takes for the same windows. `prefill` runs tokens of one
sequence together: with logits of the last one, as a prompt does, and with those of all, as
onnxruntime's graph does. `decode` runs one token after the other. onnxruntime has as many threads
as the simulator, which do not spin after their work. Each way has a process of its own; medians of
the turns are shown, and how many tokens each runs a CPU second, as a multiple of the last way's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

CHILD = """
import sys, time
import numpy as np
import onnxruntime
import intaglio

way, folder, tokens, text, windows = sys.argv[1:]
tokens, windows = int(tokens), int(windows)
made = onnxruntime.SessionOptions

def options():
    one = made()
    one.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return one

if way != "check":
    # A build from before may let them.
    onnxruntime.SessionOptions = options
chip = intaglio.load(folder)
simulator = chip.simulator
count = max(tokens + 1, windows * 256)
ids = np.random.default_rng(0).integers(0, chip.program.vocabulary, count).tolist()
reference = chip.reference() if way.startswith("onnxruntime") else None

def check():
    from intaglio.runtime.judge.check import check
    many = {"text": text, "windows": windows} if text else {"tokens": windows * 256}
    return check(chip, **many)["tokens_compared"]

def alone():
    from intaglio.runtime.judge.check import text_ids, windows_of
    from pathlib import Path
    size = min(256, chip.program.capacity)
    given = text_ids(chip, Path(text)) if text else ids
    parts = list(windows_of(given[:windows * size], size))
    for part in parts:
        simulator.reset()
        simulator.forward(part, 0)
    return sum(map(len, parts))

def prefill():
    simulator.reset()
    simulator.forward(ids[:tokens - 1], 0, logits=False)
    simulator.step(ids[tokens - 1], tokens - 1)
    return tokens

def all_logits():
    simulator.reset()
    simulator.forward(ids[:tokens], 0)
    return tokens

def decode():
    for position in range(1, tokens + 1):
        simulator.step(ids[position], position)
    return tokens

def their_prefill():
    reference.reset()
    reference.feed(ids[:tokens])
    return tokens

def their_decode():
    for position in range(1, tokens + 1):
        reference.feed([ids[position]])
    return tokens

run = {
    "check": check,
    "windows": alone,
    "prefill": prefill,
    "prefill, all logits": all_logits,
    "decode": decode,
    "onnxruntime prefill": their_prefill,
    "onnxruntime decode": their_decode,
}[way]
for line in sys.stdin:
    if way.endswith("decode"):
        one = simulator if reference is None else reference
        one.reset()
        simulator.step(ids[0], 0) if reference is None else reference.feed(ids[:1])
    start, clock = time.process_time(), time.perf_counter()
    count = run()
    print((time.process_time() - start) / count, (time.perf_counter() - clock) / count, flush=True)
"""


class Way:
    """A process that runs one way of computing whenever it is asked to."""

    def __init__(self, name: str, python: str, way: str, folder: str, *more: object) -> None:
        self.name = name
        command = [python, "-P", "-c", CHILD, way, folder, *map(str, more)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def turn(self, *, counted: bool) -> None:
        """One turn."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        cpu, wall = map(float, process.stdout.readline().split())
        if counted:
            self.cpu.append(cpu)
            self.wall.append(wall)

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        _ = self._process.wait()


def compare(ways: list[Way], turns: int) -> None:
    """Runs all ways by turns and prints what they took; the first turn compiles the kernels."""
    for turn in range(turns + 1):
        for way in ways:
            way.turn(counted=turn > 0)
    last = statistics.median(ways[-1].cpu)
    for way in ways:
        way.end()
        cpu, wall = statistics.median(way.cpu), statistics.median(way.wall)
        print(
            f"  {way.name:<28} {1e3 * cpu:9.3f} CPU ms a token ({1e3 * min(way.cpu):.3f} to "
            f"{1e3 * max(way.cpu):.3f}), {1 / cpu:8.1f} tokens a CPU second, x{last / cpu:.2f}; "
            f"{1e3 * wall:.3f} ms"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("check", "prefill", "decode"))
    parser.add_argument("folders", nargs="+", metavar="OUT")
    parser.add_argument("--text", default="", help="for check; else random tokens")
    parser.add_argument("--windows", type=int, default=20, help="for check")
    parser.add_argument("--tokens", type=int, help="of a turn: 128 of a prompt, 8 decoded")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--before", metavar="PYTHON", help="of another build, for its simulator")
    arguments = parser.parse_args()
    tokens = arguments.tokens or {"prefill": 128}.get(arguments.what, 8)
    mine = [("now", sys.executable)]
    if arguments.before:
        mine.append(("before", arguments.before))
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    for folder in arguments.folders:
        more = folder, tokens, arguments.text, arguments.windows
        groups = {
            "check": [["check"], ["windows"]],
            "prefill": [["prefill", "prefill, all logits", "onnxruntime prefill"]],
            "decode": [["decode", "onnxruntime decode"]],
        }[arguments.what]
        for group in groups:
            print(folder)
            ways = [
                Way(f"{way}, {build}" if "onnx" not in way else way, python, way, *more)
                for way in group
                for build, python in (mine[:1] if "onnx" in way else mine)
            ]
            compare(ways, arguments.turns)


if __name__ == "__main__":
    main()
