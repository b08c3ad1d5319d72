"""LLVM IR of the integer matrix-vector kernels, and its compilation for the machine at hand.

One kernel is generated for each `KernelSpec`. Terms used throughout:

- *chunk*: the codes one vector register holds, `width` bytes = `width * 8 / bits` elements.
- *phase*: code number f of every byte of a chunk (int4 has two, 2 bit has four, 8 bit has one).
  Because elements lie in order with the low bits first, byte j of phase f is element
  `j * phases + f` of the chunk; `prepare` permutes the activations once so that phase f of a chunk
  meets one contiguous vector.
- *lane*: one int32 of the accumulator; it sums four bytes of every phase, hence
  `4 * phases` *consecutive* elements (4, 8 or 16 for 8, 4 or 2 bit). As a group is a multiple of 16
  elements (or the whole row), a lane never straddles two groups, and the group scales are applied
  to lanes (or to pairs of lanes) without any horizontal sum before the end of the row.
- *correction*: `-zero * sum(x)` of every lane, computed once for a vector; a chunk's dot product
  starts from it, so a constant zero point costs one vector load and no arithmetic.

Widths, from K <= 2^18 (`MAX_K`), 8-bit codes and activations and zero points in 0..255:
a lane pair of one group sums at most K / (lanes / 2) products (q - z) * x of magnitude at most
255 * 128, which is below 2^31 even for one group over the row and 8 lanes; it is multiplied by a
16-bit scale into int64, where a row is below 2^18 * 255 * 128 * 2^15 < 2^48. Values before the
zero point is taken away may wrap around 2^32; the sum of both does not, so the wrapping cancels.
Offsets of 32 bits add 2^18 * 128 * 2^31 = 2^56 at most.

Activations with an exponent a block (`dialects/formulas/blocks.py`): bytes are their codes, and
what a code stands for is the code times its block's step, `(4 - h) << e`, of 18 bits. A block is
whole lanes, or whole pairs of lanes, so the step is one more product of a chunk's sums, lane by
lane. All products have operands of 32 bits: in a chunk a pair sums at most 32 activations, so with
2- or 4-bit weights it has 16 bits, 31 times its scale, and the step comes after the scale; for
wider weights the scale is times 4 - h, and what it gives shifted by e (`shifted`). Where a
group is several chunks the step comes first and the scale after the group's sum. What they give is
part of a sum that fits int64 (`matmul` asks for it).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, IntEnum

from intaglio.runtime.engines.llvm_ir import Builder, Module, Type, Value, library

MAX_K = 1 << 18
"""Longest row for which every int32 intermediate is exact (see the module's docstring)."""


class Layout(Enum):
    """How the groups of a row lie on its chunks."""

    FINE = "fine"
    """A chunk holds a whole number (>= 1) of groups."""
    COARSE = "coarse"
    """A group holds a whole number (>= 1) of chunks, or the whole row."""
    INDEXED = "indexed"
    """Value other multiple of 16: a table gives the group of every 16 elements."""


class Points(Enum):
    """What stands for 0."""

    ONE = "one"
    """A zero point for the matrix: corrections have it."""
    GROUPS = "groups"
    """A zero point for every group, uint8."""
    OFFSETS = "offsets"
    """A zero point for the matrix, and an offset for every group, int32: a second scale, on the sum
    of the group's activations."""


class Param(IntEnum):
    """Positions in the int64 parameter block that every function takes.

    What belongs to a matrix comes first, what belongs to a call last (from `SOURCE`).
    """

    CODES = 0
    SCALES = 1
    ZEROS = 2
    INDEX = 3
    ROWS = 4
    ROW_BLOCK = 5
    ROW_BYTES = 6
    GROUPS = 7
    CHUNKS = 8
    FULL_CHUNKS = 9
    TAIL_BYTES = 10
    CHUNKS_PER_GROUP = 11
    X_STRIDE = 12
    CHUNKS_PER_CORRECTION = 13
    CORRECTION_STRIDE = 14
    FACTOR = 15
    ZERO = 16
    SOURCE = 17
    TOKENS = 18
    X = 19
    CORRECTION = 20
    STEPS = 21
    """Of activations with an exponent a block, for each token and chunk the steps of
    `KernelSpec.step_vectors`, in int64 lanes."""
    Y = 22
    TOKEN_BLOCKS = 23
    NEXT_ROW = 24


_POINTERS = frozenset(
    {
        Param.CODES,
        Param.SCALES,
        Param.ZEROS,
        Param.INDEX,
        Param.SOURCE,
        Param.X,
        Param.CORRECTION,
        Param.STEPS,
        Param.Y,
    }
)


@dataclass(frozen=True)
class Path:
    """One way of computing on a CPU.

    Attributes:
        name: as `backend_name()` reports it.
        width: bytes of a vector.
        dot: the four-byte dot product: "vpdpbusd", "vpmaddubsw" or "portable".
        masked: whether masked vector loads are one instruction (AVX512BW and VL).
        cpu: LLVM's processor name ("" is the architecture's baseline).
        features: LLVM's feature string.
    """

    name: str
    width: int
    dot: str
    masked: bool
    cpu: str
    features: str

    @property
    def lanes(self) -> int:
        """Int32 lanes of the accumulator."""
        return self.width // 4


@dataclass(frozen=True)
class KernelSpec:
    """What a matrix-vector kernel is specialised for.

    Attributes:
        bits: width of a code, 2, 4 or 8.
        layout: how groups lie on chunks.
        groups_per_chunk: for `FINE`; 16-element units in a chunk for `INDEXED`; 1 for `COARSE`.
        points: what stands for 0.
        tokens: activation vectors that one pass over a row serves.
        steps: vectors of steps of a chunk, where activations have an exponent a block: 1 for pairs
            of lanes, 2 where two neighbouring lanes may be of two blocks; else 0.
        shifted: each of these is 4 - h and, in the vector behind it, e; else `(4 - h) << e`.
    """

    bits: int
    layout: Layout
    groups_per_chunk: int
    points: Points
    tokens: int
    steps: int = 0
    shifted: bool = False

    @property
    def step_vectors(self) -> int:
        """Vectors of what steps are, for a chunk."""
        return self.steps * (2 if self.shifted else 1)

    def apart(self, lanes: int) -> bool:
        """Whether two neighbouring ones of so many lanes may be of two groups or blocks."""
        return self.steps == 2 or self.groups_per_chunk == lanes


def available_paths() -> dict[str, Path]:
    """The paths this machine can run, best first.

    AVX-VNNI and the 256-bit form of AVX512-VNNI are the same instruction in another encoding, so
    "avx-vnni" stands for either.
    """
    import llvmlite.binding as llvm

    cpu = llvm.get_host_cpu_name()
    host = llvm.get_host_cpu_features()
    has = {name for name, on in host.items() if on}
    narrow = ",".join(
        f"{'-' if name.startswith(('avx512', 'avx10')) else '+' if on else '-'}{name}"
        for name, on in host.items()
    )
    paths = []
    if has >= {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}:
        paths.append(Path("avx512-vnni", 64, "vpdpbusd", True, cpu, host.flatten()))
    if "avxvnni" in has:
        paths.append(Path("avx-vnni", 32, "vpdpbusd", False, cpu, narrow))
    elif has >= {"avx512vl", "avx512vnni"}:
        paths.append(Path("avx-vnni", 32, "vpdpbusd", False, cpu, host.flatten()))
    if "avx2" in has:
        paths.append(Path("avx2", 32, "vpmaddubsw", False, cpu, narrow))
    paths.append(Path("generic", 32, "portable", False, "", ""))
    return {path.name: path for path in paths}


class Emitter:
    """An `llvmlite.ir` function under construction, with the few idioms the kernels share."""

    def __init__(self, path: Path, name: str) -> None:
        self.ir = ir = library()
        self.path = path
        self.i1, self.i8, self.i16, self.i32, self.i64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
        self.ptr = ir.PointerType()
        self.module: Module = ir.Module(name=name)
        self.function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [self.ptr]), name=name
        )
        self.b: Builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.parameters: Value = self.function.args[0]

    # -- values ---------------------------------------------------------------------------------
    def vec(self, element: Type, count: int) -> Type:
        return self.ir.VectorType(element, count)

    def const(self, value: int, type_: Type | None = None) -> Value:
        kind: Type = self.i64 if type_ is None else type_
        if isinstance(kind, self.ir.VectorType):
            return self.ir.Constant(kind, [value] * kind.count)
        return self.ir.Constant(kind, value)

    def zero(self, type_: Type) -> Value:
        return self.ir.Constant(type_, None)

    def parameter(self, which: Param) -> Value:
        place = self.at(self.parameters, self.const(int(which)), self.i64)
        value = self.b.load(place, typ=self.i64)
        if which in _POINTERS:
            return self.b.inttoptr(value, self.ptr)
        return value

    def at(self, base: Value, offset: Value, element: Type | None = None) -> Value:
        return self.b.gep(base, [offset], source_etype=self.i8 if element is None else element)

    def load(self, pointer: Value, type_: Type) -> Value:
        return self.b.load(pointer, typ=type_, align=1)

    def store(self, value: Value, pointer: Value) -> None:
        self.b.store(value, pointer, align=1)

    def intrinsic(self, name: str, result: Type, arguments: Sequence[Value]) -> Value:
        # A stack slot's type still names its element; a function takes plain pointers.
        types = [self.ptr if a.type.is_pointer else a.type for a in arguments]
        type_ = self.ir.FunctionType(result, types)
        function = self.module.globals.get(name)
        if function is None:
            function = self.ir.Function(self.module, type_, name=name)
        return self.b.call(function, arguments)

    def shuffle(self, vector: Value, order: Sequence[int], other: Value | None = None) -> Value:
        mask = self.ir.Constant(self.vec(self.i32, len(order)), list(order))
        undefined = self.ir.Constant(vector.type, self.ir.Undefined)
        return self.b.shuffle_vector(vector, undefined if other is None else other, mask)

    # -- control --------------------------------------------------------------------------------
    def variable(self, value: Value) -> Value:
        """A stack slot holding `value` (the optimiser turns it into a register)."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(value.type)
        self.b.store(value, slot)
        return slot

    @contextmanager
    def loop(self, start: Value, stop: Value) -> Generator[Value]:
        """`for i in range(start, stop)` on int64."""
        b = self.b
        slot = self.variable(start)
        head, body, done = (b.append_basic_block(n) for n in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        i = b.load(slot, typ=self.i64)
        b.cbranch(b.icmp_signed("<", i, stop), body, done)
        b.position_at_end(body)
        yield i
        b.store(b.add(i, self.const(1)), slot)
        b.branch(head)
        b.position_at_end(done)

    def minimum(self, a: Value, c: Value) -> Value:
        return self.b.select(self.b.icmp_signed("<", a, c), a, c)

    def load_first(self, pointer: Value, type_: Type, count: Value) -> Value:
        """The first `count` (1 or more) elements of a vector, the others 0; reads only those.

        The last row ends where the mapped file may end, hence no plain vector load.
        """
        if type_.count == 1:
            return self.load(pointer, type_)
        bytes_ = type_.element.width // 8
        if self.path.masked:
            ones = self.b.lshr(self.const(-1), self.b.sub(self.const(64), count))
            bits = ones if type_.count == 64 else self.b.trunc(ones, self.ir.IntType(type_.count))
            mask = self.b.bitcast(bits, self.vec(self.i1, type_.count))
            name = f"llvm.masked.load.v{type_.count}i{type_.element.width}.p0"
            alignment = self.const(1, self.i32)
            return self.intrinsic(name, type_, [pointer, alignment, mask, self.zero(type_)])
        slot = self.variable(self.zero(type_))
        size = self.b.mul(count, self.const(bytes_))
        volatile = self.const(0, self.i1)
        name = "llvm.memcpy.p0.p0.i64"
        self.intrinsic(name, self.ir.VoidType(), [slot, pointer, size, volatile])
        return self.b.load(slot, typ=type_)

    # -- arithmetic -----------------------------------------------------------------------------
    def phases(self, chunk: Value, bits: int) -> list[Value]:
        """The unsigned codes of every phase of a chunk, a byte each."""
        if bits == 8:
            return [chunk]
        mask = self.const((1 << bits) - 1, chunk.type)
        shifted = (
            self.b.lshr(chunk, self.const(f * bits, chunk.type)) if f else chunk
            for f in range(8 // bits)
        )
        return [self.b.and_(value, mask) for value in shifted]

    def dot(self, start: Value, codes: Sequence[Value], xs: Sequence[Value], bits: int) -> Value:
        """`start` plus the sums over phases and four bytes of unsigned codes times signed xs."""
        return {
            "vpdpbusd": self._dot_vnni,
            "vpmaddubsw": self._dot_avx2,
            "portable": self._dot_portable,
        }[self.path.dot](start, codes, xs, bits)

    def _dot_vnni(
        self, start: Value, codes: Sequence[Value], xs: Sequence[Value], bits: int
    ) -> Value:
        name = f"llvm.x86.avx512.vpdpbusd.{self.path.width * 8}"
        for code, x in zip(codes, xs, strict=True):
            operands = [start, self.b.bitcast(code, start.type), self.b.bitcast(x, start.type)]
            start = self.intrinsic(name, start.type, operands)
        return start

    def _dot_avx2(
        self, start: Value, codes: Sequence[Value], xs: Sequence[Value], bits: int
    ) -> Value:
        words = self.vec(self.i16, self.path.width // 2)

        def bytes_to_words(code: Value, x: Value) -> Value:
            return self.intrinsic("llvm.x86.avx2.pmadd.ub.sw", words, [code, x])

        def words_to_lanes(word: Value, weight: int) -> Value:
            operands = [word, self.const(weight, words)]
            return self.intrinsic("llvm.x86.avx2.pmadd.wd", start.type, operands)

        if bits == 8:
            # vpmaddubsw saturates at int16: 2 * 255 * 128 does not fit, 2 * 15 * 128 does, so the
            # two nibbles go separately.
            low = self.b.and_(codes[0], self.const(15, codes[0].type))
            high = self.b.lshr(codes[0], self.const(4, codes[0].type))
            start = self.b.add(start, words_to_lanes(bytes_to_words(low, xs[0]), 1))
            return self.b.add(start, words_to_lanes(bytes_to_words(high, xs[0]), 16))
        # int4: 2 phases * 2 * 15 * 128 = 7680; 2 bit: 4 * 2 * 3 * 128 = 3072: both fit int16.
        total = bytes_to_words(codes[0], xs[0])
        for code, x in zip(codes[1:], xs[1:], strict=True):
            total = self.b.add(total, bytes_to_words(code, x))
        return self.b.add(start, words_to_lanes(total, 1))

    def _dot_portable(
        self, start: Value, codes: Sequence[Value], xs: Sequence[Value], bits: int
    ) -> Value:
        b = self.b
        words = self.vec(self.i16, self.path.width // 2)
        eight = self.const(8, words)
        sixteen = self.const(16, start.type)
        sums: list[Value] = []
        for code, x in zip(codes, xs, strict=True):
            code, x = b.bitcast(code, words), b.bitcast(x, words)
            # One product fits: 255 * 128 < 2^15.
            even = b.mul(b.and_(code, self.const(255, words)), b.ashr(b.shl(x, eight), eight))
            odd = b.mul(b.lshr(code, eight), b.ashr(x, eight))
            sums += [even, odd]
        if bits < 8:
            while len(sums) > 1:
                sums = [*sums[2:], b.add(sums[0], sums[1])]
        for value in sums:
            pairs = b.bitcast(value, start.type)
            start = b.add(start, b.ashr(b.shl(pairs, sixteen), sixteen))
            start = b.add(start, b.ashr(pairs, sixteen))
        return start

    def extend_low(self, quads: Value) -> Value:
        """Sign-extends the low halves of int64 lanes; `vpmuldq` then does the multiplication."""
        shift = self.const(32, quads.type)
        return self.b.ashr(self.b.shl(quads, shift), shift)

    def split(self, lanes: Value, apart: bool) -> list[Value]:
        """Int32 lanes as int64 vectors that a group's scale applies to.

        Two neighbouring lanes are added first (one vector), or, where they are kept apart, the even
        and the odd ones come back as two.
        """
        b = self.b
        quads = b.bitcast(lanes, self.vec(self.i64, self.path.lanes // 2))
        upper = b.lshr(quads, self.const(32, quads.type))
        if apart:
            return [self.extend_low(quads), self.extend_low(upper)]
        both = b.add(lanes, b.bitcast(upper, lanes.type))
        return [self.extend_low(b.bitcast(both, quads.type))]

    def words_product(self, a: Value, c: Value) -> Value:
        """Products of int64 lanes whose low 32 bits are a number of 16 bits; of `c` the others are
        0. Those of the result count only in its low 32 bits.

        With `mul` and only these used LLVM would choose the product of 64 bits, three times slower.
        """
        if self.path.dot == "portable":
            above = self.const(48, a.type)
            low = [self.b.ashr(self.b.shl(one, above), above) for one in (a, c)]
            return self.b.mul(*low)
        words, lanes = self.vec(self.i16, self.path.width // 2), self.vec(self.i32, self.path.lanes)
        wide = self.path.width == 64
        name = "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd"
        operands = [self.b.bitcast(one, words) for one in (a, c)]
        return self.b.bitcast(self.intrinsic(name, lanes, operands), a.type)

    def spread(self, values: Value, signed: bool, apart: bool) -> list[Value]:
        """Per-group values of a chunk, brought to the lanes that `split` gives."""
        groups = values.type.count
        half = self.path.lanes // 2
        if apart:
            orders = [[i * groups // (2 * half) for i in range(j, 2 * half, 2)] for j in (0, 1)]
        else:
            orders = [[i * groups // half for i in range(half)]]
        wide = self.vec(self.i64, half)
        extend = self.b.sext if signed else self.b.zext
        return [extend(self.shuffle(values, order), wide) for order in orders]

    def finish(self) -> Module:
        self.b.ret_void()
        return self.module


def emit_prepare(path: Path, bits: int) -> Module:
    """IR of `prepare(parameters)`: permutes the activations and sums them over lanes.

    Reads SOURCE int8 [TOKENS, CHUNKS * elements of a chunk], zero-padded. Writes X in the same
    shape, phase by phase, and CORRECTION int32 [TOKENS, CORRECTION_STRIDE]: FACTOR * (sum of a
    lane's activations), summed over CHUNKS_PER_CORRECTION chunks.
    """
    e = Emitter(path, "prepare")
    b = e.b
    phases = 8 // bits
    bytes_ = e.vec(e.i8, path.width)
    lanes = e.vec(e.i32, path.lanes)
    source, x, correction = (e.parameter(p) for p in (Param.SOURCE, Param.X, Param.CORRECTION))
    chunks, tokens = e.parameter(Param.CHUNKS), e.parameter(Param.TOKENS)
    per_entry = e.parameter(Param.CHUNKS_PER_CORRECTION)
    stride = e.parameter(Param.CORRECTION_STRIDE)
    factor = b.trunc(e.parameter(Param.FACTOR), e.i32)
    factors = e.shuffle(
        b.insert_element(e.zero(lanes), factor, e.const(0, e.i32)), [0] * path.lanes
    )
    ones = e.const(1, bytes_)
    size = b.mul(b.mul(tokens, stride), e.const(4))
    blank = [correction, e.const(0, e.i8), size, e.const(0, e.i1)]
    e.intrinsic("llvm.memset.p0.i64", e.ir.VoidType(), blank)
    with e.loop(e.const(0), tokens) as token, e.loop(e.const(0), chunks) as chunk:
        offset = b.mul(b.add(b.mul(token, chunks), chunk), e.const(phases * path.width))
        block = e.load(e.at(source, offset), e.vec(e.i8, phases * path.width))
        parts = [e.shuffle(block, range(f, phases * path.width, phases)) for f in range(phases)]
        for f, part in enumerate(parts):
            e.store(part, e.at(x, b.add(offset, e.const(f * path.width))))
        # A code of 1 is a legal code of every width, so the kernels' own bounds hold.
        sums = b.mul(e.dot(e.zero(lanes), [ones] * phases, parts, bits), factors)
        entry = b.add(b.mul(token, stride), b.mul(b.sdiv(chunk, per_entry), e.const(path.lanes)))
        place = e.at(correction, entry, e.i32)
        e.store(b.add(e.load(place, lanes), sums), place)
    return e.finish()


class _Kernel(Emitter):
    """`kernel(parameters)` under construction, with what all rows share."""

    def __init__(self, path: Path, spec: KernelSpec, prefetch: int) -> None:
        super().__init__(path, "kernel")
        self.spec, self.prefetch = spec, prefetch
        self.apart = spec.apart(path.lanes)
        self.codes_in_byte = 8 // spec.bits
        lanes = path.lanes
        self.chunk, self.lanes = self.vec(self.i8, path.width), self.vec(self.i32, lanes)
        self.quads = self.vec(self.i64, lanes // 2)
        self.p = {which: self.parameter(which) for which in Param if which is not Param.NEXT_ROW}
        self.counter = self.at(self.parameters, self.const(int(Param.NEXT_ROW)), self.i64)
        self.has_tail = self.b.icmp_signed(">", self.p[Param.TAIL_BYTES], self.const(0))
        first = self.b.insert_element(
            self.zero(self.quads), self.p[Param.ZERO], self.const(0, self.i32)
        )
        self.one_zero = self.shuffle(first, [0] * (lanes // 2))

    def spread_words(self, together: Value, groups: int) -> list[Value]:
        """`spread` of two or four words that are one integer: in every 128 bits all of them, so
        that one shuffle within these is enough."""
        b, half = self.b, self.path.lanes // 2
        wide = together if groups == 4 else b.zext(together, self.i64)
        first = b.insert_element(self.zero(self.quads), wide, self.const(0, self.i32))
        words = b.bitcast(self.shuffle(first, [0] * half), self.vec(self.i16, 4 * half))
        order = [
            4 * i + i * groups // half if j == 0 else 4 * half
            for i in range(half)
            for j in range(4)
        ]
        return [b.bitcast(self.shuffle(words, order, self.zero(words.type)), self.quads)]

    def per_group(
        self, base: Value, element: Type, chunk: Value, partial: bool, signed: bool
    ) -> list[Value]:
        """Values of a row's groups in a chunk, on the lanes that `split` gives."""
        b, p, count = self.b, self.p, self.spec.groups_per_chunk
        type_ = self.vec(element, count)
        if self.spec.layout is Layout.INDEXED:
            values = self.zero(type_)
            for u in range(count):
                unit = b.add(b.mul(chunk, self.const(count)), self.const(u))
                entry = self.load(self.at(p[Param.INDEX], unit, self.i32), self.i32)
                group = b.sext(entry, self.i64)
                value = self.load(self.at(base, group, element), element)
                values = b.insert_element(values, value, self.const(u, self.i32))
            return self.spread(values, signed, self.apart)
        first = b.mul(chunk, self.const(count))
        place = self.at(base, first, element)
        if partial:
            left = b.sub(p[Param.GROUPS], first)
            return self.spread(self.load_first(place, type_, left), signed, self.apart)
        if not (signed or self.apart) and element.width == 16 and count in (2, 4):
            return self.spread_words(self.load(place, self.ir.IntType(16 * count)), count)
        return self.spread(self.load(place, type_), signed, self.apart)


class _Row:
    """One row and the tokens from `first_token` on."""

    def __init__(self, kernel: _Kernel, row: Value, first_token: Value) -> None:
        k = self.k = kernel
        b, p, self.tokens = k.b, k.p, k.spec.tokens
        self.row, self.first_token = row, first_token
        self.codes = k.at(p[Param.CODES], b.mul(row, p[Param.ROW_BYTES]))
        first_group = b.mul(row, p[Param.GROUPS])
        self.scales = k.at(p[Param.SCALES], first_group, k.i16)
        point_type = k.i32 if k.spec.points is Points.OFFSETS else k.i8
        self.points = k.at(p[Param.ZEROS], first_group, point_type)
        self.xs: list[Value] = []
        self.corrections: list[Value] = []
        self.steps: list[Value] = []
        of_token = b.mul(p[Param.CHUNKS], k.const(k.spec.step_vectors))
        for t in range(self.tokens):
            token = b.add(first_token, k.const(t))
            self.xs.append(k.at(p[Param.X], b.mul(token, p[Param.X_STRIDE])))
            self.corrections.append(
                k.at(p[Param.CORRECTION], b.mul(token, p[Param.CORRECTION_STRIDE]), k.i32)
            )
            self.steps.append(k.at(p[Param.STEPS], b.mul(token, of_token), k.quads))
        self.totals = [k.variable(k.zero(k.quads)) for _ in range(self.tokens)]

    def correction(self, t: int, entry: Value) -> Value:
        k = self.k
        place = k.b.mul(entry, k.const(k.path.lanes))
        return k.load(k.at(self.corrections[t], place, k.i32), k.lanes)

    def start(self, t: int, entry: Value) -> Value:
        k = self.k
        return self.correction(t, entry) if k.spec.points is Points.ONE else k.zero(k.lanes)

    def codes_of(self, chunk: Value, partial: bool) -> list[Value]:
        k, bits = self.k, self.k.spec.bits
        place = k.at(self.codes, k.b.mul(chunk, k.const(k.path.width)))
        if partial:
            return k.phases(k.load_first(place, k.chunk, k.p[Param.TAIL_BYTES]), bits)
        if k.prefetch:
            arguments = [k.at(place, k.const(k.prefetch))]
            arguments += [k.const(v, k.i32) for v in (0, 3, 1)]
            k.intrinsic("llvm.prefetch.p0", k.ir.VoidType(), arguments)
        return k.phases(k.load(place, k.chunk), bits)

    def accumulate(self, t: int, lanes: Value, chunk: Value, values: Sequence[Value]) -> Value:
        k, width = self.k, self.k.path.width
        offset = k.b.mul(chunk, k.const(k.codes_in_byte * width))
        parts = [
            k.load(k.at(self.xs[t], k.b.add(offset, k.const(f * width))), k.chunk)
            for f in range(k.codes_in_byte)
        ]
        return k.dot(lanes, values, parts, k.spec.bits)

    def steps_of(self, t: int, chunk: Value) -> list[Value]:
        """The steps of a chunk's blocks, on the lanes that `split` gives; none: all are 1."""
        k, b = self.k, self.k.b
        count = k.spec.step_vectors
        first = b.mul(chunk, k.const(count))
        return [
            k.load(k.at(self.steps[t], b.add(first, k.const(j)), k.quads), k.quads)
            for j in range(count)
        ]

    def scaled(
        self, sums: Sequence[Value], factors: Sequence[Value], steps: Sequence[Value]
    ) -> list[Value]:
        """Sums of codes of a chunk times the scale of their groups and the step of their block."""
        k, b = self.k, self.k.b
        if not steps:
            return [b.mul(x, factor) for x, factor in zip(sums, factors, strict=True)]
        if not k.spec.shifted:
            return [
                b.mul(k.extend_low(k.words_product(x, factor)), k.extend_low(step))
                for x, factor, step in zip(sums, factors, steps, strict=True)
            ]
        pieces: list[Value] = []
        for x, factor, step, shift in zip(sums, factors, steps[::2], steps[1::2], strict=True):
            longer = k.extend_low(k.words_product(factor, step))
            pieces.append(b.shl(b.mul(x, longer), shift))
        return pieces

    def offset_by(
        self, x_sums: Sequence[Value], offsets: Sequence[Value], steps: Sequence[Value]
    ) -> list[Value]:
        """Sums of a chunk's activations times offsets of 32 bits: with their step, 12 and 18 bits,
        they fit 32 bits themselves."""
        k, b = self.k, self.k.b
        if steps and k.spec.shifted:
            stretched = [
                b.shl(k.extend_low(k.words_product(x, step)), shift)
                for x, step, shift in zip(x_sums, steps[::2], steps[1::2], strict=True)
            ]
        elif steps:
            stretched = [
                b.mul(x, k.extend_low(step)) for x, step in zip(x_sums, steps, strict=True)
            ]
        else:
            stretched = list(x_sums)
        return [
            b.mul(k.extend_low(x), offset) for x, offset in zip(stretched, offsets, strict=True)
        ]

    def points_of(self, entry: Value, partial: bool) -> tuple[list[Value], list[Value]]:
        """Zero points and offsets of the groups of a chunk, or of a group."""
        k = self.k
        match k.spec.points:
            case Points.GROUPS:
                return k.per_group(self.points, k.i8, entry, partial, False), []
            case Points.OFFSETS:
                offsets = k.per_group(self.points, k.i32, entry, partial, True)
                return [k.one_zero] * len(offsets), offsets
            case Points.ONE:
                return [], []

    def around(
        self, t: int, lanes: Value, zeros: Sequence[Value], entry: Value
    ) -> tuple[list[Value], list[Value]]:
        """The sums less zero * sum of x, and the sums of x where zeros are given."""
        k, b = self.k, self.k.b
        pairs = k.split(lanes, k.apart)
        if not zeros:
            return pairs, []
        x_sums = k.split(self.correction(t, entry), k.apart)
        # The activations of a chunk sum to 16 bits, those of a group may not.
        times = k.words_product if k.spec.steps else b.mul
        return [
            k.extend_low(b.sub(pair, times(x_sum, zero)))
            for pair, zero, x_sum in zip(pairs, zeros, x_sums, strict=True)
        ], x_sums

    def scale(self, sums: Sequence[Value], entry: Value, partial: bool) -> None:
        """Adds scale * (sums - zero * sum of x) of chunk or group `entry` to the totals.

        With offsets less offset * sum of x; with blocks each at its block's place, and `entry` is a
        chunk.
        """
        k, b = self.k, self.k.b
        # Products of words take them without their sign.
        signed = not k.spec.steps or k.spec.shifted
        factors = k.per_group(self.scales, k.i16, entry, partial, signed)
        zeros, offsets = self.points_of(entry, partial)
        for t, lanes in enumerate(sums):
            pairs, x_sums = self.around(t, lanes, zeros, entry)
            total = b.load(self.totals[t], typ=k.quads)
            steps = self.steps_of(t, entry)
            if offsets:
                for piece in self.offset_by(x_sums, offsets, steps):
                    total = b.sub(total, piece)
            for piece in self.scaled(pairs, factors, steps):
                total = b.add(total, piece)
            b.store(total, self.totals[t])

    def coarse_blocks(self, group: Value, first: Value, stop: Value, last: bool) -> None:
        """`coarse_group` of activations with an exponent a block: each chunk's sums are times
        their steps before they are added, and the scale follows the group."""
        k, b = self.k, self.k.b
        factors = k.per_group(self.scales, k.i16, group, False, True)
        zeros, offsets = self.points_of(group, False)
        kinds = 1 + bool(offsets)
        slots = [
            [[k.variable(k.zero(k.quads)) for _ in factors] for _ in range(kinds)]
            for _ in range(self.tokens)
        ]

        def add(chunk: Value, partial: bool) -> None:
            values = self.codes_of(chunk, partial)
            for t in range(self.tokens):
                lanes = self.accumulate(t, self.start(t, chunk), chunk, values)
                steps = self.steps_of(t, chunk)
                for slot, sums in zip(slots[t], self.around(t, lanes, zeros, chunk), strict=False):
                    for place, sum_, step in zip(slot, sums, steps, strict=True):
                        piece = b.mul(sum_, k.extend_low(step))
                        b.store(b.add(b.load(place, typ=k.quads), piece), place)

        with k.loop(first, stop) as chunk:
            add(chunk, False)
        if last:
            with b.if_then(k.has_tail):
                add(stop, True)
        for t in range(self.tokens):
            total = b.load(self.totals[t], typ=k.quads)
            for j, factor in enumerate(factors):
                total = b.add(total, b.mul(b.load(slots[t][0][j], typ=k.quads), factor))
            for j, offset in enumerate(offsets):
                total = b.sub(total, b.mul(b.load(slots[t][1][j], typ=k.quads), offset))
            b.store(total, self.totals[t])

    def fine_chunk(self, chunk: Value, partial: bool) -> None:
        values = self.codes_of(chunk, partial)
        sums = [self.accumulate(t, self.start(t, chunk), chunk, values) for t in range(self.tokens)]
        self.scale(sums, chunk, partial)

    def coarse_group(self, group: Value, first: Value, stop: Value, last: bool) -> None:
        k, b = self.k, self.k.b
        if k.spec.steps:
            self.coarse_blocks(group, first, stop, last)
            return
        slots = [k.variable(self.start(t, group)) for t in range(self.tokens)]

        def add(chunk: Value, partial: bool) -> None:
            values = self.codes_of(chunk, partial)
            for t, slot in enumerate(slots):
                b.store(self.accumulate(t, b.load(slot, typ=k.lanes), chunk, values), slot)

        with k.loop(first, stop) as chunk:
            add(chunk, False)
        if last:
            with b.if_then(k.has_tail):
                add(stop, True)
        self.scale([b.load(slot, typ=k.lanes) for slot in slots], group, False)

    def emit(self) -> None:
        """The whole row."""
        k, b, p = self.k, self.k.b, self.k.p
        full = p[Param.FULL_CHUNKS]
        if k.spec.layout is Layout.COARSE:
            per = p[Param.CHUNKS_PER_GROUP]
            whole = b.sdiv(full, per)
            with k.loop(k.const(0), whole) as group:
                first = b.mul(group, per)
                self.coarse_group(group, first, b.add(first, per), False)
            with b.if_then(b.icmp_signed("<", whole, p[Param.GROUPS])):
                self.coarse_group(whole, b.mul(whole, per), full, True)
        else:
            whole = k.const(0)
            if k.spec.steps:
                # LLVM takes two chunks at a time by itself where there are no blocks.
                whole = b.and_(full, k.const(-2))
                with k.loop(k.const(0), b.ashr(full, k.const(1))) as pair:
                    first = b.shl(pair, k.const(1))
                    self.fine_chunk(first, False)
                    self.fine_chunk(b.add(first, k.const(1)), False)
            with k.loop(whole, full) as chunk:
                self.fine_chunk(chunk, False)
            with b.if_then(k.has_tail):
                self.fine_chunk(full, True)
        sum_of_lanes = f"llvm.vector.reduce.add.v{k.path.lanes // 2}i64"
        for t, slot in enumerate(self.totals):
            total = k.intrinsic(sum_of_lanes, k.i64, [b.load(slot, typ=k.quads)])
            token = b.add(self.first_token, k.const(t))
            place = b.add(b.mul(token, p[Param.ROWS]), self.row)
            b.store(total, k.at(p[Param.Y], place, k.i64))


def emit_kernel(path: Path, spec: KernelSpec, prefetch: int) -> Module:
    """IR of `kernel(parameters)`: Y[token, row] for the rows it takes from the shared counter.

    Threads that run it with one parameter block take ROW_BLOCK rows at a time (NEXT_ROW is an
    atomic counter) and all TOKEN_BLOCKS * `spec.tokens` tokens for them, so a block of rows is
    read from memory once.
    """
    k = _Kernel(path, spec, prefetch)
    b, p = k.b, k.p
    take, work, done = (b.append_basic_block(name) for name in ("take", "work", "finished"))
    b.branch(take)
    b.position_at_end(take)
    first_row = b.atomic_rmw("add", k.counter, p[Param.ROW_BLOCK], "monotonic")
    b.cbranch(b.icmp_signed("<", first_row, p[Param.ROWS]), work, done)
    b.position_at_end(work)
    stop_row = k.minimum(b.add(first_row, p[Param.ROW_BLOCK]), p[Param.ROWS])
    with k.loop(k.const(0), p[Param.TOKEN_BLOCKS]) as block:
        first_token = b.mul(block, k.const(spec.tokens))
        with k.loop(first_row, stop_row) as row:
            _Row(k, row, first_token).emit()
    b.branch(take)
    b.position_at_end(done)
    return k.finish()


def compile_module(path: Path, module: Module) -> tuple[Callable[[int], None], object]:
    """Compiles a module of one function `void f(ptr)` to a callable that releases the GIL.

    Returns:
        The callable, taking the address of a parameter block, and the execution engine, which
        must outlive it.
    """
    import ctypes

    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        opt=2, jit=True, cpu=path.cpu, features=path.features
    )
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # The vectors are explicit; looking for more only costs compile time.
    options.loop_vectorization = False
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    address = engine.get_function_address(module.name)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), engine
