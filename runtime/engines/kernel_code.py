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

Chunks in pairs (`paired`), where a lane less its zero point has 14 bits beside the sign: the lanes
of two chunks become words of one vector, and one instruction multiplies each with its group's scale
and adds two of them. Two such sums are below 4 * 2^14 * 2^15 = 2^31, so they are added in 32 bits
too, before they become 64 bits or meet the step of their block.
"""

from __future__ import annotations

import threading
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
        paired: chunks go in pairs, their lanes as words; steps are of a pair then: 1 for four
            lanes of a chunk, 2 for two each.
    """

    bits: int
    layout: Layout
    groups_per_chunk: int
    points: Points
    tokens: int
    steps: int = 0
    shifted: bool = False
    paired: bool = False

    @property
    def step_vectors(self) -> int:
        """Vectors of what steps are, for a chunk or pair."""
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

    @property
    def words(self) -> Type:
        """A vector of 16-bit words."""
        return self.vec(self.i16, self.path.width // 2)

    def words_product(self, a: Value, c: Value) -> Value:
        """Products of int64 lanes whose low 32 bits are a number of 16 bits; of `c` the others are
        0. Those of the result count only in its low 32 bits.

        With `mul` and only these used LLVM would choose the product of 64 bits, three times slower.
        """
        if self.path.dot == "portable":
            above = self.const(48, a.type)
            low = [self.b.ashr(self.b.shl(one, above), above) for one in (a, c)]
            return self.b.mul(*low)
        operands = [self.b.bitcast(one, self.words) for one in (a, c)]
        return self.b.bitcast(self.sums_of_words(*operands), a.type)

    def sums_of_words(self, a: Value, c: Value) -> Value:
        """Int32 lanes: each the sum of its two words' products, which must fit."""
        b, lanes = self.b, self.vec(self.i32, self.path.lanes)
        if self.path.dot != "portable":
            wide = self.path.width == 64
            name = "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd"
            return self.intrinsic(name, lanes, [a, c])
        sixteen = self.const(16, lanes)
        a, c = b.bitcast(a, lanes), b.bitcast(c, lanes)
        low = [b.ashr(b.shl(one, sixteen), sixteen) for one in (a, c)]
        return b.add(b.mul(*low), b.mul(b.ashr(a, sixteen), b.ashr(c, sixteen)))

    def packed(self, first: Value, second: Value) -> Value:
        """Two chunks' int32 lanes, which fit 16 bits, as words: of every 128 bits those of the
        first chunk, then of the second one, as `vpackssdw` puts them."""
        if self.path.dot != "portable":
            wide = self.path.width == 64
            name = "llvm.x86.avx512.packssdw.512" if wide else "llvm.x86.avx2.packssdw"
            return self.intrinsic(name, self.words, [first, second])
        count = self.path.lanes
        words = [self.b.bitcast(one, self.words) for one in (first, second)]
        order = [
            2 * (chunk * count + 4 * part + i)
            for part in range(count // 4)
            for chunk in range(2)
            for i in range(4)
        ]
        return self.shuffle(words[0], order, words[1])

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


_compile_lock = threading.Lock()
_engines: list[object] = []
"""Execution engines, which must outlive what they compiled."""


def compile_module(path: Path, module: Module) -> Callable[[int], None]:
    """Compiles a module of one function `void f(ptr)` to a callable that releases the GIL.

    Returns:
        The callable, taking the address of a parameter block.
    """
    with _compile_lock:
        return _compiled(path, module)


def _compiled(path: Path, module: Module) -> Callable[[int], None]:
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
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
