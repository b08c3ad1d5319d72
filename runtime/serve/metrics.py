"""Counters of a server, and their text for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

_TEXTS: Mapping[str, tuple[str, str]] = {
    "requests_total": ("counter", "Requests by path and status."),
    "tokens_total": ("counter", "Tokens by model and kind: of prompts, or generated."),
    "answers_total": ("counter", "Completions by how they ended."),
    "chip_cycles_total": (
        "counter",
        "Modelled cycles of the chip by kind: prefill, decode, adapter (its load port).",
    ),
    "chip_seconds_total": ("counter", "The same in seconds at the target's clock."),
    "host_seconds_total": ("counter", "Seconds that this machine computed for it."),
    "saturations_total": ("counter", "Values that did not fit, in answers that were completed."),
    "users": ("gauge", "Sequences that take turns now."),
    "users_limit": ("gauge", "Sequences that may."),
    "queue": ("gauge", "Requests that wait for a place."),
    "queue_limit": ("gauge", "Requests that may."),
    "info": ("gauge", "What is served, by which engine."),
}
_PREFIX = "intaglio_"


class Metrics:
    """Counters that any thread may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + value

    def set(self, name: str, value: float, **labels: str) -> None:
        """Gives a gauge a value."""
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] = value

    def get(self, name: str, **labels: str) -> float:
        """The value of one; 0 before it was ever added to."""
        with self._lock:
            return self._values.get((name, tuple(sorted(labels.items()))), 0)

    def text(self) -> str:
        """All of them in Prometheus' text format."""
        with self._lock:
            values = dict(self._values)
        return "".join(_lines(values))


def _lines(values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]) -> Iterator[str]:
    for name, (kind, text) in _TEXTS.items():
        found = sorted((labels, value) for (one, labels), value in values.items() if one == name)
        if not found:
            continue
        yield f"# HELP {_PREFIX}{name} {text}\n# TYPE {_PREFIX}{name} {kind}\n"
        for labels, value in found:
            inside = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels)
            shown = f"{value:.0f}" if value == int(value) else repr(value)
            yield (
                f"{_PREFIX}{name}{{{inside}}} {shown}\n"
                if inside
                else (f"{_PREFIX}{name} {shown}\n")
            )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
