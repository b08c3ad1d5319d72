"""LLVM IR of the vector functions of `dialects/semantics.py`.

Most kernels are loops around a formula of `dialects/formulas`, read by `vector_reader.Lanes`. Those
of products with caches are written by hand for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from intaglio.dialects.formulas import blocks, heads, norms, products, quantise, softmax
from intaglio.dialects.formulas.elementwise import ELEMENTWISE, Constants
from intaglio.dialects.formulas.norms import NormValues
from intaglio.dialects.formulas.quantise import FormatValues
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.runtime.engines import llvm_ir
from intaglio.runtime.engines.kernel_code import Path
from intaglio.runtime.engines.vector_reader import (
    Array,
    Cursor,
    Kernel,
    Lanes,
    Value,
    larger,
    product,
    smaller,
    where,
)

# Formulas in loops


def emit_elementwise(k: Kernel, name: str) -> None:
    """A formula of `ELEMENTWISE`."""
    one, r = ELEMENTWISE[name], Lanes(k)
    operands = k.arrays(one.operands)
    (y,) = k.arrays(1)
    (n,) = k.numbers(1)
    c = Constants(*k.numbers(len(Constants._fields)))

    def body(at: Cursor) -> None:
        x = [operand.load(at) for operand in operands]
        y.store(at, one.body(r, c, x[0], x[-1]))

    k.each(n, body)


def emit_requantize(k: Kernel, bias: bool, residual: bool) -> None:
    """`semantics.requantize`."""
    r = Lanes(k)
    y, result, mantissa, exponent, biases, residuals = k.arrays(6)
    step, tokens, groups, n, shift, more = k.numbers(6)
    with k.range(tokens) as token, k.range(groups) as group:
        row = token * groups + group
        scale = ScaleOf(mantissa.load(row * step), exponent.load(row * step))
        y, result, residuals = (a.at(row * n) for a in (y, result, residuals))
        added = [biases.at(group * n)] * bias + [residuals] * residual

        def body(at: Cursor) -> None:
            terms = [term.load(at) for term in added]
            result.store(at, products.requantize(r, y.load(at), scale, shift, more, *terms))

        k.each(n, body)


def emit_quantize(k: Kernel, fp8: bool) -> None:
    """`semantics.quantize`."""
    x, codes, mantissa, exponent = k.arrays(4)
    groups, n, frac = k.numbers(3)
    form = FormatValues(*k.numbers(len(FormatValues._fields)))
    r = Lanes(k, n)
    with k.range(groups) as group:
        x, codes = x.at(group * n), codes.at(group * n)
        (m,) = r.sweep(lambda at: (abs(x.load(at)),), "largest")
        code, scale = quantise.quantize(r, x.load, m, frac, form, fp8)
        k.each(n, lambda at: codes.store(at, code(at)))
        mantissa.store(group, scale.mantissa)
        exponent.store(group, scale.exponent)


def emit_quantize_static(k: Kernel, fp8: bool) -> None:
    """`semantics.quantize_static`."""
    x, codes = k.arrays(2)
    n, *constants = k.numbers(5)
    r = Lanes(k)
    k.each(
        n,
        lambda at: codes.store(at, quantise.quantize_static(r, x.load(at), *constants, fp8=fp8)),
    )


def emit_quantize_blocks(k: Kernel, steps: int, mixed: bool) -> None:
    """`semantics.quantize_blocks`; `mixed`: blocks may be wide."""
    x, integers = k.arrays(2)
    (codes,) = k.arrays(1, bits=16 if mixed else 8)
    exponents, halves = k.arrays(2)
    of_16 = k.arrays(1)[0] if mixed else None
    rows, in_row, n, width, low = k.numbers(5)
    with k.range(rows) as row, k.range(in_row) as block:
        first, start = row * width, block * n
        count = smaller(n, width - start)
        x, integers, codes = (a.at(first + start) for a in (x, integers, codes))
        wide = None if of_16 is None else of_16.load(block)
        of, code = blocks.quantise(Lanes(k, count), x.load, low, steps, wide)

        def body(at: Cursor) -> None:
            one = code(at)
            codes.store(at, one)
            integers.store(at, blocks.integer(Lanes(k), one, of, steps))

        k.each(count, body)
        exponents.store(row * in_row + block, of.exponent)
        halves.store(row * in_row + block, of.half)


def emit_quantize_heads(k: Kernel) -> None:
    """`semantics.quantize_heads`."""
    x, codes, mantissa, exponent = k.arrays(4)
    groups, n, frac = k.numbers(3)
    r = Lanes(k, n)
    with k.range(groups) as group:
        x, codes = x.at(group * n), codes.at(group * n)
        code, scale = heads.quantise(r, x.load, frac)
        k.each(n, lambda at: codes.store(at, code(at)))
        mantissa.store(group, scale.mantissa)
        exponent.store(group, scale.exponent)


def emit_rms_scale(k: Kernel) -> None:
    """`semantics.rms_scale`."""
    x, mantissa, exponent = k.arrays(3)
    rows, n, epsilon, frac = k.numbers(4)
    r = Lanes(k, n)
    with k.range(rows) as row:
        x = x.at(row * n)
        high, low = r.sweep(lambda at: norms.square(r, x.load(at)), "sum", "sum")
        scale = norms.rms_scale(r, high, low, epsilon, frac)
        mantissa.store(row, scale.mantissa)
        exponent.store(row, scale.exponent)


def emit_multiply(k: Kernel) -> None:
    """`fixed_point.multiply`."""
    a_mantissa, a_exponent, b_mantissa, b_exponent, mantissa, exponent = k.arrays(6)
    (n,) = k.numbers(1)
    r = Lanes(k)

    def body(at: Cursor) -> None:
        a = ScaleOf(a_mantissa.load(at), a_exponent.load(at))
        result = r.multiply(a, ScaleOf(b_mantissa.load(at), b_exponent.load(at)))
        mantissa.store(at, result.mantissa)
        exponent.store(at, result.exponent)

    k.each(n, body)


def emit_reciprocal_scale(k: Kernel) -> None:
    """`semantics.reciprocal_scale`."""
    x, mantissa, exponent = k.arrays(3)
    n, frac = k.numbers(2)
    r = Lanes(k)

    def body(at: Cursor) -> None:
        scale = softmax.reciprocal_scale(r, x.load(at), frac)
        mantissa.store(at, scale.mantissa)
        exponent.store(at, scale.exponent)

    k.each(n, body)


def emit_norm(k: Kernel, centred: bool) -> None:
    """`semantics.norm` without beta."""
    x, y, gamma = k.arrays(3)
    step, tokens, groups, n = k.numbers(4)
    constants = NormValues(*k.numbers(len(NormValues._fields)))
    r = Lanes(k, n)
    with k.range(tokens) as token, k.range(groups) as group:
        offset = (token * groups + group) * n
        x, y, gamma = x.at(offset), y.at(offset), gamma.at(group * step)
        elements = norms.centred(r, x.load, n) if centred else x.load
        element = norms.norm(r, elements, gamma.load, constants)
        k.each(n, lambda at: y.store(at, element(at)))


def emit_rotary(k: Kernel, interleaved: bool) -> None:
    """`semantics.rotary`."""
    x, y = k.arrays(2)
    cos, sin = k.arrays(2, bits=16)
    tokens, heads, width, half = k.numbers(4)
    (places,) = k.numbers(1)
    r = Lanes(k)
    with k.range(tokens) as token, k.range(heads) as head:
        offset = (token * heads + head) * width
        x, y = x.at(offset), y.at(offset)
        cos, sin = cos.at(token * half), sin.at(token * half)

        def body(at: Cursor) -> None:
            first = Cursor(at.index << 1, 1) if interleaved else at
            second = Cursor(first.index + (1 if interleaved else half), at.lanes)
            a, b, c, s = x.load(first), x.load(second), cos.load(at), sin.load(at)
            for where, turned in zip(
                (first, second), products.rotate(r, a, b, c, s, places), strict=True
            ):
                y.store(where, turned)

        (k.each_one if interleaved else k.each)(half, body)
        rest = half << 1
        x, y = x.at(rest), y.at(rest)
        k.each(width - rest, lambda at: y.store(at, x.load(at)))


def _seen(
    k: Kernel, token: Value, batch: Value, n: Value, window: Sequence[Value]
) -> tuple[Value, Value]:
    """The first of n cached tokens that a token of a batch sees, and the one after the last;
    without a window each sees all (`semantics.seen_of_last`)."""
    if not window:
        return k.number(0), n
    stop = n - batch + token + 1
    return where(window[0] > 0, larger(stop - window[0], 0), 0), stop


def emit_score_scale(k: Kernel, windowed: bool) -> None:
    """`semantics.score_scale`."""
    dots, y, q_mantissa, q_exponent, k_mantissa, k_exponent = k.arrays(6)
    stride, factor, factor_exponent, batch, kv_heads, shared, n, shift = k.numbers(8)
    window = k.numbers(int(windowed))
    r, constant = Lanes(k), ScaleOf(factor, factor_exponent)
    with k.range(batch) as token, k.range(kv_heads) as kv_head, k.range(shared) as i:
        row = (token * kv_heads + kv_head) * shared + i
        query = r.multiply(ScaleOf(q_mantissa.load(row), q_exponent.load(row)), constant)
        first, stop = _seen(k, token, batch, n, window)
        dots, y = dots.at(row * n + first), y.at(row * n + first)
        offset = kv_head * stride + first
        k_mantissa, k_exponent = k_mantissa.at(offset), k_exponent.at(offset)

        def body(at: Cursor) -> None:
            key = ScaleOf(k_mantissa.load(at), k_exponent.load(at))
            y.store(at, softmax.score_scale(r, dots.load(at), query, key, shift))

        k.each(stop - first, body)


Weights = Callable[..., tuple[Callable[[Cursor], Value], ScaleOf[Value], Value]]
"""A formula of numerators: of lanes, scores, values' scales, a format if it takes one, what is
seen, the sink."""


def emit_softmax(k: Kernel, masked: bool, sink: bool, windowed: bool) -> None:
    """`semantics.softmax`."""
    _emit_weights(k, masked, sink, windowed, softmax.softmax, formed=True)


def emit_softmax_places(k: Kernel, masked: bool, sink: bool, windowed: bool) -> None:
    """`semantics.softmax_places`."""
    _emit_weights(k, masked, sink, windowed, softmax.softmax_places, formed=False)


def _emit_weights(
    k: Kernel, masked: bool, sink: bool, windowed: bool, weights: Weights, *, formed: bool
) -> None:
    """Numerators of each query head by a formula; `formed`: with a format among the numbers."""
    scores, v_mantissa, v_exponent, sinks = k.arrays(4)
    codes, mantissa, exponent, totals = k.arrays(4)
    (seen_bytes,) = k.arrays(1, bits=8)
    stride, batch, kv_heads, shared, n = k.numbers(5)
    form = [FormatValues(*k.numbers(len(FormatValues._fields)))] if formed else []
    window = k.numbers(int(windowed))
    with k.range(batch) as token, k.range(kv_heads) as kv_head, k.range(shared) as i:
        head = kv_head * shared + i
        row = token * kv_heads * shared + head
        first, stop = _seen(k, token, batch, n, window)
        scores, codes = scores.at(row * n + first), codes.at(row * n + first)
        seen_bytes, count = seen_bytes.at(token * n), stop - first
        offset = kv_head * stride + first
        v_mantissa, v_exponent = v_mantissa.at(offset), v_exponent.at(offset)
        code, scale, total = weights(
            Lanes(k, count, codes),
            scores.load,
            lambda at: ScaleOf(v_mantissa.load(at), v_exponent.load(at)),
            *form,
            (lambda at: -seen_bytes.load(at)) if masked else None,
            sinks.load(head) if sink else None,
        )
        k.each(count, lambda at: codes.store(at, code(at)))
        totals.store(row, total)
        mantissa.store(row, scale.mantissa)
        exponent.store(row, scale.exponent)


# Products with caches


def _pieces(width: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of the registers of `size` elements that `width` elements fill."""
    return [(start, min(size, width - start)) for start in range(0, width, size)]


def _widened(k: Kernel, raw: llvm_ir.Value, size: int) -> llvm_ir.Value:
    """A shorter vector with zeros after it."""
    have = raw.type.count
    if have == size:
        return raw
    order = [min(i, have) for i in range(size)]
    return k.shuffle(raw, order, k.zero(raw.type))


def _lane_sum(k: Kernel, lanes: llvm_ir.Value) -> Value:
    """The sum of an accumulator's lanes."""
    kind = f"v{lanes.type.count}i{lanes.type.element.width}"
    one = k.intrinsic(f"llvm.vector.reduce.add.{kind}", lanes.type.element, [lanes])
    return Value(k, one if lanes.type.element.width == 64 else k.b.sext(one, k.i64))


def _accumulators(k: Kernel, count: int, start: llvm_ir.Value) -> list[llvm_ir.Value]:
    return [k.variable(start) for _ in range(count)]


def emit_query_key(
    k: Kernel, width: int, block: int, bits: int, narrow: bool, windowed: bool
) -> None:
    """`semantics.query_key` for keys of `bits` bits; `narrow`: all codes fit int8.

    `block` queries of one key head go over the keys together. The byte product takes unsigned
    times signed, so 128 is added to the keys, and 128 times the query's sum taken off at the
    start.
    """
    q, y = k.arrays(2)
    keys, batch, kv_heads, blocks, n, head_bytes, token_bytes = k.numbers(7)
    window = k.numbers(int(windowed))
    size = k.path.width if narrow else k.width
    pieces = _pieces(width, size)
    with k.range(kv_heads) as kv_head, k.range(batch) as token, k.range(blocks) as i:
        row = ((token * kv_heads + kv_head) * blocks + i) * block
        queries, result = q.at(row * width), y.at(row * n)
        key_head = keys + kv_head * head_bytes

        def query(r: int, piece: tuple[int, int]) -> llvm_ir.Value:
            start, length = piece
            raw = k.load(queries.pointer(r * width + start), k.vec(k.i64, length))
            if narrow:
                raw = k.b.trunc(raw, k.vec(k.i8, length))
            return _widened(k, raw, size)

        zero = k.zero(k.vec(k.i32, k.path.lanes) if narrow else k.vec(k.i64, k.width))
        starts = [zero] * block
        loaded: list[list[llvm_ir.Value]] = []
        if narrow:
            loaded = [[query(r, piece) for piece in pieces] for r in range(block)]
            offset = k.const(-128, k.vec(k.i8, size))
            for r, parts in enumerate(loaded):
                sums = zero
                for part in parts:
                    sums = k.dot(sums, [offset], [part], 8)
                starts[r] = k.b.sub(zero, sums)
        with k.range_of(*_seen(k, token, batch, n, window)) as t:
            key = Array(k, key_head + t * token_bytes, bits)
            totals = list(starts)
            for p, (start, length) in enumerate(pieces):
                raw = k.load(key.pointer(start), k.vec(k.ir.IntType(bits), length))
                raw = _widened(k, raw, size)
                raw = k.b.xor(raw, k.const(-128, raw.type)) if narrow else k.b.sext(raw, zero.type)
                for r in range(block):
                    if narrow:
                        totals[r] = k.dot(totals[r], [raw], [loaded[r][p]], 8)
                    else:
                        a = Value(k, query(r, pieces[p]))
                        totals[r] = k.b.add(totals[r], product(a, Value(k, raw)).value)
            for r, lanes in enumerate(totals):
                result.store(t + n * r, _lane_sum(k, lanes))


def emit_weighted_sum(k: Kernel, width: int, block: int, bits: int, windowed: bool) -> None:
    """`semantics.weighted_sum` for values of `bits` bits and any probabilities."""
    p, y = k.arrays(2)
    values, batch, kv_heads, blocks, n, head_bytes, token_bytes = k.numbers(7)
    window = k.numbers(int(windowed))
    pieces = _pieces(width, k.width)
    zero = k.zero(k.vec(k.i64, k.width))
    with k.range(kv_heads) as kv_head, k.range(batch) as token, k.range(blocks) as i:
        row = ((token * kv_heads + kv_head) * blocks + i) * block
        weights, result = p.at(row * n), y.at(row * width)
        value_head = values + kv_head * head_bytes
        # A few registers of each row at a time: with all of them the accumulators would not fit.
        for first in range(0, len(pieces), 4):
            some = pieces[first : first + 4]
            slots = [_accumulators(k, len(some), zero) for _ in range(block)]
            with k.range_of(*_seen(k, token, batch, n, window)) as t:
                value = Array(k, value_head + t * token_bytes, bits)
                factors = [weights.load(t + n * r) for r in range(block)]
                for c, (start, length) in enumerate(some):
                    raw = k.load(value.pointer(start), k.vec(k.ir.IntType(bits), length))
                    wide = Value(k, k.b.sext(_widened(k, raw, k.width), zero.type))
                    for r, factor in enumerate(factors):
                        old = k.b.load(slots[r][c], typ=zero.type)
                        k.b.store(k.b.add(old, product(wide, factor).value), slots[r][c])
            for r in range(block):
                for (start, length), slot in zip(some, slots[r], strict=True):
                    _store_first(
                        k, k.b.load(slot, typ=zero.type), result, width * r + start, length
                    )


def _store_first(k: Kernel, quads: llvm_ir.Value, result: Array, offset: int, length: int) -> None:
    """Writes the first `length` int64 of a vector."""
    if length < quads.type.count:
        quads = k.shuffle(quads, range(length))
    k.store(quads, result.pointer(offset))


def emit_weighted_sum_bytes(k: Kernel, width: int, block: int, windowed: bool) -> None:
    """`semantics.weighted_sum` for uint8 probabilities and int8 values, T up to 2**16.

    Four tokens go into one byte product: their values are interleaved in registers, as the
    instructions for it do, within 16 bytes; `scratch` gets the probabilities as bytes, each row
    filled with zeros to `stride`, a multiple of four.
    """
    p, y = k.arrays(2)
    (scratch,) = k.arrays(1, bits=8)
    stride, values, batch, kv_heads, blocks, n, head_bytes, token_bytes = k.numbers(8)
    window = k.numbers(int(windowed))
    size = k.path.width
    lane_type, byte_type = k.vec(k.i32, k.path.lanes), k.vec(k.i8, size)
    zero = k.zero(lane_type)
    rows = batch * kv_heads * blocks * block
    with k.range(rows) as row:
        source, into = p.at(row * n), scratch.at(row * stride)
        k.each(n, lambda at: into.store(at, source.load(at)))

    def interleave(a: llvm_ir.Value, b: llvm_ir.Value, element: int, high: bool) -> llvm_ir.Value:
        """Elements of `element` bytes by turns from the low or high half of every 16 bytes."""
        kind = k.vec(k.ir.IntType(8 * element), size // element)
        per = 16 // element
        order: list[int] = []
        for lane in range(size // 16):
            for i in range(per // 2):
                place = lane * per + i + (per // 2 if high else 0)
                order += [place, place + kind.count]
        return k.shuffle(k.b.bitcast(a, kind), order, k.b.bitcast(b, kind))

    with k.range(kv_heads) as kv_head, k.range(batch) as token, k.range(blocks) as i:
        row = ((token * kv_heads + kv_head) * blocks + i) * block
        weights, result = scratch.at(row * stride), y.at(row * width)
        value_head = values + kv_head * head_bytes
        for start, length in _pieces(width, size):
            slots = [_accumulators(k, 4, zero) for _ in range(block)]
            first, stop = _seen(k, token, batch, n, window)
            with k.range_of(first >> 2, (stop + 3) >> 2) as four:
                t = four << 2
                raw: list[llvm_ir.Value] = []
                for step in range(4):
                    # Beyond the end any row does: its probability is 0.
                    place = smaller(t + step, n - 1)
                    value = Array(k, value_head + place * token_bytes, 8)
                    part = k.load(value.pointer(start), k.vec(k.i8, length))
                    raw.append(_widened(k, part, size))
                pairs = [
                    [interleave(a, b, 1, high) for high in (False, True)]
                    for a, b in (raw[:2], raw[2:])
                ]
                quads = [
                    k.b.bitcast(interleave(a, b, 2, high), byte_type)
                    for a, b in zip(*pairs, strict=True)
                    for high in (False, True)
                ]
                for r in range(block):
                    word = k.load(weights.at(stride * r).pointer(t), k.i32)
                    first = k.b.insert_element(zero, word, k.const(0, k.i32))
                    factor = k.b.bitcast(k.shuffle(first, [0] * k.path.lanes), byte_type)
                    for slot, quad in zip(slots[r], quads, strict=True):
                        old = k.b.load(slot, typ=lane_type)
                        k.b.store(k.dot(old, [factor], [quad], 8), slot)
            for r in range(block):
                sums = [k.b.load(slot, typ=lane_type) for slot in slots[r]]
                low, high = (
                    k.shuffle(sums[j], range(2 * k.path.lanes), sums[j + 1]) for j in (0, 2)
                )
                # Lane 4 * l + i of the accumulator j is element 16 * l + 4 * j + i.
                order = [
                    j * k.path.lanes + 4 * lane + i
                    for lane in range(size // 16)
                    for j in range(4)
                    for i in range(4)
                ]
                wide = k.b.sext(k.shuffle(low, order[:length], high), k.vec(k.i64, length))
                k.store(wide, result.pointer(width * r + start))


EMITTERS: dict[str, Callable[..., None]] = {
    "elementwise": emit_elementwise,
    "requantize": emit_requantize,
    "quantize": emit_quantize,
    "quantize_blocks": emit_quantize_blocks,
    "quantize_heads": emit_quantize_heads,
    "softmax_places": emit_softmax_places,
    "rms_scale": emit_rms_scale,
    "quantize_static": emit_quantize_static,
    "multiply": emit_multiply,
    "reciprocal_scale": emit_reciprocal_scale,
    "norm": emit_norm,
    "rotary": emit_rotary,
    "score_scale": emit_score_scale,
    "softmax": emit_softmax,
    "query_key": emit_query_key,
    "weighted_sum": emit_weighted_sum,
    "weighted_sum_bytes": emit_weighted_sum_bytes,
}


def emit(path: Path, name: str, *variant: int | str) -> llvm_ir.Module:
    """The module of a kernel, with one function of its name."""
    kernel = Kernel(path, name)
    EMITTERS[name](kernel, *variant)
    return kernel.end()
