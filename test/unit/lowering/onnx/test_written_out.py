"""Graphs in the small operators of torch, optimum and transformers, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model

HEADS, KV, WIDTH = 4, 2, 16
INVERSE = (10000.0 ** (-np.arange(8) / 8)).astype(np.float32)


def kinds(model) -> list[str]:
    (step,) = (op for op in model.module.body.block.ops if isinstance(op, rom.StepOp))
    return [op.name.removeprefix("rom.") for op in step.body.block.ops]


def only(model, kind):
    found = [op for op in model.module.walk() if isinstance(op, kind)]
    assert len(found) == 1
    return found[0]


def errors(decoder, output="y") -> list[str]:
    with pytest.raises(UserErrors) as caught:
        import_model(decoder.save(output))
    return [str(error) for error in caught.value.errors]


class Writer:
    """Adds nodes one by one; each gives the name of its result."""

    def __init__(self, decoder):
        self.decoder = decoder
        self.count = 0
        self.nodes = 0

    def __call__(self, op_type, *inputs, output=None, **attributes):
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self.count += 1
        self.nodes += 1
        name = output or f"{op_type.lower()}_{self.count}"
        self.decoder.node(op_type, names, [name], name=f"n_{name}", **attributes)
        return name

    def constant(self, value):
        self.count += 1
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return self.decoder.constant(f"c{self.count}", array)

    def positions(self):
        self.decoder.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
        return "position_ids"

    def heads(self, x, count, width=WIDTH, first=0):
        """Elements of x from `first` on as [batch, heads, sequence, width]."""
        part = self("Slice", x, [first], [first + count * width], [-1])
        split = self("Reshape", part, [0, 0, count, width])
        return self("Transpose", split, perm=[0, 2, 1, 3])

    def flat(self, x, output="y"):
        moved = self("Transpose", x, perm=[0, 2, 1, 3])
        return self("Reshape", moved, [0, 0, -1], output=output)

    def angles(self, style="torch"):
        """cos and sin [batch, sequence, 2 * frequencies] or half of it."""
        ids = self.positions()
        if style == "optimum":
            row = self("Cast", self("Unsqueeze", ids, [1]), to=1)
            product = self("MatMul", INVERSE.reshape(1, -1, 1), row)
            angle = self("Transpose", product, perm=[0, 2, 1])
        elif style == "table":
            table = np.arange(64)[:, None].astype(np.float32) * INVERSE
            angle = self("Gather", table, ids, axis=0)
        else:
            column = self("Cast", self("Unsqueeze", ids, [2]), to=1)
            angle = self("Mul", column, INVERSE)
        return angle

    def rotary_factors(self, style="torch", axis=1):
        angle = self.angles(style)
        whole = self("Concat", angle, angle, axis=-1)
        found = [self("Mul", self(op, whole), np.float32(1.0)) for op in ("Cos", "Sin")]
        return [self("Unsqueeze", one, [axis]) for one in found]

    def rotate_half(self, x, cos, sin, width=WIDTH, split=False):
        half = width // 2
        if split:
            self.count += 1
            a, b = f"a{self.count}", f"b{self.count}"
            self.decoder.node("Split", [x, self.constant([half, half])], [a, b], axis=-1)
        else:
            a = self("Slice", x, [0], [half], [3])
            b = self("Slice", x, [half], [(1 << 63) - 1], [3])
        turned = self("Concat", self("Neg", b), a, axis=-1)
        return self("Add", self("Mul", x, cos), self("Mul", turned, sin))


@pytest.fixture
def write(wide):
    return Writer(wide)


# --- rotary embeddings ---------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["torch", "optimum", "table"])
@pytest.mark.parametrize("split", [False, True])
def test_rotate_half(wide, write, agrees, style, split):
    cos, sin = write.rotary_factors(style)
    write.flat(write.rotate_half(write.heads("x", HEADS), cos, sin, split=split))
    model = agrees(wide)
    op = only(model, rom.RotaryOp)
    assert kinds(model) == ["embed", "rotary", "sample", "emit"]
    assert (op.heads.value.data, op.rotary_dim.value.data, op.interleaved) == (4, 16, None)
    assert [n.data for n in op.onnx.data[0]][-1].startswith("n_add")
    assert model.positions == (64 if style == "table" else 0)


def test_rotation_before_the_heads_are_moved(wide, write, agrees):
    cos, sin = write.rotary_factors(axis=2)
    x = write("Reshape", "x", [0, 0, HEADS, WIDTH])
    write("Reshape", write.rotate_half(x, cos, sin), [0, 0, -1], output="y")
    assert kinds(agrees(wide)) == ["embed", "rotary", "sample", "emit"]


def test_a_single_head(wide, write, agrees):
    cos, sin = write.rotary_factors()
    one = write.heads("x", 1, first=16)
    write.flat(write.rotate_half(one, cos, sin))
    assert kinds(agrees(wide)) == ["embed", "slice", "rotary", "sample", "emit"]


@pytest.mark.parametrize("heads", [1, 2])
def test_a_part_of_each_head(wide, write, agrees, heads):
    cos, sin = write.rotary_factors()
    x = write.heads("x", heads, 64 // heads)
    rotated = write.rotate_half(write("Slice", x, [0], [16], [-1]), cos, sin)
    rest = write("Slice", x, [16], [64 // heads], [-1])
    write.flat(write("Concat", rotated, rest, axis=-1))
    op = only(agrees(wide), rom.RotaryOp)
    assert (op.heads.value.data, op.rotary_dim.value.data) == (heads, 16)


def interleaved_by_strides(write, x, cos, sin):
    a = write("Slice", x, [0], [16], [3], [2])
    b = write("Slice", x, [1], [16], [3], [2])
    first = write("Sub", write("Mul", a, cos), write("Mul", b, sin))
    second = write("Add", write("Mul", b, cos), write("Mul", a, sin))
    pair = [write("Unsqueeze", one, [-1]) for one in (first, second)]
    return write("Reshape", write("Concat", *pair, axis=-1), [0, 0, -1, 16])


def interleaved_by_pairs(write, x, cos, sin):
    pairs = write("Reshape", x, [0, 0, 0, 8, 2])
    a, b = (write("Gather", pairs, np.array(i), axis=4) for i in (0, 1))
    parts = [write("Unsqueeze", one, [4]) for one in (write("Neg", b), a)]
    turned = write("Reshape", write("Concat", *parts, axis=4), [0, 0, 0, 16])
    wide = []
    for one in (cos, sin):
        each = write("Unsqueeze", one, [-1])
        shape = write("Concat", write("Shape", one), [2], axis=0)
        both = write("Expand", each, shape)
        flat = write("Concat", write("Shape", one, start=0, end=3), [16], axis=0)
        wide.append(write("Reshape", both, flat))
    return write("Add", write("Mul", x, wide[0]), write("Mul", turned, wide[1]))


@pytest.mark.parametrize("spelling", [interleaved_by_strides, interleaved_by_pairs])
def test_interleaved(wide, write, agrees, spelling):
    angle = write.angles()
    cos, sin = (write("Unsqueeze", write(op, angle), [1]) for op in ("Cos", "Sin"))
    write.flat(spelling(write, write.heads("x", HEADS), cos, sin))
    assert only(agrees(wide), rom.RotaryOp).interleaved is not None


def test_tables_are_computed_as_the_graph_does(wide, write):
    cos, sin = write.rotary_factors()
    write.flat(write.rotate_half(write.heads("x", HEADS), cos, sin))
    model = import_model(wide.save(), context=40)
    op = only(model, rom.RotaryOp)
    (parameter,) = (
        p
        for p in model.module.walk()
        if isinstance(p, rom.ParameterOp) and p.sym_name.data == op.cos.root_reference.data
    )
    source = model.parameters[parameter.key.data]
    angle = np.arange(40).astype(np.float32)[:, None] * INVERSE
    assert source.dims == (40, 8)
    assert np.array_equal(source.values(0, 40), np.cos(angle))


def test_one_table_serves_all_layers(wide, write, agrees):
    cos, sin = write.rotary_factors()
    x = write.rotate_half(write.heads("x", HEADS), cos, sin)
    angle = write("Unsqueeze", write("Cast", write("Unsqueeze", "position_ids", [2]), to=1), [1])
    again = write("Mul", angle, np.concatenate([INVERSE, INVERSE]))
    more = write.rotate_half(x, write("Cos", again), write("Sin", again))
    write.flat(more)
    model = agrees(wide)
    assert [k for k in kinds(model) if k == "rotary"] == ["rotary", "rotary"]
    tables = {op.cos.root_reference.data for op in model.module.walk() if op.name == "rom.rotary"}
    assert tables == {"cos_cache"}


def test_rotary_embedding_operators(wide, write, agrees):
    wide.opset = 23
    angle = write.angles()
    cos, sin = (write(op, angle) for op in ("Cos", "Sin"))
    x = write.heads("x", 2, 32)
    part = write("Slice", x, [0], [16], [-1])
    turned = write("RotaryEmbedding", part, cos, sin)
    whole = write("Concat", turned, write("Slice", x, [16], [32], [-1]), axis=-1)
    write.flat(whole)
    op = only(agrees(wide), rom.RotaryOp)
    assert (op.heads.value.data, op.rotary_dim.value.data) == (2, 16)


def test_a_rotation_by_something_else_is_refused(wide, write):
    cos, sin = write.rotary_factors()
    x = write.heads("x", HEADS)
    a = write("Slice", x, [0], [8], [3])
    b = write("Slice", x, [8], [16], [3])
    turned = write("Concat", b, a, axis=-1)  # no negation
    write.flat(write("Add", write("Mul", x, cos), write("Mul", turned, sin)))
    found = errors(wide)
    assert any(
        "while some elements of each head are selected" in e or "elements of each head" in e
        for e in found
    )


# --- attention -----------------------------------------------------------------------------------


def causal(write, total, window=0):
    """Truth values [1, 1, sequence, total]."""
    length = write("Squeeze", write("Shape", "input_ids", start=1, end=2))
    past = write("Squeeze", write("Shape", "past_key_values.0.key", start=2, end=3))
    rows = write("Add", write("Range", np.array(0), length, np.array(1)), past)
    rows = write("Unsqueeze", rows, [0, 1, 3])
    columns = write("Unsqueeze", write("Range", np.array(0), total, np.array(1)), [0, 1, 2])
    seen = write("LessOrEqual", columns, rows)
    if window:
        near = write("Greater", columns, write("Sub", rows, np.array(window)))
        seen = write("And", near, seen)
    return seen


def total_of(write):
    length = write("Squeeze", write("Shape", "input_ids", start=1, end=2))
    past = write("Squeeze", write("Shape", "past_key_values.0.key", start=2, end=3))
    return write("Add", length, past)


def repeated(write, cached, name):
    """repeat_kv: each head of keys and values stands for two heads of queries."""
    present = f"present.0.{name}"
    write("Concat", f"past_key_values.0.{name}", cached, axis=2, output=present)
    more = write("Unsqueeze", present, [2])
    shape = write("Shape", present)
    front, back = write("Slice", shape, [0], [2]), write("Slice", shape, [2], [4])
    wide_shape = write("Concat", front, [HEADS // KV], back, axis=0)
    expanded = write("Expand", more, wide_shape)
    return write("Reshape", expanded, write("Concat", [-1], [HEADS], back, axis=0))


def attend(
    write, window=0, cap=0.0, masked="add", scaled="both", guard=True, sinks=None, bias=None
):
    """Attention over 4 heads of queries and 2 of keys and values, all taken from x."""
    write.decoder.past(0, KV, WIDTH)
    q = write.heads("x", HEADS)
    k, v = write.heads("x", KV), write.heads("x", KV, first=32)
    keys, values = repeated(write, k, "key"), repeated(write, v, "value")
    keys = write("Transpose", keys, perm=[0, 1, 3, 2])
    if scaled == "both":
        q, keys = write("Mul", q, np.float32(0.5)), write("Mul", keys, np.float32(0.5))
    scores = write("MatMul", q, keys)
    if scaled == "scores":
        scores = write("Div", scores, np.float32(4.0))
    if cap:
        scores = write("Tanh", write("Div", scores, np.float32(cap)))
        scores = write("Mul", scores, np.float32(cap))
    if bias is not None:
        scores = write("Add", scores, bias(write))
    seen = causal(write, total_of(write), window)
    low = np.array(-3.4028234663852886e38, np.float32)
    if masked == "add":
        scores = write("Add", scores, write("Where", seen, np.float32(0.0), low))
    elif masked == "where":
        scores = write("Where", seen, scores, low)
    elif masked == "hidden":
        scores = write("Where", write("Not", seen), low, scores)
    elif masked == "times":
        hidden = write("Cast", write("Not", seen), to=1)
        scores = write("Add", write("Mul", hidden, low), scores)
    if sinks is not None:
        # gpt-oss: a score of each head behind those of the tokens, and the largest taken off.
        sinks = write("Reshape", sinks, [1, -1, 1, 1])
        rows = write("Shape", scores, start=2, end=3)
        wide = write("Expand", sinks, write("Concat", [1], [HEADS], rows, [1], axis=0))
        scores = write("Concat", scores, wide, axis=-1)
        scores = write("Sub", scores, write("ReduceMax", scores, [-1], keepdims=1))
    p = write("Softmax", scores, axis=-1)
    if sinks is not None:
        p = write("Slice", p, [0], [-1], [3])
    if guard:
        p = write("Where", write("IsNaN", p), np.float32(0.0), p)
    attended = write("MatMul", p, values)
    if masked == "times":
        some = write("ReduceSum", write("Cast", seen, to=1), [-1])
        none = write("Less", some, np.float32(1.0))
        attended = write("Where", none, np.float32(0.0), attended)
    write.flat(attended)


@pytest.mark.parametrize("masked", ["add", "where", "hidden", "times"])
@pytest.mark.parametrize("window", [0, 3])
def test_attention(wide, write, agrees, masked, window):
    attend(write, window=window, masked=masked)
    model = agrees(wide)
    op = only(model, rom.AttentionOp)
    assert (op.heads.value.data, op.scale.value.data) == (4, 0.25)
    assert (op.window.value.data if op.window else 0) == window
    names = [n.data for n in op.onnx.data[0]]
    assert names[-1].startswith("n_matmul") and any("softmax" in name for name in names)
    rest = ["attention", "sample", "emit"]
    assert kinds(model) == ["embed", "slice", "slice", "append", "append", *rest]


@pytest.mark.parametrize(("least", "fits"), [(-3.4028234663852886e38, True), (-2.0, False)])
def test_scores_that_are_not_below_the_least(wide, write, agrees, least, fits):
    """XGLM: a masked score is not less than the least number; a bound of others is refused."""
    write.decoder.past(0, KV, WIDTH)
    q, k = write.heads("x", HEADS), write.heads("x", KV)
    v = write.heads("x", KV, first=32)
    keys, values = repeated(write, k, "key"), repeated(write, v, "value")
    scores = write("MatMul", q, write("Transpose", keys, perm=[0, 1, 3, 2]))
    low = np.array(-3.4028234663852886e38, np.float32)
    mask = write("Where", causal(write, total_of(write)), np.float32(0.0), low)
    scores = write("Max", write("Add", scores, mask), np.array(least, np.float32))
    write.flat(write("MatMul", write("Softmax", scores, axis=-1), values))
    if fits:
        assert only(agrees(wide), rom.AttentionOp).window is None
    else:
        assert any("Max of attention scores" in error for error in errors(wide))


@pytest.mark.parametrize("bias", ["by_distance", "by_key"])
def test_slopes_beside_sinks(wide, write, agrees, bias):
    """A sink gets nothing added, so what the query's own key gets must be 0."""
    add = anchored if bias == "by_distance" else by_key
    attend(write, sinks=np.zeros(4, np.float32), guard=False, bias=add)
    if bias == "by_distance":
        op = only(agrees(wide), rom.AttentionOp)
        assert op.slopes is not None and op.sink is not None
    else:
        assert any("its sink does not get it" in error for error in errors(wide))


@pytest.mark.parametrize("values", [[0.5, 2.0, -1.0, 30.0], [0.0] * 4, [-1e4, 50.0, -np.inf, 0]])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_sinks(wide, write, agrees, values, cap):
    attend(write, cap=cap, window=3, sinks=np.array(values, np.float32), guard=False)
    op = only(agrees(wide), rom.AttentionOp)
    assert op.sink is not None and op.window is not None


SLOPES = np.array([0.5, 0.0, 0.0625, 0.7], np.float32).reshape(1, 4, 1, 1)


def tokens(write, axes):
    """0, 1, ... for all keys, in floating point."""
    keys = write("Range", np.array(0), total_of(write), np.array(1))
    return write("Cast", write("Unsqueeze", keys, axes), to=1)


def by_key(write):
    return write("Mul", SLOPES, tokens(write, [0, 1, 2]))


def by_mask(write):
    """Bloom: positions counted by an attention mask, which is all ones."""
    ones = write("Expand", np.array([1]), write("Unsqueeze", total_of(write), [0]))
    counted = write("Mul", write("Sub", write("CumSum", ones, np.array(0)), np.array(1)), ones)
    counted = write("Cast", write("Unsqueeze", counted, [0, 1, 2]), to=1)
    return write("Mul", counted, SLOPES)


def by_distance(write):
    """From the query, with a number besides that softmax does not see."""
    return write("Add", anchored(write), np.float32(3.0))


def anchored(write):
    """From the query, which itself loses nothing."""
    past = write("Squeeze", write("Shape", "past_key_values.0.key", start=2, end=3))
    queries = write("Range", past, total_of(write), np.array(1))
    queries = write("Cast", write("Unsqueeze", queries, [0, 1, 3]), to=1)
    distance = write("Sub", queries, tokens(write, [0, 1, 2]))
    return write("Mul", write("Neg", SLOPES), distance)


def by_length(write):
    """As if the last key were 0 (MPT)."""
    last = write("Cast", write("Sub", total_of(write), np.array(1)), to=1)
    keys = write("Sub", tokens(write, [0, 1, 2]), last)
    return write("Mul", keys, SLOPES)


@pytest.mark.parametrize("bias", [by_key, by_mask, by_distance, by_length])
@pytest.mark.parametrize(("cap", "window"), [(0.0, 0), (2.0, 3)])
def test_slopes(wide, write, agrees, bias, cap, window):
    attend(write, cap=cap, window=window, scaled="scores", guard=False, bias=bias)
    model = agrees(wide)
    op = only(model, rom.AttentionOp)
    (source,) = (
        model.parameters[one.source]
        for one in model.module.ops
        if isinstance(one, rom.ParameterOp) and one.sym_name.data == op.slopes.root_reference.data
    )
    found = source.values(0, HEADS)
    np.testing.assert_allclose(found, SLOPES.ravel(), atol=1e-6)


@pytest.mark.parametrize("operator", ["MultiHeadAttention", "Attention", "GroupQueryAttention"])
def test_slopes_of_operators(wide, write, agrees, operator):
    """What is added by an input of the operator, alone or with the causal mask."""
    write.decoder.past(0, HEADS, WIDTH)
    mask = causal(write, total_of(write))
    low = np.array(-3.4028234663852886e38, np.float32)
    bias = write("Add", by_key(write), write("Where", mask, np.float32(0.0), low))
    past = ["past_key_values.0.key", "past_key_values.0.value"]
    outputs = ["y", "present.0.key", "present.0.value"]
    if operator == "Attention":
        wide.opset = 23
        given = ["x", "x", "x", bias, *past]
        wide.node(operator, given, outputs, q_num_heads=HEADS, kv_num_heads=HEADS)
    elif operator == "MultiHeadAttention":
        given = ["x", "x", "x", "", "", bias, *past]
        wide.ms(operator, given, outputs, num_heads=HEADS)
    else:
        wide.lengths()
        given = ["x", "x", "x", *past, "seqlens_k", "total", "", "", "", bias]
        wide.ms(operator, given, outputs, num_heads=HEADS, kv_num_heads=HEADS)
    op = only(agrees(wide), rom.AttentionOp)
    assert op.slopes is not None and op.window is None


def test_slopes_that_are_scaled_with_the_scores(wide, write, agrees):
    """Falcon: what is added counts before the scores are divided."""
    write.decoder.past(0, KV, WIDTH)
    q, k = write.heads("x", HEADS), write.heads("x", KV)
    v = write.heads("x", KV, first=32)
    keys, values = repeated(write, k, "key"), repeated(write, v, "value")
    scores = write("MatMul", q, write("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = write("Mul", write("Add", scores, by_key(write)), np.float32(0.25))
    seen = causal(write, total_of(write))
    low = np.array(-3.4028234663852886e38, np.float32)
    scores = write("Add", scores, write("Where", seen, np.float32(0.0), low))
    write.flat(write("MatMul", write("Softmax", scores, axis=-1), values))
    assert only(agrees(wide), rom.AttentionOp).slopes is not None


def test_no_slopes_at_all(wide, write, agrees):
    def nothing(write):
        return write("Mul", np.zeros((1, 4, 1, 1), np.float32), tokens(write, [0, 1, 2]))

    attend(write, guard=False, bias=nothing)
    assert only(agrees(wide), rom.AttentionOp).slopes is None


def squared(write):
    keys = tokens(write, [0, 1, 2])
    return write("Mul", SLOPES, write("Mul", keys, keys))


def by_total(write):
    """A slope that changes with the length."""
    length = write("Cast", total_of(write), to=1)
    return write("Mul", write("Mul", SLOPES, length), tokens(write, [0, 1, 2]))


def rounded(write):
    """Falcon's: products of bfloat16, which are not on a line from 256 on."""
    keys = write("Cast", tokens(write, [0, 1, 2]), to=TensorProto.BFLOAT16)
    products = write("Mul", write("Cast", SLOPES, to=TensorProto.BFLOAT16), keys)
    return write("Cast", products, to=1)


@pytest.mark.parametrize("bias", [squared, by_total, rounded])
def test_what_is_no_slope(wide, write, bias):
    attend(write, guard=False, bias=bias)
    assert any("not proven that" in error for error in errors(wide))


def test_batch_and_heads_in_one_axis(wide, write, agrees):
    """Bloom: queries, keys and values as [batch * heads, tokens, width], scores too."""
    write.decoder.past(0, HEADS, 8)
    q, k = (write.heads("x", HEADS, width=8, first=first) for first in (0, 32))
    v = write.heads("x", HEADS, width=8, first=16)
    keys = write("Concat", "past_key_values.0.key", k, axis=2, output="present.0.key")
    values = write("Concat", "past_key_values.0.value", v, axis=2, output="present.0.value")
    batch = write("Shape", "input_ids", start=0, end=1)
    merged = write("Mul", batch, np.array([HEADS]))
    rows = write("Concat", merged, [-1, 8], axis=0)
    q, keys, values = (write("Reshape", one, rows) for one in (q, keys, values))
    scores = write("MatMul", q, write("Transpose", keys, perm=[0, 2, 1]))
    bias = write("Mul", SLOPES.reshape(4, 1, 1), write("Squeeze", tokens(write, [0, 1, 2]), [0]))
    scores = write("Add", write("Mul", scores, np.float32(0.35)), bias)
    length = write("Unsqueeze", total_of(write), [0])
    apart = write("Concat", batch, [HEADS, -1], length, axis=0)
    scores = write("Reshape", scores, apart)
    low = np.array(-3.4028234663852886e38, np.float32)
    seen = causal(write, total_of(write))
    scores = write("Add", scores, write("Where", seen, np.float32(0.0), low))
    p = write("Softmax", scores, axis=-1)
    p = write("Reshape", p, write("Concat", merged, [-1], length, axis=0))
    attended = write("MatMul", p, values)
    write.flat(write("Reshape", attended, write("Concat", batch, [HEADS, -1, 8], axis=0)))
    op = only(agrees(wide), rom.AttentionOp)
    assert op.slopes is not None and op.heads.value.data == HEADS


def test_what_is_no_sink(wide, write):
    """Two scores behind those of the tokens, and a sink whose probability is kept."""
    attend(write, sinks=np.zeros(8, np.float32), guard=False)
    assert any("sink" in error for error in errors(wide))


def test_softcap_and_scale_of_scores(wide, write, agrees):
    attend(write, cap=2.0, scaled="scores", guard=False)
    op = only(agrees(wide), rom.AttentionOp)
    assert op.softcap is not None and op.softcap.value.data == 2.0
    assert op.scale.value.data == 0.25


@pytest.mark.parametrize("lengths", [(1, "sequence"), (1, 1)])
def test_fixed_lengths(wide, write, lengths):
    wide.inputs[0] = ("input_ids", TensorProto.INT64, list(lengths))
    attend(write, window=3)
    assert only(import_model(wide.save()), rom.AttentionOp).window.value.data == 3


def test_mask_of_padding(wide, write, agrees):
    """The attention mask of an export joins the causal one: no padding, so all ones."""
    wide.inputs.append(("attention_mask", TensorProto.INT64, ["batch", "total"]))
    wide.past(0, KV, WIDTH)
    q, k, v = write.heads("x", KV), write.heads("x", KV), write.heads("x", KV, first=32)
    for name, x in (("key", k), ("value", v)):
        write("Concat", f"past_key_values.0.{name}", x, axis=-2, output=f"present.0.{name}")
    seen = causal(write, total_of(write))
    rows = write("Unsqueeze", write("Cast", "attention_mask", to=9), [1, 2])
    seen = write("And", seen, write("Expand", rows, write("Shape", seen)))
    write.decoder.opset = 23
    out = write("Attention", q, "present.0.key", "present.0.value", seen, scale=0.3)
    write.flat(out)
    assert only(agrees(wide), rom.AttentionOp).scale.value.data == pytest.approx(0.3)


def test_attention_operator_with_past(wide, write, agrees):
    wide.opset = 23
    wide.past(0, KV, WIDTH)
    q, k, v = write.heads("x", HEADS), write.heads("x", KV), write.heads("x", KV, first=32)
    wide.node(
        "Attention",
        [q, k, v, "", "past_key_values.0.key", "past_key_values.0.value"],
        ["attended", "present.0.key", "present.0.value"],
        is_causal=1,
        softcap=3.0,
    )
    write.flat("attended")
    op = only(agrees(wide), rom.AttentionOp)
    assert op.softcap is not None and op.window is None


def test_attention_operator_aligned_with_the_first_key(wide, write):
    wide.opset = 23
    wide.past(0, KV, WIDTH)
    for name in ("key", "value"):
        x = write.heads("x", KV)
        write("Concat", f"past_key_values.0.{name}", x, axis=2, output=f"present.0.{name}")
    q = write.heads("x", KV)
    write.flat(write("Attention", q, "present.0.key", "present.0.value", is_causal=1))
    assert any("depends on the index of axis 2" in error for error in errors(wide))


def test_multi_head_attention(wide, write, agrees):
    wide.past(0, HEADS, WIDTH)
    parts = []
    for name in ("key", "value"):
        x = write.heads("x", HEADS)
        write("Concat", f"past_key_values.0.{name}", x, axis=2, output=f"present.0.{name}")
        parts.append(write.flat(f"present.0.{name}", output=f"flat_{name}"))
    seen = causal(write, total_of(write), 4)
    bias = write("Where", seen, np.float32(0.0), np.float32(-65504.0))
    bias = write("Tile", bias, [1, HEADS, 1, 1])
    inputs = ["x", *parts, "", "", bias]
    wide.ms("MultiHeadAttention", inputs, ["y"], num_heads=HEADS, scale=0.5)
    op = only(agrees(wide), rom.AttentionOp)
    assert (op.window.value.data, op.scale.value.data) == (4, 0.5)


def test_group_query_attention_with_computed_angles(wide, write, agrees):
    """As onnxruntime's fusions write it: cos and sin of the new tokens only, and a bias."""
    wide.lengths()
    wide.past(0, KV, WIDTH)
    angle = write("Reshape", write.angles(), [-1, 8])
    length = write("Shape", "input_ids", start=1, end=2)
    missing = write("Sub", write("Unsqueeze", total_of(write), [0]), length)
    missing = write("Max", missing, np.array([0]))
    nought = write("Expand", np.float32(0.0), write("Concat", missing, [8], axis=0))
    tables = [write("Concat", write(op, angle), nought, axis=0) for op in ("Cos", "Sin")]
    index = write("Range", np.array(0), write("Squeeze", length), np.array(1))
    index = write("Reshape", index, [1, -1])
    seen = causal(write, total_of(write), 3)
    bias = write("Where", seen, np.float32(0.0), np.float32(-3.4e38))
    k = write("Slice", "x", [0], [32], [-1])
    wide.inputs[0] = ("input_ids", TensorProto.INT64, [1, "sequence"])
    pasts = ["past_key_values.0.key", "past_key_values.0.value"]
    wide.ms(
        "GroupQueryAttention",
        ["x", k, k, *pasts, "seqlens_k", "total", *tables, index, bias],
        ["y", "present.0.key", "present.0.value"],
        num_heads=HEADS,
        kv_num_heads=KV,
        do_rotary=1,
    )
    model = agrees(wide)
    assert kinds(model)[2:4] == ["rotary", "rotary"]
    assert only(model, rom.AttentionOp).window.value.data == 3


# --- attention that is refused -------------------------------------------------------------------


def test_no_mask(wide, write):
    attend(write, masked="none")
    found = errors(wide)
    assert len(found) == 1 and "tokens see later tokens" in found[0]


def test_a_bias_by_distance(wide, write):
    wide.past(0, KV, WIDTH)
    q, k, v = write.heads("x", HEADS), write.heads("x", KV), write.heads("x", KV, first=32)
    keys = write("Transpose", repeated(write, k, "key"), perm=[0, 1, 3, 2])
    values = repeated(write, v, "value")
    columns = write("Range", np.array(0), total_of(write), np.array(1))
    slope = write("Mul", write("Cast", columns, to=1), np.float32(0.25))
    scores = write("Add", write("MatMul", q, keys), slope, output="biased")
    write.flat(write("MatMul", write("Softmax", scores), values))
    (error,) = errors(wide)
    # What falls with the distance hides nothing.
    assert "tokens see later tokens" in error


def test_heads_repeated_in_another_order(wide, write):
    wide.past(0, KV, WIDTH)
    q = write.heads("x", HEADS)
    parts = []
    for name in ("key", "value"):
        present = f"present.0.{name}"
        x = write.heads("x", KV)
        write("Concat", f"past_key_values.0.{name}", x, axis=2, output=present)
        more = write("Expand", write("Unsqueeze", present, [1]), np.array([1, 2, 1, 1, 1]))
        back = write("Slice", write("Shape", present), [2], [4])
        parts.append(write("Reshape", more, write("Concat", [-1], [HEADS], back, axis=0)))
    keys = write("Transpose", parts[0], perm=[0, 1, 3, 2])
    write.flat(write("MatMul", write("Softmax", write("MatMul", q, keys)), parts[1]))
    assert any("not repeated each in turn" in error for error in errors(wide))


def test_a_cache_that_is_not_given_back(wide, write):
    attend(write)
    wide.outputs = [port for port in wide.outputs if "key" in port[0]]
    (error,) = errors(wide)
    assert "no output gives back what 'past_key_values.0.value' becomes" in error


def test_an_encoder(wide, write):
    q, k = write.heads("x", HEADS), write.heads("x", HEADS)
    scores = write("MatMul", q, write("Transpose", k, perm=[0, 1, 3, 2]))
    write.flat(write("MatMul", write("Softmax", scores), k))
    assert any("both factors are activations" in error for error in errors(wide))


# --- activation functions ------------------------------------------------------------------------


def gelu_erf(write):
    inner = write("Add", write("Erf", write("Div", "x", np.float32(2**0.5))), np.float32(1.0))
    write("Mul", write("Mul", "x", inner), np.float32(0.5), output="y")


def gelu_erf_half_first(write):
    inner = write("Erf", write("Mul", "x", np.float32(0.5**0.5)))
    inner = write("Add", np.float32(1.0), inner)
    write("Mul", write("Mul", "x", np.float32(0.5)), inner, output="y")


def gelu_tanh(write):
    cubed = write("Mul", write("Pow", "x", np.float32(3.0)), np.float32(0.044715))
    inner = write("Mul", write("Add", "x", cubed), np.float32((2 / np.pi) ** 0.5))
    inner = write("Add", write("Tanh", inner), np.float32(1.0))
    write("Mul", write("Mul", np.float32(0.5), "x"), inner, output="y")


def gelu_tanh_by_products(write):
    cubed = write("Mul", "x", write("Mul", "x", "x"))
    inner = write("Add", "x", write("Mul", np.float32(0.044715), cubed))
    inner = write("Tanh", write("Mul", inner, np.float32((2 / np.pi) ** 0.5)))
    half = write("Mul", "x", np.float32(0.5))
    write("Mul", half, write("Add", inner, np.float32(1.0)), output="y")


def silu_by_exp(write):
    below = write("Add", write("Exp", write("Neg", "x")), np.float32(1.0))
    write("Div", "x", below, output="y")


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        (gelu_erf, "gelu_erf"),
        (gelu_erf_half_first, "gelu_erf"),
        (gelu_tanh, "gelu_tanh"),
        (gelu_tanh_by_products, "gelu_tanh"),
        (silu_by_exp, "silu"),
    ],
)
def test_activation_functions(wide, write, agrees, spelling, kind):
    spelling(write)
    model = agrees(wide)
    assert kinds(model) == ["embed", "activate", "sample", "emit"]
    op = only(model, rom.ActivateOp)
    names = [name.data for name in op.onnx.data[0]]
    assert op.kind.data == kind and names[-1] == "n_y"
    assert len(names) == len(set(names)) == write.nodes


def test_another_function_is_refused(wide, write):
    write("Mul", "x", write("Add", write("Erf", "x"), np.float32(1.0)), output="y")
    (error,) = errors(wide)
    assert "(Erf): Erf is supported in an activation function that is written out only" in error


# --- norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [False, True])
def test_rms_norm_of_heads(wide, write, agrees, power):
    gamma = write("Add", wide.floats("w", WIDTH), np.float32(1.0))
    x = write("Reshape", "x", [0, 0, HEADS, WIDTH])
    mean = write("ReduceMean", write("Pow", x, np.float32(2.0)), [-1], keepdims=1)
    mean = write("Add", mean, np.float32(1e-5))
    inverse = (
        write("Pow", mean, np.float32(-0.5)) if power else write("Reciprocal", write("Sqrt", mean))
    )
    normed = write("Mul", write("Mul", x, inverse), gamma)
    write("Reshape", normed, [0, 0, -1], output="y")
    assert only(agrees(wide), rom.RMSNormOp).groups.value.data == HEADS


def test_norm_without_gamma(wide, write, agrees):
    mean = write("ReduceMean", write("Mul", "x", "x"), [-1], keepdims=1)
    root = write("Sqrt", write("Add", mean, np.float32(1e-5)))
    write("Relu", write("Div", "x", root), output="y")
    assert kinds(agrees(wide)) == ["embed", "rms_norm", "activate", "sample", "emit"]


def test_sum_with_a_norm_without_gamma(wide, write, agrees):
    mean = write("ReduceMean", write("Mul", "x", "x"), [-1], keepdims=1)
    root = write("Sqrt", write("Add", mean, np.float32(1e-5)))
    write("Add", write("Div", "x", root), "x", output="y")
    assert kinds(agrees(wide)) == ["embed", "rms_norm", "add", "sample", "emit"]


@pytest.mark.parametrize("beta", [False, True])
def test_layer_norm(wide, write, agrees, beta):
    centred = write("Sub", "x", write("ReduceMean", "x", [-1], keepdims=1))
    square = write("Pow", centred, np.float32(2.0))
    variance = write("Add", write("ReduceMean", square, [-1], keepdims=1), np.float32(1e-5))
    normed = write("Div", centred, write("Sqrt", variance))
    scaled = write("Mul", normed, wide.floats("g", 64), output=None if beta else "y")
    if beta:
        write("Add", scaled, wide.floats("b", 64), output="y")
    assert kinds(agrees(wide)) == ["embed", "layer_norm", "sample", "emit"]


def test_cast_like_and_empty_parts(wide, write, agrees):
    half = write("CastLike", np.array(2, np.int64), "x")
    joined = write("Concat", np.zeros((1, 1, 0), np.float32), "x", axis=-1)
    write("Div", joined, half, output="y")
    assert kinds(agrees(wide)) == ["embed", "scale", "sample", "emit"]
