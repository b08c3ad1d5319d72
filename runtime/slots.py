"""Adapter slots of a program as whatever runs it sees them: what fits, ranks, cycles to load."""

from __future__ import annotations

from collections.abc import Mapping

from intaglio.backend.adapter_image import AdapterImage, SiteImage
from intaglio.backend.hw.adapter_layout import places_of
from intaglio.backend.program import Program
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
    """Cycles in which the chip's load port takes an adapter.

    Where the chip is too large for the hardware that this compiler makes, words of `load_bytes` for
    codes and scales, and one for the registers of each site.

    Args:
        program: the compiled model.
        ranks: of the adapter at its sites; none empties the slots.
        size: bytes of its codes and scales.
    """
    try:
        places = places_of(program)
    except UserError:
        return len(program.sites) - (-size // program.machine.load_bytes)
    return 0 if places is None else places.load_cycles(ranks)
