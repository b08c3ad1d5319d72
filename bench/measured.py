"""Running a command and measuring it from outside: seconds, and memory over its process tree."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: from its start to its end.
        cpu_seconds: of all its processes, which another load of the machine does not change much.
        anonymous: peak bytes of anonymous and shared memory, over the process tree.
        file_backed: peak bytes of file-backed pages, over the process tree.
    """

    seconds: float
    cpu_seconds: float
    anonymous: int
    file_backed: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} s of CPU), "
            f"peak {self.anonymous / 1e6:.0f} MB anonymous and shared, "
            f"{self.file_backed / 1e6:.0f} MB file-backed"
        )


def tree_memory(root: int) -> tuple[int, int]:
    """Anonymous and shared bytes, and file-backed bytes, of a process and its descendants."""
    total = file_backed = 0
    pids = [root]
    for pid in pids:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        pids += [int(child) for child in children]
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)

        def size(name: str, fields: dict[str, str] = fields) -> int:
            return int(fields.get(name, "0 kB").split()[0]) * 1024

        total += size("RssAnon") + size("RssShmem")
        file_backed += size("RssFile")
    return total, file_backed


def measured(command: Sequence[str], *, quiet: bool = False) -> Cost:
    """Runs a command and ends with it when it fails; memory is sampled every 20 ms.

    Args:
        command: the program and its arguments.
        quiet: leave out what it writes to its standard output.
    """
    start, cpu = time.perf_counter(), _children_cpu()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL if quiet else None)
    peak = [0, 0]
    while process.poll() is None:
        for i, value in enumerate(tree_memory(process.pid)):
            peak[i] = max(peak[i], value)
        time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return Cost(time.perf_counter() - start, _children_cpu() - cpu, peak[0], peak[1])


def _children_cpu() -> float:
    """Seconds that processes started here took of the CPUs, of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_once(folder: Path) -> float:
    """Seconds to read a folder's files once, in order."""
    start = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass
    return time.perf_counter() - start


def compile_command(
    model: Path,
    out: Path,
    target: str,
    context: int,
    settings: Sequence[str] = (),
    adapter_rank: int = 0,
) -> list[str]:
    """The command line of a compile."""
    command = [sys.executable, "-m", "intaglio.runtime.cli", "compile", str(model)]
    command += ["--target", target, "--context", str(context), "-o", str(out)]
    for setting in settings:
        command += ["--set", setting]
    if adapter_rank:
        command += ["--adapter-slots", str(adapter_rank)]
    return command
