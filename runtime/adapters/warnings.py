"""What is odd about an adapter that can be used: layers it lacks, modules without effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from intaglio.backend.output.output import some_of
from intaglio.runtime.adapters.files import AdapterFile


def adapter_warnings(
    read: AdapterFile, matched: Collection[str], sites: Iterable[str]
) -> Iterator[str]:
    """Warnings, a line each.

    Args:
        read: the adapter.
        matched: the sites that it has matrices for.
        sites: those that the chip has slots at.
    """
    yield from read.warnings
    yield from _incomplete(read, matched, sites)
    zero = set(read.unscaled)
    empty = [p.module for p in read.pairs if p.module not in zero and not (p.a.any() and p.b.any())]
    for modules, why in ((read.unscaled, "a scaling of 0"), (empty, "an A or B of zeros")):
        if modules:
            have = "has" if len(modules) == 1 else "have"
            yield (
                f"{len(modules)} of {len(read.pairs)} modules {have} {why}, so that the adapter "
                f"changes nothing there: {some_of(modules)}"
            )


def _incomplete(read: AdapterFile, matched: Collection[str], sites: Iterable[str]) -> Iterator[str]:
    """Names the layers that have no matrices of a role which others have."""
    there, slots = _layers(matched), _layers(sites)
    missing: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for role, layers in there.items():
        wanted = slots[role] if read.layers is None else set(read.layers)
        if gone := tuple(sorted(wanted - layers)):
            missing.setdefault((tuple(sorted(layers)), gone), []).append(role)
    for (layers, gone), roles in missing.items():
        listed = "" if read.layers is None else ", which layers_to_transform lists"
        yield (
            f"the adapter has {', '.join(roles)} for {layers_text(layers)}, and nothing for "
            f"{layers_text(gone)}{listed}"
        )


def _layers(sites: Iterable[str]) -> dict[str, set[int]]:
    """The layers of each role, of sites `layers.<i>.<role>`."""
    found: dict[str, set[int]] = {}
    for site in sites:
        _, layer, role = site.split(".")
        found.setdefault(role, set()).add(int(layer))
    return found


def layers_text(numbers: Iterable[int]) -> str:
    """`layer 5`, or `layers 0, 2 and 4 to 7`, of numbers in order."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    if len(parts) == 1 and parts[0].isdecimal():
        return f"layer {parts[0]}"
    *before, last = parts
    return f"layers {', '.join(before)} and {last}" if before else f"layers {last}"
