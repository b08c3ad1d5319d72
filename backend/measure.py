"""Seconds and peak memory of each stage of a compile: the content of timings.json."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from intaglio.dialects.json_file import JSON

_INTERVAL_SECONDS = 0.02
_STATUS = Path("/proc/self/status")


def _memory() -> tuple[int, int]:
    """Bytes of anonymous and shared memory, and of file-backed pages, of this process."""
    fields = dict.fromkeys(("RssAnon", "RssShmem", "RssFile"), 0)
    try:
        for line in _STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in fields:
                fields[name] = int(value.split()[0]) * 1024
    except OSError:
        return 0, 0
    return fields["RssAnon"] + fields["RssShmem"], fields["RssFile"]


class Stopwatch:
    """Measures named stages, one after the other."""

    def __init__(self) -> None:
        self.stages: list[dict[str, JSON]] = []

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Measures what runs inside; memory is sampled fifty times a second."""
        peak = list(_memory())
        done = threading.Event()

        def sample() -> None:
            while not done.wait(_INTERVAL_SECONDS):
                for i, size in enumerate(_memory()):
                    peak[i] = max(peak[i], size)

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            done.set()
            sampler.join()
            for i, size in enumerate(_memory()):
                peak[i] = max(peak[i], size)
            self.stages.append(
                {
                    "stage": name,
                    "seconds": round(seconds, 4),
                    "peak_anonymous_bytes": peak[0],
                    "peak_file_backed_bytes": peak[1],
                }
            )
