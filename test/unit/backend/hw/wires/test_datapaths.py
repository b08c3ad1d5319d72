"""Every primitive and every formula in signals: combinational and pipelined, against numpy."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.backend import circt
from intaglio.backend.hw.wires import datapaths as hw
from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import Design, Signal, larger, mux, pipelined
from intaglio.dialects import codes, formats
from intaglio.dialects import fixed_point as fp
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real, Saturations, Scale
from intaglio.dialects.formulas import norms, products, quantise, softmax
from intaglio.dialects.formulas.arrays import Arrays
from intaglio.dialects.formulas.elementwise import ELEMENTWISE, Elementwise
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.tables import TABLES, lookup, table
from intaglio.runtime.engines.arc import ArcModel
from intaglio.runtime.engines.running import Model, signed
from intaglio.runtime.engines.verilator import VerilatorModel, compiler, verilator_root

Ints = npt.NDArray[np.int64]
VECTORS = 4000


@dataclass(frozen=True)
class In:
    """An input: its width and sign, and the values it may have."""

    width: int
    signed: bool = True
    low: int | None = None
    high: int | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        low = -(1 << (self.width - 1)) if self.signed else 0
        high = (1 << (self.width - self.signed)) - 1
        return low if self.low is None else self.low, high if self.high is None else self.high

    def values(self, rng: np.random.Generator, count: int) -> Ints:
        """Random numbers of all sizes, powers of two and their neighbours, both ends."""
        low, high = self.bounds
        size = rng.integers(0, self.width + 1, count)
        value = np.clip(rng.integers(low, high, count, endpoint=True) >> size, low, high)
        powers = [sign << i for i in range(self.width) for sign in (1, -1)]
        ends = [low, high, 0, *(power + d for power in powers for d in (-1, 0, 1))]
        fitting = np.array([end for end in ends if low <= end <= high], np.int64)
        return np.where(rng.random(count) < 0.2, rng.choice(fitting, count), value)


FIXED = In(32)
UNSIGNED = In(31, False)
MANTISSA = In(24, False, 1 << 23)
EXPONENT = In(8, True, -20, 60)


@dataclass(frozen=True)
class Case:
    """A datapath: `build` takes Signals by name, `expect` a counter and integer arrays [n]."""

    inputs: Mapping[str, In]
    build: Callable[..., Any]
    expect: Callable[..., Any]
    depth: int = 5


def flatten(result: Any) -> tuple[list[Any], list[Signal]]:
    """The values of a result, and the counts of its saturations."""
    if isinstance(result, hw.Fixed):
        return [result.value], [result.saturated]
    if not isinstance(result, tuple):
        return [result], []
    parts = [flatten(part) for part in result]
    return [v for values, _ in parts for v in values], [c for _, counts in parts for c in counts]


def design_of(case: Case) -> tuple[str, list[Signal], list[Signal]]:
    """The datapath as it is (y, s) and as a pipeline (z, t), with its values and counts."""
    design = Design()
    m = design.module("top")
    valid = m.input("valid", 1)
    signals = {
        key: m.input(key, spec.width, spec.signed).assume(*spec.bounds)
        for key, spec in case.inputs.items()
    }
    values, counts = flatten(case.build(**signals))

    def function(*arguments: Signal) -> list[Signal]:
        values, counts = flatten(case.build(**dict(zip(signals, arguments, strict=True))))
        return values + counts

    later = pipelined(function, list(signals.values()), case.depth, valid)
    for prefix, outputs in (("y", values + counts), ("z", later.outputs)):
        for i, signal in enumerate(outputs):
            m.output(f"{prefix}{i}", signal)
    assert later.valid is not None
    m.output("ready", later.valid)
    return design.text(), values, counts


def check(case: Case, model: Model, values: Sequence[Signal], counts: Sequence[Signal]) -> None:
    rng = np.random.default_rng(zlib.crc32(repr(sorted(case.inputs)).encode()))
    inputs = {key: spec.values(rng, VECTORS) for key, spec in case.inputs.items()}
    # Gaps in the stream: what is not valid must not disturb what is.
    valid = (rng.random(VECTORS) < 0.8).astype(np.int64)
    if "rst" in model.ports:
        model.set("rst", 1)
        model.step(2)
        model.set("rst", 0)
    first = model.run(VECTORS, {**inputs, "valid": valid}).outputs
    model.set("valid", 0)
    rest = model.run(case.depth).outputs
    saturations = Saturations()
    expected, _ = flatten(case.expect(saturations, **inputs))
    assert len(expected) == len(values)
    assert (rest["ready"] == valid[VECTORS - case.depth :]).all()
    seen_counts = [0, 0]
    for i, signal in enumerate([*values, *counts]):
        now = typed(first[f"y{i}"], signal)
        late = typed(np.concatenate([first[f"z{i}"], rest[f"z{i}"]]), signal)[case.depth :]
        late = np.where(valid, late, now)
        if i >= len(values):
            seen_counts[0] += int(now.sum())
            seen_counts[1] += int(late.sum())
            continue
        want = np.broadcast_to(np.asarray(expected[i], np.int64), now.shape)
        for which, got in (("combinational", now), ("pipelined", late)):
            wrong = np.flatnonzero(want != got)
            if wrong.size:
                k = wrong[0]
                where = {key: int(array[k]) for key, array in inputs.items()}
                pytest.fail(
                    f"output {i}, {which}: {wrong.size} wrong; {where} gives {got[k]}, "
                    f"not {want[k]}"
                )
    if counts:
        assert seen_counts == [saturations.count] * 2


def typed(values: Any, signal: Signal) -> Ints:
    return signed(values, signal.width) if signal.signed else values.astype(np.int64)


CASES: dict[str, Case] = {}


def case(name: str, inputs: Mapping[str, In], build: Callable[..., Any], **more: Any) -> Any:
    """Registers a case whose expectation is the decorated function."""

    def register(expect: Callable[..., Any]) -> None:
        CASES[name] = Case(inputs, build, expect, **more)

    return register


# Fixed point


@case("saturate", {"x": In(40)}, lambda x: hw.saturate(x, 32), depth=1)
def _(s: Saturations, x: Ints) -> Any:
    return fp.saturate(x, 32, s)


@case(
    "round_shift",
    {"x": In(40), "places": In(7, True, -8, 60)},
    lambda x, places: (
        hw.round_shift(x, places),
        *(hw.round_shift(x, n) for n in (-3, 0, 1, 17, 39, 40, 45)),
    ),
)
def _(s: Saturations, x: Ints, places: Ints) -> Any:
    fixed = tuple(fp.round_shift(x, n) for n in (-3, 0, 1, 17, 39, 40, 45))
    return (fp.round_shift(x, places), *fixed)


@case(
    "shift_saturate",
    {"x": In(63), "places": In(8, True, -100, 100)},
    lambda x, places: (
        hw.shift_saturate(x, places),
        *(hw.shift_saturate(x, n) for n in (-40, -3, 0, 20, 70)),
    ),
)
def _(s: Saturations, x: Ints, places: Ints) -> Any:
    fixed = tuple(fp.shift_saturate(x, n, 32, s) for n in (-40, -3, 0, 20, 70))
    return (fp.shift_saturate(x, places, 32, s), *fixed)


DIVISORS = (1, 3, 5, 8, 10, 27, 270, 1000, (1 << 17) - 1, 1 << 17)


@case(
    "divide",
    {"x": In(17, False), "y": In(3, False)},
    lambda x, y: tuple(hw.divide(one, by) for one in (x, y) for by in DIVISORS),
)
def _(s: Saturations, x: Ints, y: Ints) -> Any:
    return tuple(divmod(one, by) for one in (x, y) for by in DIVISORS)


@case("bit_length", {"x": In(63, False)}, lambda x: (hw.bit_length(x), hw.normalise(x)))
def _(s: Saturations, x: Ints) -> Any:
    return fp.bit_length(x), fp.normalise(x)


@case(
    "shift_normal",
    {"x": In(47), "m": In(46, False)},
    lambda x, m: hw.shift_normal(x, hw.normalise(larger(abs(x), m))),
)
def _(s: Saturations, x: Ints, m: Ints) -> Any:
    return fp.shift_normal(x, fp.normalise(np.maximum(abs(x), m)))


@case(
    "multiply",
    {"a": MANTISSA, "e": EXPONENT, "b": In(24, False), "f": EXPONENT},
    lambda a, e, b, f: hw.multiply(hw.Scale(a, e), hw.Scale(mux(b[23], b, 0), f)),
)
def _(s: Saturations, a: Ints, e: Ints, b: Ints, f: Ints) -> Any:
    b = np.where(b >> 23, b, 0)
    return tuple(fp.multiply(Scale(a, e), Scale(b, f)))


def _table_case(name: str) -> None:
    of = table(name)
    inputs = {
        "reciprocal": MANTISSA,
        "rsqrt": In(32, False, 1 << 30),
        "exp2": In(16, False),
    }
    spec = inputs.get(name, In(32, False))
    case(f"table_{name}", {"a": spec}, lambda a: hw.lookup(of, a), depth=4)(
        lambda s, a: lookup(of, a)
    )


for _name in TABLES:
    _table_case(_name)


@case("e4m3_encode", {"t": In(32)}, lambda t: (hw.e4m3_encode(t, 8), hw.e4m3_encode(t, 1)))
def _(s: Saturations, t: Ints) -> Any:
    return codes.e4m3_encode(t, 8), codes.e4m3_encode(t, 1)


@case(
    "decode",
    {"code": In(16, False)},
    lambda code: tuple(hw.decode(code, fmt) for fmt in ("int8", "uint8", "int16", "fp8")),
    depth=1,
)
def _(s: Saturations, code: Ints) -> Any:
    low = code & 255
    # The decoder also gives a number for the two codes of not-a-number: 480.
    fp8 = codes.e4m3_decode(low)
    return (low ^ 128) - 128, low, (code ^ 32768) - 32768, fp8


# Formulas: one body, read by signals and by numpy.


def formula(name: str, inputs: Mapping[str, In], body: Callable[..., Any], depth: int = 5) -> None:
    """Registers a body: of a reader and values by name, to a tuple of values."""

    def build(**signals: Signal) -> Any:
        r = Wires(next(iter(signals.values())).module, GROUP)
        values = tuple(body(r, **signals))
        return (*values[:-1], hw.Fixed(values[-1], r.saturated))

    def expect(s: Saturations, /, **arrays: Ints) -> Any:
        return tuple(body(Arrays(s), **arrays))

    CASES[name] = Case(inputs, build, expect, depth)


GROUP = 3
"""Elements of a group."""
PLACES = {"a": FIXED, "b": FIXED, "c": FIXED}


def elements(r: Any, *x: Any) -> Callable[[Any], Any]:
    """Values as elements of a group."""
    if isinstance(r, Arrays):
        return lambda at: np.stack(np.broadcast_arrays(*x), axis=-1)
    return lambda at: r.lift(x[at])


def each(r: Any, element: Callable[[Any], Any]) -> list[Any]:
    """The elements of a group as values."""
    if isinstance(r, Arrays):
        return list(np.moveaxis(element(None), -1, 0))
    return [element(at) for at in range(GROUP)]


def once(r: Any, *values: Any) -> list[Any]:
    """Values that a group has one of."""
    return [v[..., 0] for v in values] if isinstance(r, Arrays) else list(values)


_REALS = (Real.of(1 / 30), Real.of(-43.2))


def _elementwise_case(one: Elementwise, fractions: tuple[int, ...], into: int) -> None:
    c = one.constants(fractions[: one.operands], into, _REALS[: one.reals])
    inputs = {"x": FIXED, "y": FIXED} if one.operands == 2 else {"x": FIXED}
    formula(
        f"{one.name}_{fractions[0]}_{into}",
        inputs,
        lambda r, x, y=None: (one.body(r, c, x, x if y is None else y),),
    )


for _one in ELEMENTWISE.values():
    for _fractions, _into in (((16, 16), 16), ((20, 4), 12), ((12, 0), 20)):
        _elementwise_case(_one, _fractions, _into)


def _quantize(r: Any, fmt: str, a: Any, b: Any, c: Any) -> list[Any]:
    x = elements(r, a, b, c)
    (m,) = r.sweep(lambda at: (abs(x(at)),), "largest")
    code, scale = quantise.quantize(r, x, m, 16, quantise.format_values(fmt), fmt == "fp8")
    return [*once(r, *scale), *each(r, code)]


for _fmt in ("int8", "int16", "uint8", "uint16", "fp8", "int4"):
    _x = FIXED if formats.FORMATS[_fmt].low else UNSIGNED
    formula(f"quantize_{_fmt}", dict.fromkeys("abc", _x), partial(_quantize, fmt=_fmt), 12)


def _static_case(fmt: str, value: float) -> None:
    inverse, form = Real.of(value), formats.FORMATS[fmt]
    limits = form.low, form.high, fmt == "fp8"
    places = inverse.exponent + 16 - 8 * limits[2]
    formula(
        f"quantize_static_{fmt}",
        {"x": FIXED},
        lambda r, x: (quantise.quantize_static(r, x, inverse.mantissa, places, *limits),),
    )


for _fmt, _value in (("int8", 0.37), ("int16", 800.0), ("fp8", 90000.0)):
    _static_case(_fmt, _value)
formula(
    "requantize",
    {"y": In(46), "m": MANTISSA, "e": EXPONENT, "bias": FIXED, "residual": FIXED},
    lambda r, y, m, e, bias, residual: (
        products.requantize(r, y, ScaleOf(m, e), 7, -7 - 12),
        products.requantize(r, y, ScaleOf(m, e), 7, 17 - 7 - 16, bias, residual),
    ),
    4,
)
formula("embed", {"row": In(25)}, lambda r, row: (products.embed(r, row, 8897168, 18 + 9 - 16),))
formula(
    "rotate",
    {"a": FIXED, "b": FIXED, "c": In(16), "s": In(16)},
    lambda r, **given: products.rotate(r, *given.values(), 14),
    3,
)


def _norm(r: Any, centred: bool, width: int, eps: float, gamma: Any, **x: Any) -> list[Any]:
    constants = norms.norm_values(Real.of(eps), width, 16, centred, -4)
    parts = elements(r, *x.values())
    if centred:
        parts = norms.centred(r, parts, width)
    element = norms.norm(r, parts, elements(r, *[gamma] * GROUP), constants)
    return each(r, element)


for _name, _arguments in {
    "rms_norm": (False, GROUP, 1e-5),
    "rms_norm_no_epsilon": (False, GROUP, 0.0),
    "layer_norm": (True, GROUP, 1e-5),
}.items():
    _keys = dict(zip(("centred", "width", "eps"), _arguments, strict=True))
    formula(_name, {"gamma": In(16), **PLACES}, partial(_norm, **_keys), 14)


formula(
    "score_scale",
    {"dot": In(42), "q": MANTISSA, "qe": EXPONENT, "k": MANTISSA, "ke": EXPONENT},
    lambda r, dot, q, qe, k, ke: (softmax.score_scale(r, dot, ScaleOf(q, qe), ScaleOf(k, ke), 3),),
    7,
)


def _softmax(r: Any, seen: Any, sink: Any, v: Any, e: Any, w: Any, f: Any, **s: Any) -> list[Any]:
    mantissa, exponent = elements(r, v, w, v), elements(r, e, f, f)
    mask = elements(r, -seen, -1, -seen)
    code, scale, total = softmax.softmax(
        r,
        elements(r, *s.values()),
        lambda at: ScaleOf(mantissa(at), exponent(at)),
        quantise.format_values("uint8"),
        mask,
        sink[..., None] if isinstance(r, Arrays) else sink,
    )
    return [*each(r, code), *once(r, *scale, total)]


_SCALES = {"v": MANTISSA, "e": EXPONENT, "w": In(24, False, 1 << 23), "f": EXPONENT}
formula("softmax", {"seen": In(1, False), "sink": FIXED, **_SCALES, **PLACES}, _softmax, 20)
formula(
    "reciprocal_scale",
    {"total": In(40, False, 1)},
    lambda r, total: softmax.reciprocal_scale(r, total, 24),
)


@pytest.mark.parametrize("name", CASES)
def test_equals_semantics_in_arc(name: str) -> None:
    text, values, counts = design_of(CASES[name])
    check(CASES[name], ArcModel(text, "top"), values, counts)


def test_any_depth_gives_the_same() -> None:
    """Fewer registers than cuts, as many, and more."""
    for depth in (0, 1, 2, 9, 17):
        given = CASES["quantize_int8"]
        shallow = Case(given.inputs, given.build, given.expect, depth)
        text, values, counts = design_of(shallow)
        check(shallow, ArcModel(text, "top"), values, counts)


def test_equals_semantics_in_verilator() -> None:
    """Some in one module: a build takes seconds."""
    try:
        compiler()
        verilator_root()
    except UserError as error:
        pytest.skip(str(error))
    some = {name: CASES[name] for name in ("softmax", "layer_norm", "shift_saturate")}

    def both(method: str) -> Callable[..., Any]:
        def call(*more: Any, **inputs: Any) -> Any:
            results = []
            for name, one in some.items():
                own = {key: inputs[f"{name}_{key}"] for key in one.inputs}
                results.append(getattr(one, method)(*more, **own))
            return tuple(results)

        return call

    inputs = {f"{name}_{key}": i for name, one in some.items() for key, i in one.inputs.items()}
    merged = Case(inputs, both("build"), both("expect"), 12)
    text, values, counts = design_of(merged)
    model = VerilatorModel(circt.to_verilog(text), "top")
    check(merged, model, values, counts)
    model.close()
