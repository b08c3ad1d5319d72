"""Pipelines that have the registers of an input together, outside.

What goes with the elements of a row, but is the same for all of them, would be held once for each
lane in every stage. A lane that takes it by `followed` has a port for each stage that needs it, and
`connections` joins them to one line of registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from intaglio.backend.hw.wires.signal import Follow, ModuleBuilder, Signal


def followed(
    m: ModuleBuilder, name: str, width: int, signed: bool = False
) -> tuple[Signal, Follow]:
    """An input of the module under construction, and what it is later, for `pipelined`.

    What it was k cycles before is the port ``<name>_at<k>``, as far as it is needed.
    """
    return m.input(name, width, signed), lambda cycles: m.input(f"{name}_at{cycles}", width, signed)


def connections(
    module: ModuleBuilder, names: Iterable[str], late: Callable[[str, int], Signal]
) -> dict[str, Signal]:
    """What the ports of `followed` inputs get.

    Args:
        module: that has them.
        names: of the inputs.
        late: gives an input as it was so many cycles before.
    """
    ports = {port.name: port for port in module.ports if not port.output}
    found: dict[str, Signal] = {}
    for root in names:
        for name, port in ports.items():
            base, _, cycles = name.rpartition("_at")
            if name == root or (base == root and cycles.isdigit()):
                signal = late(root, 0 if name == root else int(cycles))
                found[name] = signal.as_signed() if port.signed else signal
    return found
