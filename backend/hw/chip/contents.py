"""What the memories of a chip hold when it is made: the contents of its ROMs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.hw.units.matrix import plan as matrix_plan
from intaglio.backend.hw.units.matrix.rom_bank import LogicROM
from intaglio.dialects.encoded import word_of
from intaglio.dialects.isa.queues import MATRIX

if TYPE_CHECKING:
    from intaglio.backend.hw.chip.layout import Layout
    from intaglio.backend.images.read import Images

Words = npt.NDArray[np.unsignedinteger[Any]]
"""Memory words: unsigned [depth] up to 64 bits, else bytes [depth, bytes], low byte first."""


def constant_words(layout: Layout, images: Images) -> Words:
    """The content of the constant ROM: rows of W numbers of 32 bits, as bytes [rows, 4 W]."""
    program, lanes = layout.program, layout.lanes
    rows = np.zeros((layout.constant_rows, lanes), np.int64)
    for parameter in program.parameters.values():
        for form, first in parameter.constants:
            values = np.asarray(images.dense(parameter.name), np.int64)
            part = form.rows(values, lanes, program.capacity, parameter.exponent)
            rows[first : first + len(part)] = part
    return as_words(rows.astype("<i4").view(np.uint8).reshape(len(rows), -1))


def descriptor_wires(layout: Layout, queue: str, images: Images) -> list[dict[str, int]]:
    """The units' fields of each descriptor of a queue, as wires carry them: unsigned."""
    scales = matrix_plan.single_scales(layout.program, images) if queue == MATRIX else {}
    return [
        {
            name: (scales[one] if isinstance(one, str) else one) & (1 << width) - 1
            for name, width in layout.fields[queue].items()
            for one in (values[name],)
        }
        for values in (descriptor.numbers for descriptor in layout.encoded[0, queue].descriptors)
    ]


def descriptor_words(layout: Layout, queue: str, images: Images, context: int = 0) -> Words:
    """The content of a sequencer's ROM, of a context."""
    encoded = layout.encoded[context, queue]
    form = encoded.form
    scales = matrix_plan.single_scales(layout.program, images) if queue == MATRIX else {}
    words = [word_of(form, one, scales) for one in encoded.descriptors]
    words += [0] * (max(2, len(words)) - len(words))
    size = -(-form.width // 8)
    data = b"".join(word.to_bytes(size, "little") for word in words)
    return as_words(np.frombuffer(data, np.uint8).reshape(len(words), size))


def as_words(rows: npt.NDArray[np.uint8]) -> Words:
    """Bytes [depth, bytes] in the form of memories: integers where they fit 64 bits."""
    depth, size = rows.shape
    if size > 8:
        return rows
    whole = next(bits for bits in (1, 2, 4, 8) if size <= bits)
    padded = np.zeros((depth, whole), np.uint8)
    padded[:, :size] = rows
    return padded.view(f"<u{whole}")[:, 0]


def descriptor_roms(layout: Layout, queue: str) -> list[str]:
    """The ROMs of a queue's sequencer, one for each context."""
    name = f"sequencer_{queue}/descriptors"
    count = len(layout.contexts)
    return [name] if count == 1 else [f"{name}{number}" for number in range(count)]


def rom_words(layout: Layout, images: Images) -> Iterator[tuple[str, Words]]:
    """The contents of all ROMs of the chip, each with the memory's path; one at a time.

    L-Units whose ROM is logic have theirs in the hardware (`logic_rom`).
    """
    for queue in layout.queues:
        if layout.queues[queue].entries:
            for context, path in enumerate(descriptor_roms(layout, queue)):
                yield path, descriptor_words(layout, queue, images, context)
    yield "constants", constant_words(layout, images)
    yield from adapter_words(layout, images)
    if layout.matrix.logic:
        return
    for image in matrix_plan.l_unit_images(layout.program, images, layout.matrix):
        path = f"matrix/tile{image.tile}/l_unit{image.l_unit}"
        yield f"{path}/codes", image.codes
        if image.scales.size:
            yield f"{path}/scales", image.scales


def adapter_words(layout: Layout, images: Images) -> Iterator[tuple[str, Words]]:
    """The contents of the H-Units with which the graph's own adapters begin, as `rom_words`."""
    if layout.adapters is None:
        return
    places = layout.adapters.places
    if all(place.parameter.is_slot for place in places.places.values()):
        return
    for unit, codes, scales in places.contents(images):
        yield f"adapter/h_unit{unit}/codes", as_words(codes)
        yield f"adapter/h_unit{unit}/scales", scales


def logic_rom(
    layout: Layout,
    images: Images,
    written: Collection[tuple[int, int, int]] | None = None,
    shared: Collection[tuple[int, int, int]] | None = None,
) -> LogicROM | None:
    """What the ROM banks of L-Units hold, where they are logic; else None.

    Args:
        layout: of the program.
        images: its tensors.
        written: the banks to write, as (tile, L-Unit, bank); None: all.
        shared: those to write as the compiler's own gates; None: what the machine says, all or
            none.
    """
    program, config = layout.program, layout.matrix
    if not config.logic:
        return None
    if shared is None and program.machine.rom_logic != "shared":
        shared = ()
    return LogicROM(
        lambda tile: matrix_plan.tile_images(program, images, config, tile), written, shared=shared
    )
