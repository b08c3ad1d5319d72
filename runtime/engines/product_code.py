"""LLVM IR of the products of a matrix with the activations of some tokens.

Terms, layouts and the proof that nothing overflows are those of `kernel_code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from intaglio.runtime.engines.kernel_code import Emitter, KernelSpec, Layout, Param, Path, Points
from intaglio.runtime.engines.llvm_ir import Module, Type, Value


class Prefetch(NamedTuple):
    """How codes are fetched before they are wanted.

    Attributes:
        ahead: bytes.
        nearness: 3: to the first-level cache, 2: to the second-level one.
    """

    ahead: int
    nearness: int


class _Kernel(Emitter):
    """`kernel(parameters)` under construction, with what all rows share."""

    def __init__(self, path: Path, spec: KernelSpec, prefetch: Prefetch) -> None:
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

    def in_every_part(self, place: Value, words: int) -> Value:
        """Two, four or eight words that lie at a place, in every 128 bits from their start on, so
        that one shuffle within these brings each where it is wanted."""
        b, half = self.b, self.path.lanes // 2
        if words == 8:
            two = self.load(place, self.vec(self.i64, 2))
            quads = self.shuffle(two, [i % 2 for i in range(half)])
        else:
            one = b.zext(self.load(place, self.ir.IntType(16 * words)), self.i64)
            first = b.insert_element(self.zero(self.quads), one, self.const(0, self.i32))
            quads = self.shuffle(first, [0] * half)
        return b.bitcast(quads, self.words)

    def spread_words(self, place: Value, groups: int) -> list[Value]:
        """`spread` of two or four words without their sign."""
        half = self.path.lanes // 2
        words = self.in_every_part(place, groups)
        order = [
            4 * i + i * groups // half if j == 0 else 4 * half
            for i in range(half)
            for j in range(4)
        ]
        return [self.b.bitcast(self.shuffle(words, order, self.zero(words.type)), self.quads)]

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
            return self.spread_words(place, count)
        return self.spread(self.load(place, type_), signed, self.apart)

    def of_pair(self, base: Value, element: Type, entry: Value, partial: bool) -> Value:
        """Values of a row's groups in the pair of chunks that begins with `entry` (`COARSE`: of
        group `entry`), on the words that `packed` gives."""
        b, lanes, count = self.b, self.path.lanes, self.spec.groups_per_chunk
        if self.spec.layout is Layout.COARSE:
            one = self.load(self.at(base, entry, element), self.vec(element, 1))
            one = b.zext(one, self.vec(self.i16, 1)) if element.width < 16 else one
            return self.shuffle(one, [0] * (2 * lanes))
        first = b.mul(entry, self.const(count))
        place, groups = self.at(base, first, element), 2 * count
        order = [
            chunk * count + (4 * part + i) * count // lanes
            for part in range(lanes // 4)
            for chunk in range(2)
            for i in range(4)
        ]
        if element.width == 16 and groups <= 8 and not partial:
            words = self.in_every_part(place, groups)
            return self.shuffle(words, [8 * (i // 8) + group for i, group in enumerate(order)])
        type_ = self.vec(element, groups)
        if partial:
            values = self.load_first(place, type_, b.sub(self.p[Param.GROUPS], first))
        else:
            values = self.load(place, type_)
        if element.width < 16:
            values = b.zext(values, self.vec(self.i16, groups))
        return self.shuffle(values, order)


class _Tokens:
    """The activations of the tokens from `first` on."""

    def __init__(self, kernel: _Kernel, first: Value) -> None:
        k = self.k = kernel
        b, p = k.b, k.p
        self.first = first
        self.xs: list[Value] = []
        self.corrections: list[Value] = []
        self.steps: list[Value] = []
        of_token = b.mul(p[Param.CHUNKS], k.const(k.spec.step_vectors))
        if k.spec.paired:
            of_token = b.ashr(of_token, k.const(1))
        for t in range(k.spec.tokens):
            token = b.add(first, k.const(t))
            self.xs.append(k.at(p[Param.X], b.mul(token, p[Param.X_STRIDE])))
            self.corrections.append(
                k.at(p[Param.CORRECTION], b.mul(token, p[Param.CORRECTION_STRIDE]), k.i32)
            )
            self.steps.append(k.at(p[Param.STEPS], b.mul(token, of_token), k.quads))

    def correction(self, t: int, entry: Value) -> Value:
        k = self.k
        place = k.b.mul(entry, k.const(k.path.lanes))
        return k.load(k.at(self.corrections[t], place, k.i32), k.lanes)

    def start(self, t: int, entry: Value) -> Value:
        k = self.k
        return self.correction(t, entry) if k.spec.points is Points.ONE else k.zero(k.lanes)

    def accumulate(self, t: int, lanes: Value, chunk: Value, values: Sequence[Value]) -> Value:
        """`lanes` and a chunk's codes times its activations."""
        k, width = self.k, self.k.path.width
        offset = k.b.mul(chunk, k.const(k.codes_in_byte * width))
        parts = [
            k.load(k.at(self.xs[t], k.b.add(offset, k.const(f * width))), k.chunk)
            for f in range(k.codes_in_byte)
        ]
        return k.dot(lanes, values, parts, k.spec.bits)

    def steps_of(self, t: int, entry: Value) -> list[Value]:
        """The steps of the blocks of a chunk or pair, on the lanes that `split` gives, or of the
        words' products; none: all are 1."""
        k, b = self.k, self.k.b
        count = k.spec.step_vectors
        first = b.mul(entry, k.const(count))
        return [
            k.load(k.at(self.steps[t], b.add(first, k.const(j)), k.quads), k.quads)
            for j in range(count)
        ]


class _Row:
    """A row beside some tokens."""

    def __init__(self, tokens: _Tokens, row: Value) -> None:
        k = self.k = tokens.k
        b, p = k.b, k.p
        self.tokens, self.row = tokens, row
        self.codes = k.at(p[Param.CODES], b.mul(row, p[Param.ROW_BYTES]))
        first_group = b.mul(row, p[Param.GROUPS])
        self.scales = k.at(p[Param.SCALES], first_group, k.i16)
        point_type = k.i32 if k.spec.points is Points.OFFSETS else k.i8
        self.points = k.at(p[Param.ZEROS], first_group, point_type)
        self.totals = [k.variable(k.zero(k.quads)) for _ in range(k.spec.tokens)]

    def add(self, t: int, piece: Value) -> None:
        """Adds a piece to a token's total."""
        b, k = self.k.b, self.k
        b.store(b.add(b.load(self.totals[t], typ=k.quads), piece), self.totals[t])

    def take_off(self, t: int, piece: Value) -> None:
        """Takes a piece off a token's total."""
        self.add(t, self.k.b.sub(self.k.zero(self.k.quads), piece))

    def codes_of(self, chunk: Value, count: Value | None = None) -> list[Value]:
        """The codes of a chunk, by phase; of its first so many bytes alone."""
        k, bits = self.k, self.k.spec.bits
        place = k.at(self.codes, k.b.mul(chunk, k.const(k.path.width)))
        if count is not None:
            return k.phases(k.load_first(place, k.chunk, count), bits)
        ahead, nearness = k.prefetch
        arguments = [k.at(place, k.const(ahead))]
        arguments += [k.const(v, k.i32) for v in (0, nearness, 1)]
        k.intrinsic("llvm.prefetch.p0", k.ir.VoidType(), arguments)
        return k.phases(k.load(place, k.chunk), bits)

    def codes_of_chunk(self, chunk: Value, partial: bool) -> list[Value]:
        """The codes of a chunk; partial: of the last one."""
        return self.codes_of(chunk, self.k.p[Param.TAIL_BYTES] if partial else None)

    def codes_of_pair(self, first: Value, partial: bool) -> list[list[Value]]:
        """The codes of a pair of chunks.

        A partial one may lack its second chunk. Its activations are zeros then, so any codes do:
        those of the first one.
        """
        k, b = self.k, self.k.b
        if not partial:
            return [self.codes_of(first), self.codes_of(b.add(first, k.const(1)))]
        left, width = k.p[Param.TAIL_BYTES], k.const(k.path.width)
        count, rest = k.minimum(left, width), b.sub(left, width)
        there = b.icmp_signed(">", rest, k.const(0))
        second = b.select(there, b.add(first, k.const(1)), first)
        return [
            self.codes_of(first, count),
            self.codes_of(second, b.select(there, rest, count)),
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
        x_sums = k.split(self.tokens.correction(t, entry), k.apart)
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
        k = self.k
        # Products of words take them without their sign.
        signed = not k.spec.steps or k.spec.shifted
        factors = k.per_group(self.scales, k.i16, entry, partial, signed)
        zeros, offsets = self.points_of(entry, partial)
        for t, lanes in enumerate(sums):
            pairs, x_sums = self.around(t, lanes, zeros, entry)
            steps = self.tokens.steps_of(t, entry)
            if offsets:
                for piece in self.offset_by(x_sums, offsets, steps):
                    self.take_off(t, piece)
            for piece in self.scaled(pairs, factors, steps):
                self.add(t, piece)

    def add_chunk(self, chunk: Value, partial: bool) -> None:
        """Adds a chunk that has groups of its own."""
        values, tokens = self.codes_of_chunk(chunk, partial), self.tokens
        sums = [
            tokens.accumulate(t, tokens.start(t, chunk), chunk, values)
            for t in range(self.k.spec.tokens)
        ]
        self.scale(sums, chunk, partial)

    def add_pair(self, first: Value, entry: Value, partial: bool) -> None:
        """Adds the pair of chunks from `first` on, as words; `entry` is `first`, or their group."""
        k, b, tokens = self.k, self.k.b, self.tokens
        chunks = first, b.add(first, k.const(1))
        values = self.codes_of_pair(first, partial)
        factors = k.of_pair(self.scales, k.i16, entry, partial)
        zeros = None
        if k.spec.points is Points.GROUPS:
            zeros = k.of_pair(self.points, k.i8, entry, partial)
        for t in range(k.spec.tokens):
            words = k.packed(
                *(
                    tokens.accumulate(t, tokens.start(t, chunk), chunk, codes)
                    for chunk, codes in zip(chunks, values, strict=True)
                )
            )
            if zeros is not None:
                x_sums = k.packed(*(tokens.correction(t, chunk) for chunk in chunks))
                words = b.sub(words, b.mul(x_sums, zeros))
            sums = k.sums_of_words(words, factors)
            quads = b.bitcast(sums, k.quads)
            upper = b.lshr(quads, k.const(32, k.quads))
            steps = tokens.steps_of(t, b.ashr(first, k.const(1)))
            if len(steps) < 2:
                quads = b.bitcast(b.add(sums, b.bitcast(upper, k.lanes)), k.quads)
            for sum_, step in zip((quads, upper), steps or [None], strict=False):
                piece = k.extend_low(sum_)
                self.add(t, piece if step is None else b.mul(piece, k.extend_low(step)))

    def finish(self) -> None:
        """Writes the totals."""
        k, b, p = self.k, self.k.b, self.k.p
        sum_of_lanes = f"llvm.vector.reduce.add.v{k.path.lanes // 2}i64"
        for t, slot in enumerate(self.totals):
            total = k.intrinsic(sum_of_lanes, k.i64, [b.load(slot, typ=k.quads)])
            token = b.add(self.tokens.first, k.const(t))
            place = b.add(b.mul(token, p[Param.ROWS]), self.row)
            b.store(total, k.at(p[Param.Y], place, k.i64))


class _Group:
    """A row's group of several chunks."""

    def __init__(self, row: _Row, group: Value) -> None:
        self.row, self.group = row, group
        k, tokens = row.k, row.tokens
        self.slots = [k.variable(tokens.start(t, group)) for t in range(k.spec.tokens)]

    def add(self, chunk: Value, partial: bool) -> None:
        """Adds a chunk to the group's sums."""
        k, b, row = self.row.k, self.row.k.b, self.row
        values = row.codes_of_chunk(chunk, partial)
        for t, slot in enumerate(self.slots):
            lanes = b.load(slot, typ=k.lanes)
            b.store(row.tokens.accumulate(t, lanes, chunk, values), slot)

    def finish(self) -> None:
        """Adds the group to the row."""
        k = self.row.k
        sums = [k.b.load(slot, typ=k.lanes) for slot in self.slots]
        self.row.scale(sums, self.group, False)


class _BlockGroup(_Group):
    """`_Group` of activations with an exponent a block: each chunk's sums are times their steps
    before they are added, and the scale follows the group."""

    def __init__(self, row: _Row, group: Value) -> None:
        self.row, self.group = row, group
        k = row.k
        self.factors = k.per_group(row.scales, k.i16, group, False, True)
        self.zeros, self.offsets = row.points_of(group, False)
        kinds = 1 + bool(self.offsets)
        self.of_token = [
            [[k.variable(k.zero(k.quads)) for _ in self.factors] for _ in range(kinds)]
            for _ in range(k.spec.tokens)
        ]

    def add(self, chunk: Value, partial: bool) -> None:
        """Adds a chunk to the group's sums."""
        k, b, row, tokens = self.row.k, self.row.k.b, self.row, self.row.tokens
        values = row.codes_of_chunk(chunk, partial)
        for t, slots in enumerate(self.of_token):
            lanes = tokens.accumulate(t, tokens.start(t, chunk), chunk, values)
            steps = tokens.steps_of(t, chunk)
            for slot, sums in zip(slots, row.around(t, lanes, self.zeros, chunk), strict=False):
                for place, sum_, step in zip(slot, sums, steps, strict=True):
                    piece = b.mul(sum_, k.extend_low(step))
                    b.store(b.add(b.load(place, typ=k.quads), piece), place)

    def finish(self) -> None:
        """Adds the group to the row."""
        k, b = self.row.k, self.row.k.b
        for t, slots in enumerate(self.of_token):
            for j, factor in enumerate(self.factors):
                self.row.add(t, b.mul(b.load(slots[0][j], typ=k.quads), factor))
            for j, offset in enumerate(self.offsets):
                self.row.take_off(t, b.mul(b.load(slots[1][j], typ=k.quads), offset))


class _Walk:
    """A row from its first chunk to its last one."""

    def __init__(self, row: _Row) -> None:
        self.k, self.row = row.k, row

    def group(self, group: Value, first: Value, stop: Value, last: bool) -> None:
        """Adds the chunks of a group."""
        k = self.k
        sums = (_BlockGroup if k.spec.steps else _Group)(self.row, group)
        with k.loop(first, stop) as chunk:
            sums.add(chunk, False)
        if last:
            with k.b.if_then(k.has_tail):
                sums.add(stop, True)
        sums.finish()

    def pairs(self, group: Value | None, first: Value, stop: Value, last: bool) -> None:
        """Adds the pairs of chunks of a group, or of a row whose chunks have their own."""
        k, b, one = self.k, self.k.b, self.k.const(1)
        with k.loop(b.ashr(first, one), b.ashr(stop, one)) as pair:
            chunk = b.shl(pair, one)
            self.row.add_pair(chunk, chunk if group is None else group, False)
        if last:
            with b.if_then(k.has_tail):
                self.row.add_pair(stop, stop if group is None else group, True)

    def chunks(self, stop: Value) -> None:
        """Adds chunks that have groups of their own."""
        k, b = self.k, self.k.b
        whole = k.const(0)
        if k.spec.steps:
            # LLVM takes two chunks at a time by itself where there are no blocks.
            whole = b.and_(stop, k.const(-2))
            with k.loop(k.const(0), b.ashr(stop, k.const(1))) as pair:
                first = b.shl(pair, k.const(1))
                self.row.add_chunk(first, False)
                self.row.add_chunk(b.add(first, k.const(1)), False)
        with k.loop(whole, stop) as chunk:
            self.row.add_chunk(chunk, False)
        with b.if_then(k.has_tail):
            self.row.add_chunk(stop, True)

    def emit(self) -> None:
        """The whole row."""
        k, b, p = self.k, self.k.b, self.k.p
        full = p[Param.FULL_CHUNKS]
        if k.spec.layout is Layout.COARSE:
            add = self.pairs if k.spec.paired else self.group
            per = p[Param.CHUNKS_PER_GROUP]
            whole = b.sdiv(full, per)
            with k.loop(k.const(0), whole) as group:
                first = b.mul(group, per)
                add(group, first, b.add(first, per), False)
            with b.if_then(b.icmp_signed("<", whole, p[Param.GROUPS])):
                add(whole, b.mul(whole, per), full, True)
        elif k.spec.paired:
            self.pairs(None, k.const(0), full, True)
        else:
            self.chunks(full)
        self.row.finish()


def emit_kernel(path: Path, spec: KernelSpec, prefetch: Prefetch) -> Module:
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
        tokens = _Tokens(k, b.mul(block, k.const(spec.tokens)))
        with k.loop(first_row, stop_row) as row:
            _Walk(_Row(tokens, row)).emit()
    b.branch(take)
    b.position_at_end(done)
    return k.finish()
