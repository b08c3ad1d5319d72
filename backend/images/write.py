"""ROM and SRAM images: the model's tensors as the integers that the chip stores, as streams.

Three files, little-endian, each part at a multiple of 64 bytes:

- `rom/matrices.bin`: for each engraved tensor its codes (packed rows, low bits first; int16 rows
  for a dense table), then int16 scale mantissas [N, groups] (one for a matrix with one scale),
  then uint8 zero points or int32 offsets [N, groups];
- `rom/constants.bin`: vectors and tables, each once, whatever the forms in which the chip's ROM has
  them (`fabric.constant`);
- `sram/adapters.bin`: adapters of the graph, laid out as matrices are.

Where a part lies, and its hash, is written into the module. Work is per tensor and per chunk of
rows, so memory stays small whatever the size of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import IntegerAttr, ModuleOp

from intaglio.backend.images.losses import ScaleLosses, ValueLosses
from intaglio.backend.images.zeros import Counter, Zeros
from intaglio.backend.output.whole import naming
from intaglio.dialects import rom
from intaglio.dialects.codes import container_bits, fixed, offset_mantissas
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import ConstantOp, EngraveOp, machine_of, places
from intaglio.dialects.fixed_point import Saturations
from intaglio.lowering.parameters import ParameterSource, row_chunks
from intaglio.lowering.step.loss_warning import NAMED, Loss
from intaglio.lowering.step.used_scales import Uses

ALIGNMENT = 64
MATRICES = "rom/matrices.bin"
CONSTANTS = "rom/constants.bin"
ADAPTERS = "sram/adapters.bin"


@dataclass
class WrittenImages:
    """What was written, and what rounding floats to mantissas cost."""

    losses: dict[str, Loss] = field(default_factory=dict)
    """Of each tensor, the part that loses most (`backend/images/losses.py`)."""
    clipped: dict[str, int] = field(default_factory=dict)
    """Elements of a tensor that its format does not hold, where there are any."""
    zeros: dict[str, Zeros] = field(default_factory=dict)
    """Of each engraved tensor that is ternary or lies in ternary cells."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file written."""


class _Writer:
    """Appends aligned parts to a file and hashes each."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = self.path.open("wb")
        self.position = 0
        self.digest = hashlib.sha256()

    def seek(self, position: int) -> None:
        self._write(bytes(position - self.position))

    def part(self, chunks: Iterator[npt.NDArray[np.generic]]) -> rom.ImageAttr:
        self.seek(-(-self.position // ALIGNMENT) * ALIGNMENT)
        start, digest = self.position, hashlib.sha256()
        for chunk in chunks:
            data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
            self._write(data.data)
            digest.update(data.data)
        return rom.ImageAttr(self.name, start, self.position - start, digest.hexdigest())

    def _write(self, data: bytes | memoryview) -> None:
        with naming(self.path):
            self.file.write(data)
        self.digest.update(data)
        self.position += len(data)

    def close(self) -> None:
        with naming(self.path):
            self.file.close()


def write_images(
    module: ModuleOp,
    sources: Mapping[str, ParameterSource],
    folder: Path,
    progress: Callable[[str, int], None] = lambda name, size: None,
) -> WrittenImages:
    """Writes the images of a placed module and notes in it where every part lies.

    Args:
        module: after `fabric-place`.
        sources: where the bytes of each parameter come from, by key.
        folder: the output folder.
        progress: called after each tensor with its name and size in bytes.

    Raises:
        UserError: the weights hold infinities or not-a-number.
    """
    parameters = {op.sym_name.data: op for op in module.ops if isinstance(op, rom.ParameterOp)}
    has_cells = machine_of(module).cell == "ternary"
    images = WrittenImages()
    matrices = _Writer(folder, MATRICES)
    constants = _Writer(folder, CONSTANTS)
    adapters = _Writer(folder, ADAPTERS)
    try:
        for place in places(module):
            parameter = parameters.get(place.buffer.root_reference.data)
            if parameter is None:
                continue
            match place:
                case EngraveOp():
                    counter = _counter(parameter, has_cells)
                    _write(matrices, parameter, sources[parameter.source], images, counter)
                    if counter is not None:
                        images.zeros[parameter.sym_name.data] = counter.zeros
                case ConstantOp():
                    if parameter.codes is not None:
                        continue
                    _write(constants, parameter, sources[parameter.source], images)
                case _:
                    # Slots are empty; adapters come through the load port.
                    if isinstance(parameter.type, rom.AdapterType) and not parameter.type.is_slot:
                        _write(adapters, parameter, sources[parameter.source], images)
            if parameter.codes is not None:
                progress(parameter.sym_name.data, parameter.codes.size.data)
    finally:
        for writer in (matrices, constants, adapters):
            writer.close()
            images.digests[writer.name] = writer.digest.hexdigest()
    return images


def clipped_warnings(images: WrittenImages) -> list[str]:
    """A warning that names the tensors with elements beyond their formats, if there are any."""
    if not images.clipped:
        return []
    most = sorted(images.clipped.items(), key=lambda one: (-one[1], one[0]))
    named = ", ".join(f"'{name}' ({count:,})" for name, count in most[:NAMED])
    others = f" and {len(most) - NAMED:,} more tensors" if len(most) > NAMED else ""
    warning = (
        f"elements beyond the range of their format are clipped, of {named}{others} "
        "(manifest.json, rounding); fewer fraction bits hold more: --set fraction_bits=N, or leave "
        "it to the model's magnitudes"
    )
    return [warning]


def _counter(parameter: rom.ParameterOp, has_cells: bool) -> Counter | None:
    """Counts the zeros of a tensor where they matter and are one code."""
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType)
    is_ternary = type_.code.data == "ternary"
    columns = int(np.prod(type_.dims[1:], dtype=np.int64))
    if type_.zeros.data or not (is_ternary or has_cells):
        return None
    if not type_.is_matrix:
        return Counter(columns, type_.bits, None, False, has_cells)
    zero = 0 if parameter.zero is None else parameter.zero.value.data
    return Counter(columns, type_.bits, zero, is_ternary, has_cells)


def _write(
    writer: _Writer,
    parameter: rom.ParameterOp,
    source: ParameterSource,
    images: WrittenImages,
    counter: Counter | None = None,
) -> None:
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType | rom.AdapterType)
    if not type_.is_matrix:
        parameter.codes = writer.part(_counted(_dense(parameter, type_, source, images), counter))
        return
    rows, columns = type_.dims
    row_bytes = -(-columns * container_bits(type_.bits) // 8)
    codes = (
        source.packed_rows(first, last)[:, :row_bytes]
        for first, last in row_chunks(rows, row_bytes)
    )
    parameter.codes = writer.part(_counted(codes, counter))
    scaled = rows if type_.group.data else 1
    parameter.scales = writer.part(_scales(parameter, source, scaled, type_.groups, images))
    if type_.zeros.data:
        parameter.zeros = writer.part(_zeros(parameter, source, rows, type_.groups))
    if type_.offsets.data:
        parameter.offsets = writer.part(_offsets(parameter, source, rows, type_))


def _counted(
    chunks: Iterator[npt.NDArray[np.generic]], counter: Counter | None
) -> Iterator[npt.NDArray[np.generic]]:
    for chunk in chunks:
        if counter is not None:
            counter.add(chunk)
        yield chunk


def _exponent(parameter: rom.ParameterOp) -> int:
    assert isinstance(parameter.exponent, IntegerAttr)
    return parameter.exponent.value.data


def _mantissas(
    parameter: rom.ParameterOp, exact: npt.NDArray[np.float64], bits: int, images: WrittenImages
) -> npt.NDArray[np.int64]:
    """Rounds half to even at the parameter's exponent and saturates; counts what did."""
    clipped = Saturations()
    try:
        rounded = fixed(exact, _exponent(parameter), bits, clipped)
    except ValueError as error:
        raise UserError(
            f"{parameter.source} holds infinities or not-a-number",
            hint="export the model again; such weights cannot be engraved",
        ) from error
    if clipped.count:
        name = parameter.sym_name.data
        images.clipped[name] = images.clipped.get(name, 0) + clipped.count
    return rounded


def _dense(
    parameter: rom.ParameterOp,
    type_: rom.ROMTensorType | rom.AdapterType,
    source: ParameterSource,
    images: WrittenImages,
) -> Iterator[npt.NDArray[np.signedinteger]]:
    multiplier = 1.0 if parameter.multiplier is None else parameter.multiplier.value.data
    rows, *rest = type_.dims
    width = int(np.prod(rest, dtype=np.int64))
    losses = ValueLosses(parameter.source, _exponent(parameter), len(type_.dims), type_.bits)
    for first, last in row_chunks(rows, 8 * width):
        values = source.values(first, last).astype(np.float64) * multiplier
        rounded = _mantissas(parameter, values, type_.bits, images)
        losses.add(values, rounded, first)
        yield rounded.astype({16: np.int16, 32: np.int32}[type_.bits])
    images.losses[parameter.sym_name.data] = losses.worst


def _scales(
    parameter: rom.ParameterOp,
    source: ParameterSource,
    rows: int,
    groups: int,
    images: WrittenImages,
) -> Iterator[npt.NDArray[np.signedinteger]]:
    type_ = parameter.type
    assert isinstance(type_, rom.ROMTensorType | rom.AdapterType)
    zero = None if parameter.zero is None else parameter.zero.value.data
    uses = Uses(source, type_.group.data, zero) if type_.group.data else None
    losses = ScaleLosses(parameter.source, _exponent(parameter), uses)
    for first, last in row_chunks(rows, 8 * groups):
        scales = _used(parameter, source.scales(first, last))
        rounded = _mantissas(parameter, scales, 16, images)
        losses.add(scales, rounded, first)
        yield rounded.astype(np.int16)
    images.losses[parameter.sym_name.data] = losses.worst


def _used(parameter: rom.ParameterOp, scales: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The scales; 0 for those that stand before weights that are all 0 and are greater."""
    peak = np.inf if parameter.peak is None else parameter.peak.value.data
    used = scales.astype(np.float64)
    if used.max() > peak or used.min() < -peak:
        used[np.abs(used) > peak] = 0
    return used


def _zeros(
    parameter: rom.ParameterOp, source: ParameterSource, rows: int, groups: int
) -> Iterator[npt.NDArray[np.uint8]]:
    for first, last in row_chunks(rows, groups):
        zeros = source.zeros(first, last)
        assert zeros is not None, parameter.source
        yield zeros


def _offsets(
    parameter: rom.ParameterOp,
    source: ParameterSource,
    rows: int,
    type_: rom.ROMTensorType | rom.AdapterType,
) -> Iterator[npt.NDArray[np.int32]]:
    exponent = _exponent(parameter)
    for first, last in row_chunks(rows, 8 * type_.groups):
        scales = _used(parameter, source.scales(first, last))
        zeros = source.real_zeros(first, last)
        assert zeros is not None, parameter.source
        mantissas = fixed(scales, exponent, 16)
        # Half a unit at most is lost; what scales lose is noted already.
        yield offset_mantissas(scales, zeros, mantissas, exponent, type_.bits, type_.offsets.data)
