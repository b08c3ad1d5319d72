"""Contents that take hardware to its limits: numbers, tensors, adapters, instructions' constants.

Everything drawn here is something that a model could have brought along, only not a likely one:
codes at their ends, scales of 0, of 1 and of all bits, numbers whose sums do not fit, adapters that
are empty or full. The simulator gets the same as the hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.backend.images.adapter import AdapterImage, SiteImage
from intaglio.backend.images.read import Images
from intaglio.backend.program.program import Block, Cache, Instruction, Parameter, Program
from intaglio.backend.program.types import Matrices
from intaglio.dialects import semantics
from intaglio.dialects.codes import SLOT_BITS, AdapterMatrix, Matrix, container_bits
from intaglio.dialects.fixed_point import FIXED_BITS, SCALE_BITS, Ints, Real, Scale
from intaglio.dialects.formats import FORMATS, HEAD_FORMATS
from intaglio.dialects.formulas.heads import HALF, WHOLE
from intaglio.dialects.formulas.recurrence import FINEST, STATE_BITS, STATE_LIMIT
from intaglio.dialects.isa import values
from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.instruction import Instruction as Does
from intaglio.dialects.isa.matrix import ExpertMatvec, Product
from intaglio.dialects.isa.vector import LayerNorm, RMSNorm, RMSScale, Rotary, ScaleBy
from intaglio.dialects.semantics import Quantized

Random = np.random.Generator

SHIFTED = (Product, ExpertMatvec, QueryKey, WeightedSum)
"""Instructions whose accumulators are shifted before they are scaled."""

CHANGED = (values.Fixed, values.Scores, values.Quantized, values.Scale)
"""Kinds of buffers whose contents are changed between instructions."""
_STORED_EXPONENTS, _CACHED_EXPONENTS = 512, 128
"""Exponents of quantised vectors, and of those that go into a cache: signed numbers below this."""
_EPSILONS = (0.0, 2.0**-60, 1e-12, 1e-6, 1e-3, 1.0, 1e4)
_STEPS = (6, 14, 40)
"""An exponent is moved by at most so much, each as often as the others."""
_COARSEST = 40
"""The smallest exponents of states are above minus this."""
_SLOT_EXPONENTS = {"fp8": 28, "int8": 21, "int6": 19, "ternary": 15}
"""With these, adapters make numbers of about one."""


def numbers(rng: Random, shape: tuple[int, ...], bits: int = FIXED_BITS) -> Ints:
    """Signed numbers of `bits` bits, of one of several kinds of extremes."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    match int(rng.integers(12)):
        case 0:
            return np.full(shape, high, np.int64)
        case 1:
            return np.full(shape, low, np.int64)
        case 2:
            return rng.choice([low, high], shape)
        case 3:
            return np.zeros(shape, np.int64)
        case 4:
            found = np.zeros(shape, np.int64)
            found.reshape(-1)[rng.integers(found.size)] = rng.choice([low, high, 1, -1])
            return found
        case 5:
            return rng.integers(-2, 3, shape)
        case 6:
            return rng.integers(low, high + 1, shape)
        case 7 | 8:
            # Of one size, so that all of them have a say where they meet.
            return rng.integers(low, high + 1, shape) >> int(rng.integers(bits))
        case 9:
            edge = np.int64(1) << rng.integers(0, bits - 1, shape)
            return rng.choice([-1, 1], shape) * edge + rng.integers(-1, 2, shape)
        case 10:
            edge = np.int64(1) << int(rng.integers(bits - 1))
            return np.clip(
                rng.choice([-1, 1], shape) * edge + rng.integers(-2, 3, shape), low, high
            )
        case _:
            return rng.integers(low, high + 1, shape) >> rng.integers(0, bits, shape)


def codes(rng: Random, shape: tuple[int, ...], largest: int) -> npt.NDArray[np.uint8]:
    """Codes from 0 to `largest`: one of the ends, both, or any."""
    match int(rng.integers(5)):
        case 0:
            found = np.full(shape, largest)
        case 1:
            found = np.zeros(shape)
        case 2:
            found = rng.choice([0, largest], shape)
        case _:
            found = rng.integers(0, largest + 1, shape)
    return found.astype(np.uint8)


def cached(rng: Random, cache: Cache) -> Quantized:
    """What a full cache holds: as if appended at position 0."""
    shape = cache.capacity, cache.heads * cache.width
    values = numbers(rng, shape)
    if rng.integers(2):
        # Each token of another size.
        values >>= rng.integers(0, FIXED_BITS, (cache.capacity, 1))
    fraction = int(rng.integers(10, 21))
    if cache.format in HEAD_FORMATS:
        return semantics.quantize_heads(values, cache.format, fraction, cache.heads)
    if cache.static_inverse is None:
        return semantics.quantize(values, cache.format, fraction, cache.heads)
    found = semantics.quantize_static(values, cache.format, cache.static_inverse, fraction)
    return Quantized(found, semantics.quantize(values, "int8", 16, cache.heads).scale, cache.format)


def remembered(rng: Random, one: Matrices) -> semantics.Matrices:
    """A state of linear attention: mantissas of extremes, exponents from small to the finest."""
    shape = one.heads, one.key_width, one.value_width
    mantissas = numbers(rng, shape, STATE_BITS).clip(-STATE_LIMIT, STATE_LIMIT)
    coarsest = -int(rng.integers(_COARSEST + 1))
    return semantics.Matrices(mantissas, rng.integers(coarsest, FINEST + 1, one.heads))


class ChangedImages(Images):
    """A program's tensors, about half of them with other contents.

    What lies in ROM that is logic stays: it is part of the hardware.

    Args:
        program: the program.
        folder: with its images.
        rng: draws.
    """

    def __init__(self, program: Program, folder: Path, rng: Random) -> None:
        super().__init__(program, folder)
        self._seed = int(rng.integers(1 << 62))
        self._fixed_rom = program.machine.rom == "logic"
        self._dense: dict[str, npt.NDArray[np.signedinteger]] = {}
        self._matrices: dict[str, Matrix] = {}

    def _rng(self, name: str) -> Random | None:
        """Of a tensor, whatever is read before it; None: it stays."""
        rng = np.random.default_rng([self._seed, *name.encode()])
        return rng if rng.integers(2) else None

    def _is_logic(self, parameter: Parameter) -> bool:
        return self._fixed_rom and bool(parameter.pieces)

    def dense(self, name: str) -> npt.NDArray[np.signedinteger]:
        """See `Images.dense`."""
        if name not in self._dense:
            found, rng = super().dense(name), self._rng(name)
            if rng is not None and not self._is_logic(self._program.parameters[name]):
                bits = 8 * found.dtype.itemsize
                found = numbers(rng, found.shape, bits).astype(found.dtype)
            self._dense[name] = found
        return self._dense[name]

    def matrix(self, name: str) -> Matrix:
        """See `Images.matrix`."""
        if name not in self._matrices:
            self._matrices[name] = self._matrix(name)
        return self._matrices[name]

    def _matrix(self, name: str) -> Matrix:
        found, rng = super().matrix(name), self._rng(name)
        if rng is None:
            return found
        parameter = self._program.parameters[name]
        if parameter.group:
            scales = numbers(rng, found.scales.shape, 16)
        else:
            scales = np.broadcast_to(numbers(rng, (1, 1), 16), found.scales.shape)
        if self._is_logic(parameter):
            # Groups' scales are tables beside the banks.
            return found if parameter.group else replace(found, scales=_int16(scales))
        largest = 2 if parameter.code == "ternary" else (1 << parameter.bits) - 1
        zero = found.zero
        if not isinstance(zero, int):
            zero = codes(rng, zero.shape, largest)
        drawn = codes(rng, (found.codes.shape[0], found.columns), largest)
        return replace(
            found,
            codes=_packed(drawn, container_bits(parameter.bits)),
            scales=_int16(scales) if rng.integers(2) else found.scales,
            zero=zero,
        )


def _int16(values: Ints) -> npt.NDArray[np.int16]:
    return np.ascontiguousarray(values.astype(np.int16))


def _packed(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes [N, K] as rows of bytes, low bits first."""
    each = 8 // bits
    rows, columns = values.shape
    padded = np.zeros((rows, -(-columns // each) * each), np.uint8)
    padded[:, :columns] = values
    shifts = np.arange(each, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(padded.reshape(rows, -1, each) << shifts, axis=-1)


def adapter(program: Program, rng: Random) -> AdapterImage | None:
    """An adapter for the slots: none, of rank 0, full, or any; codes and scales at their ends."""
    kind = int(rng.integers(6))
    if not program.sites or kind == 0:
        return None
    sites: dict[str, SiteImage] = {}
    for name, site in program.sites.items():
        rank = site.rank if kind < 4 else int(rng.integers(site.rank + 1))
        code = program.parameters[site.a].code
        if rank:
            a = _slot(rng, code, rank, site.columns)
            sites[name] = SiteImage(rank, a, _slot(rng, code, site.rows, rank))
    return AdapterImage("stress", "", sites)


def _slot(rng: Random, code: str, rows: int, columns: int) -> AdapterMatrix:
    if code == "fp8":
        found = codes(rng, (rows, columns), 255)
        if rng.integers(2):
            found = rng.choice([126, 254], (rows, columns)).astype(np.uint8)
        # 448 in place of what is no number.
        found[found & 127 == 127] -= 1
    else:
        found = codes(rng, (rows, columns), 2 if code == "ternary" else (1 << SLOT_BITS[code]) - 1)
    scales = _int16(numbers(rng, (rows,), 16))
    return AdapterMatrix(code, found, scales, _SLOT_EXPONENTS[code] + _step(rng))


def _step(rng: Random) -> int:
    most = int(rng.choice(_STEPS))
    return int(rng.integers(-most, most + 1))


def changed_program(program: Program, rng: Random) -> Program:
    """A program with other exponents of tensors and other constants of instructions.

    Everything that decides on time, widths and places stays as it is.
    """
    # Their fraction is that of what they meet: no instruction has a shift for it.
    placed = {
        name
        for block in program.blocks
        for instance in block.instances
        for one in block.instructions
        for name in _added_or_turned(one.does.bound(instance))
    }
    parameters = {
        name: one if name in placed else _changed_exponent(one, rng)
        for name, one in program.parameters.items()
    }
    most: dict[str, int] = {}
    for block in program.blocks:
        for one in block.instructions:
            if isinstance(one.does, SHIFTED):
                kind = _unit_of(one)
                most[kind] = max(most.get(kind, 0), one.does.pre_shift)
    blocks = [_changed_block(block, most, rng) for block in program.blocks]
    return replace(program, parameters=parameters, blocks=blocks)


def _changed_block(block: Block, most: Mapping[str, int], rng: Random) -> Block:
    """All beats of an instruction have the same constants."""
    other = [_changed(one, most, rng) for one in block.whole]
    beats = zip(block.instructions, block.whole_of, strict=True)
    return replace(block, instructions=[replace(one, does=other[n]) for one, n in beats])


def _unit_of(one: Instruction) -> str:
    return f"{one.queue} {one.opcode}" if one.queue != "attention" else one.opcode


def _changed_exponent(parameter: Parameter, rng: Random) -> Parameter:
    if rng.integers(2):
        return parameter
    return replace(parameter, exponent=parameter.exponent + _step(rng))


def _added_or_turned(one: Does[str]) -> tuple[str | None, ...]:
    match one:
        case Product() | ExpertMatvec():
            return (one.bias,)
        case LayerNorm():
            return (one.beta,)
        case Rotary():
            return one.cos, one.sin
        case _:
            return ()


def _changed(one: Instruction, most: Mapping[str, int], rng: Random) -> Does[str]:
    """What an instruction does with other constants: a shift from its own to the unit's largest."""
    does = one.does
    if isinstance(does, SHIFTED) and rng.integers(2):
        shift = int(rng.integers(does.pre_shift, most[_unit_of(one)] + 1))
        does = replace(does, pre_shift=shift)
    if isinstance(does, RMSNorm | LayerNorm) and rng.integers(2):
        does = replace(does, eps=Real.of(float(rng.choice(_EPSILONS))))
    if isinstance(does, RMSScale) and rng.integers(2):
        # A sum that nothing has normalised holds no larger one at any fraction.
        does = replace(does, eps=Real.of(float(rng.choice(_EPSILONS[:-1]))))
    if isinstance(does, QueryKey) and rng.integers(2):
        does = replace(does, score_scale=_scaled(does.score_scale, rng))
    if isinstance(does, ScaleBy) and rng.integers(2):
        factor = _scaled(does.factor, rng)
        sign = -1 if rng.integers(2) else 1
        does = replace(does, factor=Real(sign * factor.mantissa, factor.exponent))
    return does


def _scaled(value: Real, rng: Random) -> Real:
    """Another number of about the size: 24 bits of mantissa, with ones at both ends at times."""
    top = 1 << (SCALE_BITS - 1)
    mantissa = int(rng.choice([top, 2 * top - 1, top | int(rng.integers(top))]))
    return Real(mantissa, value.exponent + _step(rng))


def fixed(shape: tuple[int, ...], rng: Random) -> Ints | None:
    """Numbers in place of what an instruction wrote; None: it stays, as half of them do."""
    return None if rng.integers(2) else numbers(rng, shape)


def factor(value: Scale, rng: Random) -> Scale | None:
    """The factor of a norm in place of what an instruction wrote; None: it stays, as most do."""
    if rng.integers(3):
        return None
    return _scale(value, _STORED_EXPONENTS, rng)


def quantized(value: Quantized, is_cached: bool, rng: Random) -> Quantized | None:
    """A quantised vector in place of what an instruction wrote; None: it stays, as most do.

    Codes are those of the format, scales normalised; how large they are is not bound to numbers of
    32 bits, as scales of a model's own are not.

    Args:
        value: what was written.
        is_cached: whether its scales become those of a cache.
        rng: draws.
    """
    if rng.integers(3):
        return None
    one, shape = FORMATS[value.format], value.codes.shape
    if one.name == "fp8":
        found = rng.integers(0, 255, shape)
        found[found & 127 == 127] = 126
    else:
        limit = int(rng.choice([1, one.limit]))
        ends = rng.choice([-limit, limit], shape)
        found = ends if rng.integers(2) else rng.integers(-limit, limit + 1, shape)
    far = _CACHED_EXPONENTS if is_cached else _STORED_EXPONENTS
    scale = _scale(value.scale, far, rng)
    if one.name in HEAD_FORMATS:
        mantissa = rng.choice([WHOLE, HALF], scale.mantissa.shape)
        # What a byte of a cache holds, but for 0.
        scale = Scale(mantissa, np.clip(scale.exponent, 1, 127))
    return Quantized(found.astype(np.int64), scale, value.format)


def _scale(value: Scale, far: int, rng: Random) -> Scale:
    """Normalised scales in place of others: of any size below ``2**far``, or of about theirs."""
    top, shape = 1 << (SCALE_BITS - 1), value.mantissa.shape
    mantissa = rng.choice([top, 2 * top - 1, int(top | rng.integers(top))], shape)
    exponent = np.asarray(value.exponent, np.int64)
    if rng.integers(2):
        exponent = np.full(shape, rng.integers(-far, far))
    else:
        exponent = np.clip(exponent + rng.integers(-12, 13, shape), -far, far - 1)
    return Scale(mantissa, exponent)
