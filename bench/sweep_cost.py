"""What a sweep costs on a cluster of this machine beside the same points in one process.

Runs `intaglio sweep` with 1,000 points of Llama-3.2-3B's shape on `roma` in both ways, in this
order, and states CPU seconds of all processes together, seconds, and of the workers the largest
memory and how it moves: the proportional set size (pages that processes share count once for all).

    python bench/sweep_cost.py [--work FOLDER] [--points N] [--workers N]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from decoder_model import LLAMA_3_2_3B
from papers_work import Work

GRID = {
    "l_unit.lanes": (16, 32, 64, 128),
    "vector.lanes": (16, 32, 64, 128, 256),
    "network.wire_ps_per_mm": (60, 80, 100, 125, 150),
    "latency.requantise": (3, 4, 5, 7, 10),
    "kv": ("half8", "int8"),
}
"""1,000 points; what is named last changes first."""
INTERVAL = 1.0


@dataclass
class Ran:
    """A run of the command.

    Attributes:
        seconds: of the clock.
        cpu: of the process and all that it started.
        memory: for each process of the tree the largest sizes, in the order of time, bytes.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    memory: dict[int, list[int]] = field(default_factory=dict)


def below(pid: int) -> list[int]:
    """A process and its descendants."""
    found, waiting = list[int](), [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def proportional(pid: int) -> int:
    """Proportional set size of a process, bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def ran(command: list[str]) -> Ran:
    """Runs a command to its end."""
    found = Ran()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        for pid in below(process.pid):
            if size := proportional(pid):
                found.memory.setdefault(pid, []).append(size)
        time.sleep(INTERVAL)
    if process.returncode:
        sys.exit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.seconds = time.perf_counter() - start
    found.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def flat(sizes: list[int]) -> str:
    """The largest size, and the means of the second quarter and of the last one."""
    quarter = max(1, len(sizes) // 4)
    early, late = sizes[quarter : 2 * quarter], sizes[-quarter:]
    means = [sum(part) / max(1, len(part)) / 1e6 for part in (early, late)]
    return f"at most {max(sizes) / 1e6:.0f} MB, {means[0]:.0f} MB early and {means[1]:.0f} MB late"


def main() -> None:
    """Runs both, and says what they cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/papers"))
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    model = Work(args.work).model("llama-3.2-3b-int4", replace(LLAMA_3_2_3B, block=128))
    with TemporaryDirectory() as folder:
        points = Path(folder) / "points.jsonl"
        points.write_text("\n".join(_lines(args.points)))
        costs: dict[int, Ran] = {}
        for workers in (0, args.workers):
            command = [sys.executable, "-m", "intaglio.runtime.cli", "sweep", str(model)]
            command += ["--target", "roma", "--context", "1024", "--points", str(points)]
            command += ["-o", f"{folder}/{workers}.jsonl", "--workers", str(workers)]
            costs[workers] = one = ran(command)
            rows = Path(f"{folder}/{workers}.jsonl").read_text().count("\n")
            print(f"{workers} workers: {rows} points, {one.cpu:.0f} CPU s, {one.seconds:.0f} s")
            for pid, sizes in one.memory.items():
                if len(sizes) > 4:
                    print(f"  process {pid}: {flat(sizes)}")
    print(f"ratio of CPU seconds: {costs[args.workers].cpu / costs[0].cpu:.3f}")


def _lines(count: int) -> list[str]:
    import json
    from itertools import product

    points = [dict(zip(GRID, one, strict=True)) for one in product(*GRID.values())]
    step = max(1, len(points) // count)
    return [json.dumps(one) for one in points[::step][:count]]


if __name__ == "__main__":
    main()
