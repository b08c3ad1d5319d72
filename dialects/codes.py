"""Codes: E4M3, the packed matrices of weights, and mantissas for float data.

Everything that turns floating-point model data into integers is here (`mantissa_exponent`,
`fixed`). It runs at compile time only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from intaglio.dialects.fixed_point import FIXED_BITS, Ints, Saturations, bit_length
from intaglio.dialects.formats import E4M3_LIMIT

Rows: TypeAlias = slice | npt.NDArray[np.integer]


def e4m3_encode(t: Ints, fraction_bits: int) -> Ints:
    """The E4M3 code (OCP FP8, no infinities) nearest to ``t * 2**-fraction_bits * 2**-9``.

    With ``a = |t|`` and ``drop = max(bit_length(a) - 4, fraction_bits)``: ``q`` is ``a / 2**drop``
    rounded half to even (0 to 16); the code is ``8 * (drop - fraction_bits) + q``, at most 126
    (448), plus 128 for negative `t` (also when it rounds to zero: -0 decodes to 0).

    Args:
        t: any shape, ``|t| < 2**61``.
        fraction_bits: at least 1.
    """
    a = np.abs(t)
    drop = np.maximum(bit_length(a) - 4, fraction_bits)
    q = a >> drop
    q &= 1
    q += a
    q += (np.int64(1) << (drop - 1)) - 1
    q >>= drop
    q += (drop - fraction_bits) << 3
    return np.minimum(q, 126) + ((t >> 63) & 128)


@functools.cache
def _e4m3_values() -> Ints:
    magnitude = np.arange(128)
    power, fraction = magnitude >> 3, magnitude & 7
    value = np.where(power == 0, fraction, (8 + fraction) << np.maximum(power - 1, 0))
    return np.concatenate([value, -value]).astype(np.int64)


def e4m3_decode(codes: npt.NDArray[np.integer]) -> Ints:
    """E4M3 codes (0 to 255) as integers in units of 2**-9, at most 448 * 2**9 in magnitude.

    `e4m3_encode` never makes the two codes of not-a-number, 127 and 255.
    """
    return _e4m3_values().take(codes)


def decode(codes: npt.NDArray[np.integer], fmt: str) -> npt.NDArray[np.integer]:
    """Codes as the integers they stand for: the same array but for fp8."""
    return e4m3_decode(codes) if fmt == "fp8" else codes


OFFSET_LIMIT = 32
"""Most bits of a group's offset, with its sign."""


def container_bits(bits: int) -> int:
    """Bits in which a code of so many bits is packed in files and kernels: 2, 4 or 8."""
    return next(size for size in (2, 4, 8) if bits <= size)


@functools.cache
def _unpacked(bits: int) -> npt.NDArray[np.unsignedinteger]:
    """For each byte its codes, low bits first, as the bytes of one wider integer [256]."""
    shifts = np.arange(0, 8, bits)
    codes = ((np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)).astype(np.uint8)
    return codes.view(np.uint16 if bits == 4 else np.uint32)[:, 0]


def unpack(packed: npt.NDArray[np.uint8], bits: int, columns: int) -> npt.NDArray[np.uint8]:
    """Packed codes [..., ceil(columns * bits / 8)] as uint8 [..., columns]."""
    if bits == 8:
        return np.asarray(packed)
    return _unpacked(bits).take(packed).view(np.uint8)[..., :columns]


def pack(codes: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """Codes [..., columns] as bytes, low bits first; the last byte of a row is filled with zeros.

    Raises:
        ValueError: `bits` is not 2, 4 or 8, or a code does not fit.
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"codes are packed with 2, 4 or 8 bits, not {bits}")
    if codes.size and (codes.min() < 0 or codes.max() >= 1 << bits):
        raise ValueError(f"codes outside 0..{(1 << bits) - 1}")
    per_byte = 8 // bits
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per_byte)]
    full = np.pad(codes.astype(np.uint8), padding)
    packed = np.zeros((*full.shape[:-1], full.shape[-1] // per_byte), np.uint8)
    for i in range(per_byte):
        packed |= full[..., i::per_byte] << np.uint8(i * bits)
    return packed


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix of small integers; element (n, k) is ``(q - zero) * scale * 2**-exponent``.

    Where zero points are no codes (HQQ's are fractions), each group has an offset beside its scale:
    ``((q - zero) * scale - offset) * 2**-exponent``; `offset_mantissas` makes them.

    The arrays may be memory-mapped; nothing here copies a whole matrix.

    Attributes:
        codes: uint8 [N, ceil(columns * bits / 8)], packed low bits first, each row padded to a
            byte.
        bits: of a code's container: 2, 4 or 8. Ternary weights are ``bits=2, zero=1`` with codes
            0, 1 and 2.
        columns: K, the elements of a row.
        group: elements that share a scale; the last group of a row may be shorter.
        zero: the code that stands for 0: one number, or uint8 [N, G], with G = ceil(columns /
            group).
        scales: int16 mantissas [N, G].
        exponent: common to all scales, and to the offsets.
        offsets: int32 mantissas [N, G], or None: all are 0. Beside them `zero` is the middle of the
            codes' range, ``2**(bits - 1)``.
        offset_bits: width of an offset with its sign, at most 32; 0 without.
    """

    codes: npt.NDArray[np.uint8]
    bits: int
    columns: int
    group: int
    zero: int | npt.NDArray[np.uint8]
    scales: npt.NDArray[np.int16]
    exponent: int
    offsets: npt.NDArray[np.int32] | None = None
    offset_bits: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"a matrix has 2, 4 or 8 bits, not {self.bits}")
        groups = (self.rows, self.groups)
        width = (self.columns * self.bits + 7) // 8
        if self.codes.dtype != np.uint8 or self.codes.shape != (self.rows, width):
            raise ValueError(f"codes are {self.codes.dtype} {self.codes.shape}, not uint8 {width=}")
        if self.scales.dtype != np.int16 or self.scales.shape != groups:
            raise ValueError(
                f"scales are {self.scales.dtype} {self.scales.shape}, not int16 {groups}"
            )
        if isinstance(self.zero, int):
            if not 0 <= self.zero < 1 << self.bits:
                raise ValueError(f"zero point {self.zero} is no {self.bits}-bit code")
        elif self.zero.dtype != np.uint8 or self.zero.shape != groups:
            raise ValueError(f"zeros are {self.zero.dtype} {self.zero.shape}, not uint8 {groups}")
        if self.offsets is None:
            return
        if not isinstance(self.zero, int) or self.zero != 1 << (self.bits - 1):
            raise ValueError("with offsets codes count from the middle of their range")
        if self.offsets.dtype != np.int32 or self.offsets.shape != groups:
            raise ValueError(
                f"offsets are {self.offsets.dtype} {self.offsets.shape}, not int32 {groups}"
            )
        if not 1 <= self.offset_bits <= OFFSET_LIMIT:
            raise ValueError(f"offsets have 1 to {OFFSET_LIMIT} bits, not {self.offset_bits}")

    @property
    def rows(self) -> int:
        """N, the length of a product."""
        return self.codes.shape[0]

    @property
    def groups(self) -> int:
        """G, the groups of a row."""
        return -(-self.columns // self.group)

    def part(self, rows: slice) -> Matrix:
        """The matrix of some rows."""
        return replace(
            self,
            codes=self.codes[rows],
            zero=self.zero if isinstance(self.zero, int) else self.zero[rows],
            scales=self.scales[rows],
            offsets=None if self.offsets is None else self.offsets[rows],
        )

    def unpack(self, rows: Rows = slice(None)) -> npt.NDArray[np.uint8]:
        """The codes of some rows, uint8 [R, K]."""
        return unpack(self.codes[rows], self.bits, self.columns)

    def zeros(self, rows: Rows = slice(None)) -> npt.NDArray[np.uint8]:
        """The zero points of some rows, uint8 [R, G] (broadcast when there is one for all)."""
        if isinstance(self.zero, int):
            count = self.scales[rows].shape[0]
            return np.broadcast_to(np.uint8(self.zero), (count, self.groups))
        return self.zero[rows]

    def values(self, rows: Rows = slice(None)) -> Ints:
        """``(q - zero) * scale - offset`` of some rows, int64 [R, K].

        At most 24 bits and a sign; with offsets a bit more than the wider of both.
        """
        q = self.unpack(rows).astype(np.int64)
        of_group = np.arange(self.columns) // self.group
        zeros = self.zero if isinstance(self.zero, int) else self.zero[rows].take(of_group, axis=1)
        q -= zeros
        q *= self.scales[rows].take(of_group, axis=1)
        if self.offsets is not None:
            q -= self.offsets[rows].take(of_group, axis=1)
        return q


SLOT_LIMITS: dict[str, int] = {"fp8": E4M3_LIMIT, "int8": 128, "int6": 32, "ternary": 1}
"""The largest magnitude of a weight in an adapter's slot, by code; fp8 in units of 2**-9."""

WEIGHT_BITS: dict[str, int] = {
    "ternary": 2,
    "int2": 2,
    "int3": 3,
    "int4": 4,
    "int6": 6,
    "int8": 8,
}
"""Bits of a weight in ROM, by code."""

DENSE_BITS: dict[str, int] = {"fixed16": 16, "fixed32": 32, "float32": 32}
"""Bits of a value of a vector or table, by code; `float32` only before legalisation."""

SLOT_BITS: dict[str, int] = {"fp8": 8, "int8": 8, "int6": 6, "ternary": 2}
"""Bits of a weight in an adapter's slot, by code."""


@dataclass(frozen=True, eq=False)
class AdapterMatrix:
    """A or B of a low-rank adapter; element (n, k) is ``weight * scale[n] * 2**-exponent``.

    Attributes:
        code: `fp8`: codes are E4M3 and weights integers in units of 2**-9 (so `exponent` is 9 more
            than that of the numbers). `int8`, `int6`: ``weight = code - 2**(bits - 1)``.
            `ternary`: ``weight = code - 1``.
        codes: uint8 [N, K], one code an element.
        scales: int16 mantissas [N], one a row.
        exponent: common to all scales.
    """

    code: str
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.int16]
    exponent: int

    def __repr__(self) -> str:
        rows, columns = self.codes.shape
        return f"AdapterMatrix({self.code}[{rows}, {columns}], exponent={self.exponent})"

    def __post_init__(self) -> None:
        if self.code not in SLOT_BITS:
            raise ValueError(f"unknown code '{self.code}', known are {', '.join(SLOT_BITS)}")
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2:
            raise ValueError(f"codes are {self.codes.dtype} {self.codes.shape}, not uint8 [N, K]")
        if self.scales.dtype != np.int16 or self.scales.shape != self.codes.shape[:1]:
            raise ValueError(
                f"scales are {self.scales.dtype} {self.scales.shape}, not int16 [{self.rows}]"
            )
        if self.codes.size and self.codes.max() > self._largest_code:
            raise ValueError(f"{self.code} has no code {self.codes.max()}")
        if self.code == "fp8" and np.any(self.codes & 127 == 127):
            raise ValueError("fp8 codes contain not-a-number")

    @property
    def _largest_code(self) -> int:
        return 2 if self.code == "ternary" else (1 << SLOT_BITS[self.code]) - 1

    @property
    def rows(self) -> int:
        """N, the length of a product."""
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        """K, the elements of a row."""
        return self.codes.shape[1]

    @functools.cached_property
    def weights(self) -> Ints:
        """The weights before their scales, int64 [N, K]."""
        if self.code == "fp8":
            return e4m3_decode(self.codes)
        zero = 1 if self.code == "ternary" else 1 << (SLOT_BITS[self.code] - 1)
        return self.codes.astype(np.int64) - zero

    def values(self, rows: Rows = slice(None)) -> Ints:
        """``weight * scale`` of some rows, int64 [R, K]; at most 33 bits and a sign."""
        return self.weights[rows] * self.scales[rows].astype(np.int64)[:, None]


def mantissa_exponent(largest: float, bits: int) -> int:
    """The exponent at which floats become signed integers of `bits` bits: ``value * 2**exponent``.

    It is the largest at which the magnitude `largest` still rounds (half to even) to at most
    ``2**(bits-1) - 1``, so that one exponent serves all that are no larger; 0 for the magnitude 0.

    Raises:
        ValueError: an infinity or not-a-number.
    """
    if not math.isfinite(largest):
        raise ValueError("weights contain infinities or not-a-number")
    if largest == 0:
        return 0
    exponent = bits - 1 - math.frexp(largest)[1]
    # Just below a power of two it rounds up to it. Python rounds integers' halves to even too.
    return exponent - (round(math.ldexp(largest, exponent)) >= 1 << (bits - 1))


def scaled(values: npt.NDArray[np.number], exponent: int) -> npt.NDArray[np.float64]:
    """Numbers times a power of two, rounded at most once (where the result is subnormal)."""
    # A product is several times as fast as ldexp; the power must be a normal float64.
    if abs(exponent) <= 1022:
        return np.multiply(values, 2.0**exponent, dtype=np.float64)
    return np.ldexp(values.astype(np.float64), exponent)


def fixed(
    values: npt.ArrayLike,
    frac: int,
    bits: int = FIXED_BITS,
    saturations: Saturations | None = None,
) -> Ints:
    """Floats as Fixed: ``value * 2**frac`` rounded half to even and saturated to `bits`.

    For biases, norm offsets, attention sinks (bits=32) and rotary tables (frac=14, bits=16).

    Raises:
        ValueError: an infinity or not-a-number.
    """
    array = np.asarray(values).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("constants contain infinities or not-a-number")
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    exact = np.rint(scaled(array, frac))
    clipped = np.clip(exact, low, high)
    if saturations is not None:
        saturations.count += int(np.count_nonzero(clipped != exact))
    return clipped.astype(np.int64)


class OffsetForm(NamedTuple):
    """How the zero points of a matrix become offsets."""

    bits: int
    """Width of an offset with its sign, at most `OFFSET_LIMIT`."""
    peak: float
    """What the exponent of scales and offsets is chosen by: the largest magnitude of a scale, or
    more where offsets would have more bits."""


def offset_form(code_bits: int, scale: float, spill: float) -> OffsetForm:
    """The width of a matrix's offsets and the peak its exponent follows.

    The width of zero points inside the codes' range hangs on that range alone, so that matrices of
    one code are alike.

    Args:
        code_bits: of a code.
        scale: the largest magnitude of a scale.
        spill: the largest magnitude of ``scale * (zero - nearest)``, where `nearest` is the number
            in the range of codes that is nearest to the zero point; 0 when all are inside.
    """
    middle, top = 1 << (code_bits - 1), 1 << (OFFSET_LIMIT - 1)
    mantissa = (1 << 15) - 1
    # What is left of the widest offset when the part inside the range is taken away.
    peak = max(scale, spill / (top // mantissa - middle - 2))
    largest = mantissa * middle + 1
    if spill:
        largest += math.ceil((mantissa + 0.5) * spill / peak)
    return OffsetForm(largest.bit_length() + 1, peak)


def offset_spill(
    scales: npt.NDArray[np.floating], zeros: npt.NDArray[np.floating], code_bits: int
) -> float:
    """The largest magnitude of ``scale * (zero - nearest)``; see `offset_form`."""
    outside = zeros.astype(np.float64) - np.clip(zeros, 0, (1 << code_bits) - 1)
    return float(np.abs(scales * outside).max(initial=0.0))


def offset_mantissas(
    scales: npt.NDArray[np.floating],
    zeros: npt.NDArray[np.floating],
    mantissas: npt.NDArray[np.integer],
    exponent: int,
    code_bits: int,
    offset_bits: int,
) -> npt.NDArray[np.int32]:
    """Offsets of groups with zero points of any value, from the middle of the codes' range.

    A weight ``scale * (q - zero)`` becomes ``(q - middle) * m - offset`` with m the mantissa of the
    scale and, with `nearest` the number in the range of codes that is nearest to the zero point::

        offset = round(m * (nearest - middle) + scale * 2**exponent * (zero - nearest))

    So a weight is off by the scale's own rounding times ``q - nearest``, at most the range of codes
    wherever the zero point lies, and by half a unit; where zero points are codes it is
    ``(q - zero) * m``, to the bit.

    Args:
        scales: [R, G].
        zeros: [R, G], finite.
        mantissas: of the scales at `exponent`, int16 [R, G].
        exponent: of scales and offsets.
        code_bits: of a code.
        offset_bits: width of an offset with its sign (`OffsetForm.bits`).

    Returns:
        int32 [R, G], rounded half to even.

    Raises:
        ValueError: an offset that does not fit.
    """
    zeros = zeros.astype(np.float64)
    nearest = np.clip(zeros, 0, (1 << code_bits) - 1)
    inside = mantissas.astype(np.float64) * (nearest - (1 << (code_bits - 1)))
    outside = np.ldexp(scales.astype(np.float64), exponent) * (zeros - nearest)
    offsets = np.rint(inside + outside)
    half = 1 << (offset_bits - 1)
    if not ((offsets >= -half) & (offsets < half)).all():
        raise ValueError(f"an offset has more than {offset_bits} bits")
    return offsets.astype(np.int32)
