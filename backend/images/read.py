"""Images of an output folder as memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.backend.output.output import some_of
from intaglio.backend.program.program import Parameter, Part, Program
from intaglio.dialects.codes import Matrix, container_bits
from intaglio.dialects.errors import UserError


class Images:
    """Reads the parameters of a program from its output folder; nothing is copied."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._files: dict[str, npt.NDArray[np.uint8]] = {}

    def _bytes(self, part: Part) -> npt.NDArray[np.uint8]:
        if part.file not in self._files:
            path = self._folder / part.file
            try:
                self._files[part.file] = np.memmap(path, np.uint8, "r")
            except (OSError, ValueError) as error:
                raise UserError(
                    f"cannot be read: {error}", file=str(path), hint="compile the model again"
                ) from error
        data = self._files[part.file][part.offset : part.offset + part.size]
        if data.size != part.size:
            raise UserError(
                "is shorter than its program says",
                file=str(self._folder / part.file),
                hint="compile the model again",
            )
        return data

    def _array(self, part: Part | None, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
        assert part is not None
        return self._bytes(part).view(dtype).reshape(shape)

    def dense(self, name: str) -> npt.NDArray[np.signedinteger]:
        """Mantissas of a vector or table: int16 or int32 in the parameter's shape."""
        parameter = self._program.parameters[name]
        dtype = {16: np.dtype("<i2"), 32: np.dtype("<i4")}[parameter.bits]
        return self._array(parameter.codes, dtype, parameter.dims)

    def matrix(self, name: str) -> Matrix:
        """A matrix of small codes with its scales and zero points or offsets."""
        parameter = self._program.parameters[name]
        rows, columns = parameter.dims
        group = parameter.group or columns
        groups = -(-columns // group)
        zero: int | npt.NDArray[np.uint8]
        if parameter.zeros is None:
            assert parameter.zero is not None, name
            zero = parameter.zero
        else:
            zero = self._array(parameter.zeros, np.uint8, (rows, groups))
        int16 = np.dtype("<i2")
        offsets: npt.NDArray[np.int32] | None = None
        if parameter.offsets is not None:
            offsets = self._array(parameter.offsets, np.dtype("<i4"), (rows, groups))
        if parameter.group:
            scales = self._array(parameter.scales, int16, (rows, groups))
        else:
            scales = np.full((rows, 1), self._array(parameter.scales, int16, (1,)), int16)
        return Matrix(
            codes=self._array(parameter.codes, np.uint8, (rows, _row_bytes(parameter))),
            bits=container_bits(parameter.bits),
            columns=columns,
            group=group,
            zero=zero,
            scales=scales,
            exponent=parameter.exponent,
            offsets=offsets,
            offset_bits=parameter.offset_bits,
        )

    @property
    def files(self) -> list[str]:
        """Names of the files that hold parameters."""
        return list(dict.fromkeys(part.file for _, part in self._parts()))

    def check_sizes(self) -> None:
        """Whether all files are there and as long as the program says.

        Raises:
            UserError: one is not.
        """
        for _, part in self._parts():
            self._bytes(part)

    def changes(self, file: str) -> str:
        """Which tensors of a file have other bytes than the program says, to stand in an error."""
        changed = dict.fromkeys(
            name
            for name, part in self._parts()
            if part.file == file and sha256(self._bytes(part).data).hexdigest() != part.sha256
        )
        return f" in {some_of([*changed])}" if changed else ""

    def _parts(self) -> Iterator[tuple[str, Part]]:
        """Names of tensors with their parts."""
        for name, parameter in self._program.parameters.items():
            for part in parameter.parts:
                yield name, part

    @cached_property
    def size(self) -> int:
        """Bytes of all images."""
        return sum(part.size for _, part in self._parts())


def _row_bytes(parameter: Parameter) -> int:
    return -(-parameter.dims[1] * container_bits(parameter.bits) // 8)
