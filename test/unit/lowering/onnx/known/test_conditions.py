"""Conditions on lengths that the context decides, in every form in which LongRoPE is written."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model
from intaglio.lowering.onnx.known.conditions import decided, switches
from intaglio.lowering.onnx.known.expressions import PAST, SEQUENCE, TOTAL, expression
from intaglio.lowering.onnx.known.simplification import apply
from intaglio.lowering.onnx.known.terms import FALSE, TRUE, AtLeastZero, Count, Number, count

LIMIT, ROWS = 8, 16
PASTS = ["past_key_values.0.key", "past_key_values.0.value", "seqlens_k", "total"]
OUTPUTS = ["y", "present.0.key", "present.0.value"]
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def tables(kind: str) -> tuple[np.ndarray, np.ndarray]:
    base = 100.0 if kind == "short" else 7.0
    angles = np.arange(ROWS)[:, None] / base ** (np.arange(8) / 8)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def branch(kind: str, *, initializers: bool = False, name: str = "") -> object:
    """A branch that gives both tables, as nodes or as tensors of the branch."""
    names = [f"{name or kind}_{one}" for one in ("cos", "sin")]
    stored = [numpy_helper.from_array(t, n) for t, n in zip(tables(kind), names, strict=True)]
    nodes = [
        helper.make_node("Constant", [], [n], name=f"/{n}", value=t)
        for t, n in zip(stored, names, strict=True)
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [ROWS, 8]) for n in names]
    if initializers:
        nodes = [helper.make_node("Identity", [n], [f"{n}_out"], name=n) for n in names]
        ports = [
            helper.make_tensor_value_info(f"{n}_out", TensorProto.FLOAT, [ROWS, 8]) for n in names
        ]
        return helper.make_graph(nodes, kind, [], ports, stored)
    return helper.make_graph(nodes, kind, [], ports)


def begin(decoder) -> None:
    decoder.lengths()
    decoder.past(0, 1, 16)
    decoder.constant("limit", np.array(LIMIT))


def attention(decoder, cos: str = "cos", sin: str = "sin") -> None:
    decoder.ms(
        "GroupQueryAttention",
        ["x", "", "", *PASTS, cos, sin],
        OUTPUTS,
        num_heads=2,
        kv_num_heads=1,
        do_rotary=1,
    )


def greater(decoder, **options) -> None:
    decoder.node("Greater", ["length", "limit"], ["long"], name="greater")
    then, other = branch("long", **options), branch("short", **options)
    decoder.node("If", ["long"], ["cos", "sin"], then_branch=then, else_branch=other)


def with_tensors(decoder) -> None:
    greater(decoder, initializers=True)


def with_equal_names(decoder) -> None:
    # Each branch has names of its own, which the graph may have too.
    greater(decoder, name="table")


def turned_round(decoder) -> None:
    decoder.node("LessOrEqual", ["length", "limit"], ["few"], name="greater")
    then, other = branch("short"), branch("long")
    decoder.node("If", ["few"], ["cos", "sin"], then_branch=then, else_branch=other)


def negated(decoder) -> None:
    decoder.node("Less", ["limit", "length"], ["long"], name="greater")
    decoder.node("Not", ["long"], ["few"])
    then, other = branch("short"), branch("long")
    decoder.node("If", ["few"], ["cos", "sin"], then_branch=then, else_branch=other)


def one_after_the_other(decoder) -> None:
    # A second switch at a larger number, inside of the branch for many tokens.
    decoder.constant("more", np.array(LIMIT + 3))
    decoder.node("Greater", ["length", "more"], ["longer"])
    inner = helper.make_node(
        "If",
        ["longer"],
        ["c", "s"],
        then_branch=branch("long"),
        else_branch=branch("long", name="l"),
    )
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("c", "s")]
    outer = helper.make_graph([inner], "outer", [], ports)
    decoder.node("Greater", ["length", "limit"], ["long"], name="greater")
    decoder.node("If", ["long"], ["cos", "sin"], then_branch=outer, else_branch=branch("short"))


def by_where(decoder) -> None:
    for name, pair in (("long", tables("long")), ("short", tables("short"))):
        for part, table in zip(("cos", "sin"), pair, strict=True):
            decoder.constant(f"{name}_{part}", table)
    decoder.node("Greater", ["length", "limit"], ["is_long"], name="greater")
    for part in ("cos", "sin"):
        decoder.node("Where", ["is_long", f"long_{part}", f"short_{part}"], [part])


def handed_on(decoder) -> None:
    # A branch that hands on values of the graph around it.
    by_where(decoder)
    del decoder.nodes[-2:]
    parts = ("cos", "sin")
    graphs = [
        helper.make_graph(
            [helper.make_node("Identity", [f"{kind}_{one}"], [one + kind]) for one in parts],
            kind,
            [],
            [
                helper.make_tensor_value_info(one + kind, TensorProto.FLOAT, [ROWS, 8])
                for one in parts
            ],
        )
        for kind in ("long", "short")
    ]
    decoder.node("If", ["is_long"], ["cos", "sin"], then_branch=graphs[0], else_branch=graphs[1])


FORMS = [
    greater, with_tensors, with_equal_names, turned_round, negated, one_after_the_other, by_where,
    handed_on,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", [None, LIMIT])
def test_up_to_the_switch(wide, evaluate, form, context):
    begin(wide)
    form(wide)
    attention(wide)
    path = wide.save()
    model = import_model(path, context=context)
    assert model.positions == LIMIT and f"!rom.kv<{LIMIT}, 1, 16, float32>" in str(model.module)
    said = [w for w in model.warnings if "otherwise beyond 8 tokens, which becomes the" in w]
    assert len(said) == (context is None)
    assert not any("no effect" in w for w in model.warnings), "what decided had its effect"
    expected = wide.reference(path, TOKENS)
    np.testing.assert_allclose(evaluate(model).run(TOKENS), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", [LIMIT + 1, ROWS, 1000])
def test_beyond_the_switch(wide, form, context):
    begin(wide)
    form(wide)
    attention(wide)
    words = rf"node 'greater' \(\w+\): the graph computes otherwise beyond {LIMIT} tokens"
    with pytest.raises(UserErrors, match=words) as caught:
        import_model(wide.save(), context=context)
    assert f"help: compile with --context {LIMIT} or less" in str(caught.value)
    assert len(caught.value.errors) == 1


def test_what_decided_nothing_is_said_to_have_no_effect(wide):
    """Nodes that nothing read before a branch was taken, and those of an If that nothing reads."""
    begin(wide)
    greater(wide)
    attention(wide)
    wide.node("Not", ["long"], ["unread"], name="unread")
    wide.node("Less", ["limit", "length"], ["other"], name="other")
    then, other = branch("long", name="a"), branch("short", name="b")
    wide.node("If", ["other"], ["c", "s"], then_branch=then, else_branch=other)
    dead = [w for w in import_model(wide.save()).warnings if "no effect" in w]
    assert [w for w in dead if "'greater'" in w] == []
    assert [any(f"'{name}'" in w for w in dead) for name in ("unread", "other")] == [True, True]


def test_an_offset_into_two_tables(wide, evaluate):
    # As the model builder writes it for DirectML: long tables stand behind the short ones.
    begin(wide)
    wide.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    for i, part in enumerate(("cos", "sin")):
        wide.constant(part, np.concatenate([tables("short")[i][:LIMIT], tables("long")[i]]))
    wide.node("ReduceMax", ["position_ids"], ["last"], keepdims=0)
    wide.node("GreaterOrEqual", ["last", "limit"], ["long"], name="greater")
    wide.node("Cast", ["long"], ["one_or_none"], to=TensorProto.INT64)
    wide.node("Mul", ["one_or_none", "limit"], ["offset"])
    wide.node("Add", ["offset", "position_ids"], ["places"])
    wide.node("Identity", ["x"], ["q"])
    inputs = ["q", "places", "cos", "sin"]
    wide.ms("RotaryEmbedding", inputs, ["turned"], num_heads=4, rotary_embedding_dim=16)
    wide.node("Identity", ["turned"], ["y"])
    wide.inputs[2:4], wide.outputs[:] = [], []
    path = wide.save()
    model = import_model(path)
    assert model.positions == LIMIT
    session_tokens = TOKENS
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {
        "input_ids": np.array([session_tokens]),
        "position_ids": np.arange(LIMIT)[None],
        "attention_mask": np.ones((1, LIMIT), np.int64),
    }
    names = {one.name for one in session.get_inputs()}
    expected = session.run(["y"], {k: v for k, v in feeds.items() if k in names})[0][0]
    np.testing.assert_allclose(evaluate(model).run(TOKENS), expected, rtol=2e-5, atol=2e-5)
    with pytest.raises(UserErrors, match="--context 8 or less"):
        import_model(path, context=LIMIT + 1)


def test_a_range_that_ends_early(wide, evaluate):
    # min(total, 8) positions: the same as all of them, up to 8.
    begin(wide)
    wide.constant("zero", np.array(0))
    wide.node("Min", ["length", "limit"], ["end"], name="greater")
    wide.node("Range", ["zero", "end", "scalar_one"], ["places"])
    wide.node("Shape", ["places"], ["sizes"])
    wide.node("Squeeze", ["sizes"], ["size"])
    wide.node("Cast", ["size"], ["count"], to=TensorProto.INT32)
    for part, table in zip(("cos", "sin"), tables("short"), strict=True):
        wide.constant(part, table)
    wide.ms(
        "GroupQueryAttention",
        ["x", "", "", *PASTS[:3], "count", "cos", "sin"],
        OUTPUTS,
        num_heads=2,
        kv_num_heads=1,
        do_rotary=1,
    )
    path = wide.save()
    model = import_model(path, context=6)
    expected = wide.reference(path, TOKENS[:6])
    np.testing.assert_allclose(evaluate(model).run(TOKENS[:6]), expected, rtol=2e-5, atol=2e-5)
    with pytest.raises(UserErrors, match="--context 8 or less"):
        import_model(path, context=9)


def test_other_refusals_are_said_beside_it(wide):
    begin(wide)
    greater(wide)
    attention(wide)
    wide.node("Hardmax", ["y"], ["z"])
    with pytest.raises(UserErrors) as caught:
        import_model(wide.save("z"), context=ROWS)
    assert len(caught.value.errors) == 2
    assert "Hardmax is not supported" in str(caught.value)
    with pytest.raises(UserErrors) as caught:
        import_model(wide.save("z"))
    assert len(caught.value.errors) == 1


def test_a_condition_that_is_constant(wide, evaluate):
    begin(wide)
    wide.constant("no", np.array(False))
    wide.node("If", ["no"], ["cos", "sin"], then_branch=branch("long"), else_branch=branch("short"))
    attention(wide)
    path = wide.save()
    model = import_model(path)
    assert model.positions == ROWS
    expected = wide.reference(path, TOKENS)
    np.testing.assert_allclose(evaluate(model).run(TOKENS), expected, rtol=2e-5, atol=2e-5)


def test_a_condition_on_the_prompt_is_no_switch(wide):
    begin(wide)
    wide.node("Shape", ["input_ids"], ["shape"], start=1)
    wide.node("Squeeze", ["shape"], ["new"])
    wide.node("Greater", ["new", "scalar_one"], ["prompt"], name="greater")
    then, other = branch("long"), branch("short")
    wide.node("If", ["prompt"], ["cos", "sin"], name="if", then_branch=then, else_branch=other)
    attention(wide)
    with pytest.raises(UserErrors) as caught:
        import_model(wide.save())
    (error,) = caught.value.errors
    assert "'if' (If): which branch it takes is not known before the token" in str(error)


# --- the algebra ----------------------------------------------------------------------------------


def values(past: int, sequence: int) -> dict[str, object]:
    return {"past": expression(past), "sequence": expression(sequence)}


@pytest.mark.parametrize("seed", range(40))
def test_conditions_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    a, b, c = (int(v) for v in rng.integers(-3, 4, 3) * [1, 1, 5])
    value = PAST * a + SEQUENCE * b + c
    capacity = int(rng.integers(1, 12))
    pairs = [(p, s) for p in range(capacity) for s in range(1, capacity - p + 1)]
    found = {(value.substitute(values(*pair)).constant or 0) >= 0 for pair in pairs}
    expected = AtLeastZero(value) if len(found) > 1 else TRUE if True in found else FALSE
    assert decided(AtLeastZero(value), capacity) == expected


@pytest.mark.parametrize("seed", range(40))
def test_switches_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    rise, start = (int(v) for v in rng.integers(-4, 5, 2) * [1, 9])
    signs = [start + rise * t >= 0 for t in range(1, 60)]
    last = next((t for t, (a, b) in enumerate(pairwise(signs), 1) if a != b), 0)
    found = list(switches(AtLeastZero(TOTAL * rise + start), one_by_one=False))
    assert found == ([last] if last > 1 else [])
    one = AtLeastZero(PAST * rise + rise + start)
    assert list(switches(one, one_by_one=True)) == found
    assert not rise or not list(switches(one, one_by_one=False))


def test_conditions_inside_of_formulas():
    long = AtLeastZero(TOTAL - 9)
    offset = apply("Mul", [apply("cast:INT64", [long], {}), count(8)], {})
    whole = apply("Add", [Count(PAST), offset], {})
    assert decided(whole, 8) == Count(PAST) and decided(whole, 9) == whole
    assert list(switches(whole, one_by_one=False)) == [8]
    least = apply("Min", [Count(TOTAL), count(5)], {})
    assert decided(least, 5) == Count(TOTAL) and decided(least, 6) == least
    assert list(switches(least, one_by_one=False)) == [5]
    chosen = apply("Where", [long, Number(1.0, "FLOAT"), Number(2.0, "FLOAT")], {})
    assert decided(chosen, 8) == Number(2.0, "FLOAT")
    assert re.match("Apply", repr(decided(chosen, 12)))
