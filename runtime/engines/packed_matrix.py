"""A quantised weight matrix as kernels take it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from intaglio.runtime.engines.kernel_code import MAX_K, Points

UNIT = 16
"""A group is a multiple of this many elements, or the whole row."""
_BLOCK_BYTES = 1 << 17
"""Weight bytes a thread takes at a time: in its second-level cache while many tokens pass."""


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantised weight matrix [N, K] as it lies in a ROM image; a wrapper, nothing is copied.

    Attributes:
        codes: uint8 [N, ceil(K * bits / 8)], C order; element k of a row is in the bits from
            k * bits mod 8 of byte k * bits // 8 (low bits first). Unused bits may hold anything.
        scales: int16 [N, G], C order, G = ceil(K / group): signed scale mantissas.
        zero: the zero point, 0..255: one integer for the matrix or uint8 [N, G] in C order.
        bits: width of a code: 2, 4 or 8 (codes are unsigned).
        group: elements of a group along K: a multiple of 16, or at least K. The last group may
            be shorter.
        k: elements of a row, at most `MAX_K`.
        offsets: int32 [N, G] in C order, beside one zero point for the matrix; or None.
        offset_bits: width of an offset with its sign.

    Raises:
        ValueError: a shape, type, memory order or number is not as above.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.int16]
    zero: int | npt.NDArray[np.uint8]
    bits: int
    group: int
    k: int
    offsets: npt.NDArray[np.int32] | None = None
    offset_bits: int = 32
    plans: dict[object, object] = field(default_factory=dict, repr=False, compare=False)
    """What the kernels work out once."""

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"codes are 2, 4 or 8 bits wide, not {self.bits}")
        if not 1 <= self.k <= MAX_K:
            raise ValueError(f"a row has 1 to {MAX_K} elements, not {self.k}")
        if self.group < 1 or (self.group < self.k and self.group % UNIT):
            raise ValueError(
                f"a group is a multiple of {UNIT} or the whole row of {self.k}, not {self.group}"
            )
        rows = self.codes.shape[0] if self.codes.ndim else 0
        _check("codes", self.codes, np.uint8, (rows, -(-self.k * self.bits // 8)))
        groups = -(-self.k // self.group)
        _check("scales", self.scales, np.int16, (rows, groups))
        zeros = self.zeros
        if zeros is not None:
            _check("zero", zeros, np.uint8, (rows, groups))
        elif not 0 <= int(self.zero) <= 255:
            raise ValueError(f"a zero point lies in 0..255, not {int(self.zero)}")
        if self.offsets is not None:
            if zeros is not None:
                raise ValueError("a matrix has zero points of its groups or offsets, not both")
            _check("offsets", self.offsets, np.int32, (rows, groups))

    @property
    def n(self) -> int:
        """Rows."""
        return self.codes.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes one product reads: codes, scales and zero points or offsets."""
        of_points = 0 if self.points is None else self.points.nbytes
        return self.codes.nbytes + self.scales.nbytes + of_points

    @property
    def rows_at_once(self) -> int:
        """Rows that a thread takes at a time."""
        return max(1, min(_BLOCK_BYTES // self.codes.shape[1], -(-self.n // 8)))

    @property
    def zeros(self) -> npt.NDArray[np.uint8] | None:
        """The zero points of the groups, or None if there is one for the matrix."""
        return self.zero if isinstance(self.zero, np.ndarray) and self.zero.ndim else None

    @property
    def points(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.int32] | None:
        """What groups have: zero points or offsets."""
        return self.zeros if self.offsets is None else self.offsets

    @property
    def largest_code(self) -> int:
        """The largest magnitude of a code less its zero point."""
        top, zeros = (1 << self.bits) - 1, self.zeros
        if zeros is not None:
            return max(top, int(zeros.max(initial=0)))
        return max(int(self.zero), top - int(self.zero))

    @property
    def kind_of_points(self) -> Points:
        """What stands for 0."""
        if self.offsets is not None:
            return Points.OFFSETS
        return Points.ONE if self.zeros is None else Points.GROUPS

    @property
    def largest(self) -> int:
        """The largest magnitude of a weight."""
        offset = 0 if self.offsets is None else 1 << (self.offset_bits - 1)
        return (255 << 15) + offset


def _check(name: str, array: np.ndarray, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be {np.dtype(dtype)} {list(shape)} in C order, "
            f"not {array.dtype} {list(array.shape)}"
        )


def lane(bits: int) -> int:
    """Consecutive elements that a lane of a kernel's accumulator sums."""
    return 4 * (8 // bits)
