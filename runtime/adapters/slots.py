"""Adapter slots of a program as whatever runs it sees them: what fits, ranks, cycles to load.

`Residents` keeps book of what is in the slots: the words that must go through the load port follow
from it, so that every engine takes the same cycles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from intaglio.backend.hw.units.adapter.layout import SWITCH_CYCLES, places_of
from intaglio.backend.images.adapter import AdapterImage, SiteImage
from intaglio.backend.program.program import Program
from intaglio.dialects.codes import AdapterMatrix
from intaglio.dialects.errors import UserError


def check_fits(program: Program, image: AdapterImage) -> None:
    """Whether an adapter fits the slots of a program.

    Raises:
        UserError: it does not; says where and why.
    """
    for name, one in image.sites.items():
        _check_site(program, name, one)


def _check_site(program: Program, name: str, image: SiteImage) -> None:
    site = program.sites.get(name)
    if site is None:
        there = f"there are slots for {', '.join(program.sites)}"
        raise UserError(
            f"the adapter changes {name}, for which the chip has no slots",
            hint=there if program.sites else "compile with --adapter-slots RANK",
        )
    rank = image.rank
    if rank > site.rank:
        raise UserError(
            f"the adapter has rank {rank} at {name}, the chip's slots have {site.rank}",
            hint=f"compile with --adapter-slots {rank}",
        )
    code = program.parameters[site.a].code
    for letter, matrix, shape in (
        ("A", image.a, (rank, site.columns)),
        ("B", image.b, (site.rows, rank)),
    ):
        if (matrix.codes.shape, matrix.code) != (shape, code):
            raise UserError(
                f"the adapter's {letter} at {name} is {list(matrix.codes.shape)} of {matrix.code}, "
                f"the chip's slots need {list(shape)} of {code}",
                hint="it was made for another model or target",
            )


def ranks_of(image: AdapterImage | None) -> dict[str, int]:
    """The ranks of an adapter at its sites; none has none."""
    return {} if image is None else {name: site.rank for name, site in image.sites.items()}


def load_cycles(program: Program, image: AdapterImage | None) -> int:
    """Cycles in which the chip's load port takes an adapter, or empties the slots."""
    return load_cycles_of(program, ranks_of(image), 0 if image is None else image.size)


def load_cycles_of(program: Program, ranks: Mapping[str, int], size: int) -> int:
    """Cycles in which the chip's load port takes an adapter, which is the active one then.

    Where the chip is too large for the hardware that this compiler makes, words of `load_bytes` for
    codes and scales, one for the registers of each site, and one to switch among several residents.

    Args:
        program: the compiled model.
        ranks: of the adapter at its sites; none empties the slots, or switches among several
            residents to none.
        size: bytes of its codes and scales.
    """
    try:
        places = places_of(program)
    except UserError:
        switch = SWITCH_CYCLES if program.residents > 1 else 0
        if switch and not any(ranks.values()):
            return switch
        return len(program.sites) - (-size // program.machine.load_bytes) + switch
    return 0 if places is None else places.load_cycles(ranks)


class Switch(NamedTuple):
    """What makes an adapter the active one.

    Attributes:
        image: what is to be loaded, none of it to empty the slots; where `is_load`.
        resident: its number among several; None: none is active.
        is_load: whether it goes through the port; otherwise it is there.
        cycles: in which the port takes it.
    """

    image: AdapterImage | None
    resident: int | None
    is_load: bool
    cycles: int


class Residents:
    """The adapters in the slots of a chip whose slots were empty at first.

    With one resident, what becomes active is always loaded, and no adapter empties the slots. With
    several, one that is there already is switched to; another is loaded into a free place, or into
    that of the one whose use is longest ago; no adapter leaves all of them where they are.

    Args:
        program: the compiled model.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._held: dict[int, AdapterImage] = {}
        """By number, the one whose use is longest ago first."""
        self._active: int | None = None

    @property
    def images(self) -> Sequence[AdapterImage]:
        """What is in the slots, the one whose use is longest ago first."""
        return list(self._held.values())

    def use(self, image: AdapterImage | None) -> Switch:
        """Makes an adapter that fits the active one; None is the base alone."""
        program, held = self._program, self._held
        if program.residents == 1:
            held.clear()
            self._active = None
            if image is not None:
                held[0], self._active = image, 0
            return Switch(image, self._active, True, load_cycles(program, image))
        if image is None or not any(ranks_of(image).values()):
            self._active = None
            return Switch(None, None, False, SWITCH_CYCLES)
        number = next((n for n, one in held.items() if _equal(one, image)), None)
        is_load = number is None
        if number is None:
            free = (n for n in range(program.residents) if n not in held)
            number = next(free, next(iter(held), 0))
        held.pop(number, None)
        held[number], self._active = image, number
        cycles = load_cycles(program, image) if is_load else SWITCH_CYCLES
        return Switch(image, number, is_load, cycles)

    def after_reset(self) -> Switch | None:
        """What makes the active adapter active again; None: there is none.

        Reset switches adapters off. One resident has lost its ranks and is loaded again; several
        are as they were.
        """
        if self._active is None:
            return None
        return self.use(self._held[self._active])


def _equal(one: AdapterImage, other: AdapterImage) -> bool:
    """Whether two adapters are the same on the chip, whatever they are called."""
    if one is other:
        return True
    sites, others = (
        {name: site for name, site in image.sites.items() if site.rank} for image in (one, other)
    )
    return sites.keys() == others.keys() and all(
        _equal_matrices(site.a, others[name].a) and _equal_matrices(site.b, others[name].b)
        for name, site in sites.items()
    )


def _equal_matrices(one: AdapterMatrix, other: AdapterMatrix) -> bool:
    return (
        (one.code, one.exponent) == (other.code, other.exponent)
        and np.array_equal(one.codes, other.codes)
        and np.array_equal(one.scales, other.scales)
    )
