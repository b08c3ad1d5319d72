"""LLVM IR of the products of a matrix with the activations of many tokens.

Where `product_code` has the elements of a row in the lanes of a vector, here each lane is a token:
a code of the row meets every lane, so that nothing is summed across lanes, a scale is one number,
and a tile of some rows and some vectors of tokens reads each code and each activation once for all
of the tile. Terms are those of `kernel_code`, and more:

- *step*: four elements, what one byte product of a lane sums: of one phase of a lane of
  `kernel_code`, so a step's elements are `phases` apart. Steps follow the elements' order by lanes.
- *segment*: consecutive elements of a row that lie in one group and in one block, all of one length
  (the last one is filled up with activations of 0). Its sums are of 32 bits (`LONGEST`).

What a segment adds to a total is scale * (sum - zero * sum of x), times its block's step. With a
step all products have operands of 32 bits: `product` says that the first one fits 32 bits too;
elsewhere the scale is times 4 - h, and what it gives shifted by e.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from intaglio.runtime.engines.kernel_code import Emitter, Path, Points
from intaglio.runtime.engines.llvm_ir import Module, Value

LONGEST = 8192
"""Elements of a segment: the sum of as many products of a code and an activation, 255 * 128 each,
is below 2^31."""


class BatchParam(IntEnum):
    """Positions in the int64 parameter block that both functions take."""

    CODES = 0
    SCALES = 1
    POINTS = 2
    """Zero points or offsets of groups."""
    GROUP_OF = 3
    """Int32: of each segment its group."""
    ROWS = 4
    ROW_BLOCK = 5
    """Rows that a thread takes at a time, a multiple of the tile's."""
    ROW_BYTES = 6
    GROUPS = 7
    SEGMENTS = 8
    LANES = 9
    """Of a segment."""
    FULL_CHUNKS = 10
    TAIL_BYTES = 11
    CODES_STRIDE = 12
    """Bytes that a row's codes take when each has a byte."""
    FACTOR = 13
    ZERO = 14
    SOURCE = 15
    SOURCE_STRIDE = 16
    X = 17
    """Packed activations: for each vector of tokens and each step four bytes a token."""
    SUMS = 18
    """Int32: for each vector of tokens and each segment FACTOR * (sum of a token's x)."""
    STEPS = 19
    """Int64 of the even tokens, then of the odd ones, for each vector of tokens and each segment;
    where they are apart, 4 - h of these and then e."""
    Y = 20
    FIRST_TOKEN = 21
    TOKENS = 22
    TOKEN_VECTORS = 23
    TOKEN_BLOCKS = 24
    """Blocks of a tile's vectors."""
    BLOCKS_AT_ONCE = 25
    """Of these so many meet each tile of rows before the next one."""
    SCRATCH = 26
    SCRATCH_STRIDE = 27
    """Of a thread."""
    NEXT_SCRATCH = 28
    NEXT_ROW = 29


@dataclass(frozen=True)
class BatchSpec:
    """What a kernel for many tokens is specialised for.

    Attributes:
        bits: width of a code, 2, 4 or 8.
        points: what stands for 0.
        rows: of a tile.
        vectors: of tokens of a tile.
        steps: whether activations have an exponent a block.
        product: whether the product of a segment's sum with a scale fits 32 bits.
        lanes: of a segment.
    """

    bits: int
    points: Points
    rows: int
    vectors: int
    steps: bool
    product: bool
    lanes: int

    @property
    def unroll(self) -> int:
        """Lanes that are taken at once, of which those of a segment are a multiple."""
        return next(n for n in (4, 3, 2, 1) if self.lanes % n == 0)

    @property
    def step_vectors(self) -> int:
        """Vectors of int64 of what steps are, for a vector of tokens and a segment."""
        return (2 if self.product else 4) if self.steps else 0


class _Emitter(Emitter):
    """A function whose parameters are `BatchParam`s."""

    def __init__(self, path: Path, name: str, bits: int) -> None:
        super().__init__(path, name)
        self.bits, self.codes_in_byte = bits, 8 // bits
        self.chunk, self.lanes = self.vec(self.i8, path.width), self.vec(self.i32, path.lanes)
        self.quads = self.vec(self.i64, path.lanes // 2)
        self.step_bytes = self.const(path.width)
        """Bytes of a step of a vector of tokens."""

    def word(self, which: BatchParam) -> Value:
        """A parameter."""
        place = self.at(self.parameters, self.const(int(which)), self.i64)
        return self.b.load(place, typ=self.i64)

    def pointer(self, which: BatchParam) -> Value:
        """A parameter that is an address."""
        return self.b.inttoptr(self.word(which), self.ptr)

    def take(self, which: BatchParam, count: Value) -> Value:
        """The next `count` of what the threads share."""
        counter = self.at(self.parameters, self.const(int(which)), self.i64)
        return self.b.atomic_rmw("add", counter, count, "monotonic")

    def splat(self, value: Value, count: int) -> Value:
        """A number in every lane."""
        first = self.zero(self.vec(value.type, count))
        return self.shuffle(
            self.b.insert_element(first, value, self.const(0, self.i32)), [0] * count
        )

    def joined(self, parts: Sequence[Value]) -> Value:
        """Vectors of one length one after the other; how many is a power of two."""
        while len(parts) > 1:
            size = 2 * parts[0].type.count
            parts = [
                self.shuffle(one, range(size), other)
                for one, other in zip(parts[::2], parts[1::2], strict=True)
            ]
        return parts[0]

    def even(self, lanes: Value) -> Value:
        """The int32 of the even lanes, as int64."""
        return self.extend_low(self.b.bitcast(lanes, self.quads))

    def odd(self, lanes: Value) -> Value:
        """The int32 of the odd lanes, as int64."""
        quads = self.b.bitcast(lanes, self.quads)
        return self.extend_low(self.b.lshr(quads, self.const(32, quads.type)))


def emit_pack(path: Path, bits: int) -> Module:
    """IR of `pack(parameters)`: SOURCE int8 [tokens, SOURCE_STRIDE] to X and SUMS.

    Tokens fill TOKEN_VECTORS vectors, elements all SEGMENTS.
    """
    e = _Emitter(path, "pack", bits)
    b, phases, count = e.b, e.codes_in_byte, path.lanes
    source, stride = e.pointer(BatchParam.SOURCE), e.word(BatchParam.SOURCE_STRIDE)
    x, sums = e.pointer(BatchParam.X), e.pointer(BatchParam.SUMS)
    segments, lanes = e.word(BatchParam.SEGMENTS), e.word(BatchParam.LANES)
    factor = e.splat(b.trunc(e.word(BatchParam.FACTOR), e.i32), count)
    ones = [e.const(1, e.chunk)] * phases
    total = e.variable(e.zero(e.lanes))
    with e.loop(e.const(0), e.word(BatchParam.TOKEN_VECTORS)) as vector:
        first = b.mul(vector, e.const(count))
        tokens = [e.at(source, b.mul(b.add(first, e.const(t)), stride)) for t in range(count)]
        with e.loop(e.const(0), segments) as segment:
            b.store(e.zero(e.lanes), total)
            begin = b.mul(segment, lanes)
            entry = b.add(b.mul(vector, segments), segment)
            with e.loop(begin, b.add(begin, lanes)) as lane:
                words: list[Value] = []
                for f in range(phases):
                    place = b.mul(b.add(b.mul(lane, e.const(phases)), e.const(f)), e.const(4))
                    word = e.zero(e.lanes)
                    for t, token in enumerate(tokens):
                        one = e.load(e.at(token, place), e.i32)
                        word = b.insert_element(word, one, e.const(t, e.i32))
                    words.append(b.bitcast(word, e.chunk))
                joined = e.joined(words)
                # Byte i of element word q of token t lies at q * width + 4 * t + i.
                parts = [
                    e.shuffle(
                        joined,
                        [
                            (f + phases * i) // 4 * path.width + 4 * t + (f + phases * i) % 4
                            for t in range(count)
                            for i in range(4)
                        ],
                    )
                    for f in range(phases)
                ]
                # A code of 1 is a legal code of every width.
                b.store(e.dot(b.load(total, typ=e.lanes), ones, parts, bits), total)
                step = b.mul(b.add(b.mul(vector, b.mul(segments, lanes)), lane), e.const(phases))
                for f, part in enumerate(parts):
                    e.store(part, e.at(x, b.mul(b.add(step, e.const(f)), e.step_bytes)))
            scaled = b.mul(b.load(total, typ=e.lanes), factor)
            e.store(scaled, e.at(sums, b.mul(entry, e.step_bytes)))
    return e.finish()


class _Kernel(_Emitter):
    """`batch(parameters)` under construction."""

    def __init__(self, path: Path, spec: BatchSpec) -> None:
        super().__init__(path, "batch", spec.bits)
        self.spec = spec
        p = BatchParam
        self.codes, self.scales = self.pointer(p.CODES), self.pointer(p.SCALES)
        self.points, self.group_of = self.pointer(p.POINTS), self.pointer(p.GROUP_OF)
        self.rows, self.row_block = self.word(p.ROWS), self.word(p.ROW_BLOCK)
        self.row_bytes, self.groups = self.word(p.ROW_BYTES), self.word(p.GROUPS)
        self.segments, self.segment_lanes = self.word(p.SEGMENTS), self.word(p.LANES)
        self.full_chunks, self.tail_bytes = self.word(p.FULL_CHUNKS), self.word(p.TAIL_BYTES)
        self.codes_stride = self.word(p.CODES_STRIDE)
        self.x, self.sums = self.pointer(p.X), self.pointer(p.SUMS)
        self.steps, self.y = self.pointer(p.STEPS), self.pointer(p.Y)
        self.first_token, self.tokens = self.word(p.FIRST_TOKEN), self.word(p.TOKENS)
        self.token_blocks = self.word(p.TOKEN_BLOCKS)
        self.one_zero = self.splat(self.b.trunc(self.word(p.ZERO), self.i32), path.lanes)
        mine = self.b.mul(self.take(p.NEXT_SCRATCH, self.const(1)), self.word(p.SCRATCH_STRIDE))
        self.totals = self.at(self.pointer(p.SCRATCH), mine)
        """Int64, for each row and vector of the tile those of its even and of its odd tokens."""
        self.unpacked = self.at(self.totals, self.const(totals_bytes(path, spec)))
        """A code a byte, for each row of the tile, in the order of steps."""

    def row_of(self, first: Value, stop: Value, r: Value) -> Value:
        """Row r of a tile; beyond the last one that one again."""
        return self.minimum(self.b.add(first, r), self.b.sub(stop, self.const(1)))

    def unpack(self, first: Value, stop: Value) -> None:
        """Gives the codes of a tile's rows a byte each."""
        b = self.b
        with self.loop(self.const(0), self.const(self.spec.rows)) as r:
            row = self.at(self.codes, b.mul(self.row_of(first, stop, r), self.row_bytes))
            into = self.at(self.unpacked, b.mul(r, self.codes_stride))
            with self.loop(self.const(0), self.full_chunks) as chunk:
                place = self.at(row, b.mul(chunk, self.step_bytes))
                self._spread(self.load(place, self.chunk), into, chunk)
            with b.if_then(b.icmp_signed(">", self.tail_bytes, self.const(0))):
                place = self.at(row, b.mul(self.full_chunks, self.step_bytes))
                tail = self.load_first(place, self.chunk, self.tail_bytes)
                self._spread(tail, into, self.full_chunks)

    def _spread(self, chunk: Value, into: Value, number: Value) -> None:
        """Writes the codes of a chunk in the order of steps."""
        b, phases, count = self.b, self.codes_in_byte, self.path.lanes
        joined = self.joined(
            [b.bitcast(part, self.lanes) for part in self.phases(chunk, self.bits)]
        )
        for j in range(phases):
            steps = range(j * count, (j + 1) * count)
            order = [step % phases * count + step // phases for step in steps]
            whole = self.shuffle(joined, order) if phases > 1 else joined
            place = b.mul(b.add(b.mul(number, self.const(phases)), self.const(j)), self.step_bytes)
            self.store(whole, self.at(into, place))

    def tile(self, block: Value, first: Value, stop: Value) -> None:
        """Products of the rows from `first` on with a block of tokens."""
        b, spec = self.b, self.spec
        totals = [
            [[self.variable(self.zero(self.quads)) for _ in range(2)] for _ in range(spec.vectors)]
            for _ in range(spec.rows)
        ]
        vectors = [
            b.add(b.mul(block, self.const(spec.vectors)), self.const(v))
            for v in range(spec.vectors)
        ]
        rows = [self.row_of(first, stop, self.const(r)) for r in range(spec.rows)]
        with self.loop(self.const(0), self.segments) as segment:
            entries = [b.add(b.mul(vector, self.segments), segment) for vector in vectors]
            sums = self._sums(vectors, segment, entries)
            group = b.sext(self.load(self.at(self.group_of, segment, self.i32), self.i32), self.i64)
            for row, lanes, total in zip(rows, sums, totals, strict=True):
                place = b.add(b.mul(row, self.groups), group)
                self._scale([b.load(one, typ=self.lanes) for one in lanes], entries, place, total)
        self._write(block, rows, totals)

    def _sums(
        self, vectors: Sequence[Value], segment: Value, entries: Sequence[Value]
    ) -> list[list[Value]]:
        """Slots of a segment's sums, by row and vector."""
        b, spec, phases = self.b, self.spec, self.codes_in_byte
        starts = [
            self.load(self.at(self.sums, b.mul(entry, self.step_bytes)), self.lanes)
            if spec.points is Points.ONE
            else self.zero(self.lanes)
            for entry in entries
        ]
        slots = [[self.variable(start) for start in starts] for _ in range(spec.rows)]
        begin = b.mul(segment, self.segment_lanes)
        of_vector = b.mul(self.segments, self.segment_lanes)
        size = self.const(phases * self.path.width)
        xs = [self.at(self.x, b.mul(b.add(b.mul(v, of_vector), begin), size)) for v in vectors]
        codes = self.at(self.unpacked, b.mul(begin, self.const(4 * phases)))
        turns = spec.lanes // spec.unroll
        with self.loop(self.const(0), self.const(turns)) as turn:
            for lane in range(spec.unroll):
                at = b.add(b.mul(turn, self.const(spec.unroll)), self.const(lane))
                first = b.mul(at, size)
                parts = [
                    [
                        self.load(
                            self.at(x, b.add(first, self.const(f * self.path.width))), self.chunk
                        )
                        for f in range(phases)
                    ]
                    for x in xs
                ]
                for r, row in enumerate(slots):
                    of_row = b.add(
                        b.mul(self.const(r), self.codes_stride), b.mul(at, self.const(4 * phases))
                    )
                    words = [
                        self.load(self.at(codes, b.add(of_row, self.const(4 * f))), self.i32)
                        for f in range(phases)
                    ]
                    values = [
                        b.bitcast(self.splat(word, self.path.lanes), self.chunk) for word in words
                    ]
                    for slot, part in zip(row, parts, strict=True):
                        old = b.load(slot, typ=self.lanes)
                        b.store(self.dot(old, values, part, spec.bits), slot)
        return slots

    def _scale(
        self,
        sums: Sequence[Value],
        entries: Sequence[Value],
        place: Value,
        totals: Sequence[Sequence[Value]],
    ) -> None:
        """Adds a segment of a row, whose group is at `place`, to the totals."""
        b, spec, half = self.b, self.spec, self.path.lanes // 2
        scale = self.load(self.at(self.scales, place, self.i16), self.i16)
        scale32 = self.splat(b.sext(scale, self.i32), self.path.lanes)
        scale64 = self.splat(b.sext(scale, self.i64), half)
        zero = offset = None
        if spec.points is Points.GROUPS:
            point = self.load(self.at(self.points, place), self.i8)
            zero = self.splat(b.zext(point, self.i32), self.path.lanes)
        elif spec.points is Points.OFFSETS:
            point = self.load(self.at(self.points, place, self.i32), self.i32)
            zero, offset = self.one_zero, self.splat(b.sext(point, self.i64), half)
        for lanes, entry, total in zip(sums, entries, totals, strict=True):
            pieces: list[Value] = []
            steps = self._steps_of(entry)
            x_sums = None
            if zero is not None:
                x_sums = self.load(self.at(self.sums, b.mul(entry, self.step_bytes)), self.lanes)
                lanes = b.sub(lanes, b.mul(zero, x_sums))
            if spec.steps and spec.product:
                of_scale = b.mul(lanes, scale32)
                pieces = [
                    b.mul(part, self.extend_low(step))
                    for part, step in zip(
                        (self.even(of_scale), self.odd(of_scale)), steps, strict=True
                    )
                ]
            elif spec.steps:
                for part, step, shift in zip(
                    (self.even(lanes), self.odd(lanes)), steps[:2], steps[2:], strict=True
                ):
                    factor = self.extend_low(b.mul(self.extend_low(step), self.extend_low(scale64)))
                    pieces.append(b.shl(b.mul(part, factor), shift))
            else:
                factor = self.extend_low(scale64)
                pieces = [b.mul(part, factor) for part in (self.even(lanes), self.odd(lanes))]
            if offset is not None and x_sums is not None:
                pieces = self._less_offset(pieces, x_sums, offset, steps)
            for slot, piece in zip(total, pieces, strict=True):
                b.store(b.add(b.load(slot, typ=self.quads), piece), slot)

    def _steps_of(self, entry: Value) -> list[Value]:
        """The steps of a segment's block: of the even and of the odd tokens of a vector."""
        b, count, half = self.b, self.spec.step_vectors, self.path.lanes // 2
        first = b.mul(entry, self.const(count * half))
        return [
            self.load(self.at(self.steps, b.add(first, self.const(j * half)), self.i64), self.quads)
            for j in range(count)
        ]

    def _less_offset(
        self, pieces: Sequence[Value], x_sums: Value, offset: Value, steps: Sequence[Value]
    ) -> list[Value]:
        """Pieces of the totals less offset * sum of x, times the step."""
        b = self.b
        found: list[Value] = []
        for j, (piece, x) in enumerate(
            zip(pieces, (self.even(x_sums), self.odd(x_sums)), strict=True)
        ):
            if steps:
                x = b.mul(x, self.extend_low(steps[j]))
            if len(steps) > 2:
                x = b.shl(x, steps[2 + j])
            found.append(b.sub(piece, b.mul(x, offset)))
        return found

    def _write(
        self, block: Value, rows: Sequence[Value], totals: Sequence[Sequence[Sequence[Value]]]
    ) -> None:
        """Writes the totals of a block's tokens."""
        b, spec, count = self.b, self.spec, self.path.lanes
        slots = [slot for row in totals for vector in row for slot in vector]
        for i, slot in enumerate(slots):
            place = self.at(self.totals, self.const(i * (count // 2)), self.i64)
            self.store(b.load(slot, typ=self.quads), place)
        size = self.const(spec.vectors * count)
        first = b.mul(block, size)
        last = self.minimum(size, b.sub(self.tokens, first))
        with self.loop(self.const(0), last) as t:
            vector = b.sdiv(t, self.const(count))
            within = b.sub(t, b.mul(vector, self.const(count)))
            parity = b.and_(within, self.const(1))
            at = b.add(b.mul(vector, self.const(count)), b.mul(parity, self.const(count // 2)))
            at = b.add(at, b.ashr(within, self.const(1)))
            token = b.add(self.first_token, b.add(first, t))
            into = self.at(self.y, b.mul(token, self.rows), self.i64)
            for r, row in enumerate(rows):
                place = b.add(at, self.const(r * spec.vectors * count))
                total = b.load(self.at(self.totals, place, self.i64), typ=self.i64)
                b.store(total, self.at(into, row, self.i64))


def totals_bytes(path: Path, spec: BatchSpec) -> int:
    """Of a tile's totals."""
    return 8 * spec.rows * spec.vectors * path.lanes


def emit_batch(path: Path, spec: BatchSpec) -> Module:
    """IR of `batch(parameters)`: Y[FIRST_TOKEN + token, row] of TOKENS tokens.

    Threads that run it with one parameter block take ROW_BLOCK rows at a time, and all TOKEN_BLOCKS
    * `spec.vectors` vectors of tokens for them; each takes its own scratch.
    """
    k = _Kernel(path, spec)
    b = k.b
    take, work, done = (b.append_basic_block(name) for name in ("take", "work", "finished"))
    b.branch(take)
    b.position_at_end(take)
    first_row = k.take(BatchParam.NEXT_ROW, k.row_block)
    b.cbranch(b.icmp_signed("<", first_row, k.rows), work, done)
    b.position_at_end(work)
    stop_row = k.minimum(b.add(first_row, k.row_block), k.rows)
    tiles = b.sdiv(b.add(b.sub(stop_row, first_row), k.const(spec.rows - 1)), k.const(spec.rows))
    at_once = k.word(BatchParam.BLOCKS_AT_ONCE)
    times = b.sdiv(b.sub(b.add(k.token_blocks, at_once), k.const(1)), at_once)
    with k.loop(k.const(0), times) as turn, k.loop(k.const(0), tiles) as tile:
        first_block = b.mul(turn, at_once)
        stop_block = k.minimum(b.add(first_block, at_once), k.token_blocks)
        first = b.add(first_row, b.mul(tile, k.const(spec.rows)))
        k.unpack(first, stop_row)
        with k.loop(first_block, stop_block) as block:
            k.tile(block, first, stop_row)
    b.branch(take)
    b.position_at_end(done)
    return k.finish()
