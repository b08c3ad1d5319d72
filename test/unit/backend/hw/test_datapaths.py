"""Every datapath against `dialects.semantics`, combinational and pipelined, in the arc model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from intaglio.backend import circt
from intaglio.backend.hw import datapaths as hw
from intaglio.backend.hw.signal import Design, Signal, pipelined
from intaglio.dialects import codes, semantics
from intaglio.dialects import fixed_point as fp
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real, Saturations, Scale
from intaglio.dialects.tables import TABLES, lookup, table
from intaglio.runtime.arc import ArcModel
from intaglio.runtime.model import Model, signed
from intaglio.runtime.verilator import VerilatorModel, compiler

Ints = npt.NDArray[np.int64]
VECTORS = 4000


@dataclass(frozen=True)
class In:
    """An input: its type, and the values it may take."""

    width: int
    signed: bool = True
    low: int | None = None
    high: int | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        low = -(1 << (self.width - 1)) if self.signed else 0
        high = (1 << (self.width - self.signed)) - 1
        return (
            low if self.low is None else self.low,
            high if self.high is None else self.high,
        )

    def values(self, rng: np.random.Generator, count: int) -> Ints:
        """Random numbers of all sizes, and the ends of the range."""
        low, high = self.bounds
        size = rng.integers(0, self.width + 1, count)
        value = rng.integers(low, high, count, endpoint=True) >> size
        value = np.clip(value, low, high)
        ends = [low, low + 1, -1, 0, 1, high - 1, high]
        ends += [sign * (1 << i) + d for i in range(self.width) for sign in (1, -1) for d in (-1, 0)]
        fitting = np.array([e for e in ends if low <= e <= high], np.int64)
        some = rng.random(count) < 0.2
        return np.where(some, rng.choice(fitting, count), value)


FIXED = In(32)
MANTISSA = In(24, False)
NORMAL = In(24, False, 1 << 23)
EXPONENT = In(8, True, -60, 90)
COUNT = In(8)


@dataclass(frozen=True)
class Case:
    inputs: Mapping[str, In]
    build: Callable[..., Any]
    """Signals by input name to a result: signals and tuples of them."""
    expect: Callable[..., Any]
    """The same of integer arrays."""
    constrain: Callable[[dict[str, Ints]], None] | None = None
    """Changes random inputs so that they respect the function's conditions."""


def flatten(result: Any) -> list[Any]:
    if isinstance(result, tuple):
        return [part for one in result for part in flatten(one)]
    return [result]


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The elements' saturations, one vector at a time, beside the result."""

    def call(**inputs: Ints) -> tuple[Any, ...]:
        value = function(Saturations(), **inputs)
        # The counter adds up; to know them apart, runs on halves would be slow: count by element.
        total = Saturations()
        function(total, **inputs)
        return value, total.count

    return call


def model_of(case: Case, name: str, depth: int) -> tuple[str, list[Signal]]:
    design = Design()
    m = design.module(name)
    valid = m.input("valid", 1)
    signals = {
        key: m.input(key, spec.width, spec.signed).assume(*spec.bounds)
        for key, spec in case.inputs.items()
    }
    outputs = flatten(case.build(**signals))
    for i, signal in enumerate(outputs):
        m.output(f"y{i}", signal)

    def function(*arguments: Signal) -> tuple[Signal, ...]:
        return tuple(flatten(case.build(**dict(zip(signals, arguments, strict=True)))))

    later = pipelined(function, list(signals.values()), depth, valid)
    for i, signal in enumerate(later.outputs):
        m.output(f"z{i}", signal)
    assert later.valid is not None
    m.output("ready", later.valid)
    return design.text(), outputs


def simulate(
    model: Model, case: Case, outputs: Sequence[Signal], depth: int, inputs: Mapping[str, Ints]
) -> tuple[list[Ints], list[Ints]]:
    """The combinational results, and the pipelined ones."""
    count = len(next(iter(inputs.values())))
    rng = np.random.default_rng(7)
    # Gaps in the stream: what is not valid must not disturb what is.
    valid = (rng.random(count) < 0.8).astype(np.int64)
    model.set("rst", 1)
    model.step(2)
    model.set("rst", 0)
    trace = model.run(count, {**inputs, "valid": valid})
    model.set("valid", 0)
    rest = model.run(depth)
    now = [typed(trace.outputs[f"y{i}"], s) for i, s in enumerate(outputs)]
    ready = np.concatenate([trace.outputs["ready"], rest.outputs["ready"]])
    assert (ready == np.concatenate([np.zeros(depth), valid])).all()
    late = []
    for i, signal in enumerate(outputs):
        both = np.concatenate([trace.outputs[f"z{i}"], rest.outputs[f"z{i}"]])
        late.append(np.where(valid, typed(both, signal)[depth:], now[i]))
    return now, late


def typed(values: Any, signal: Signal) -> Ints:
    return signed(values, signal.width) if signal.signed else values.astype(np.int64)


def check(case: Case, model: Model, outputs: Sequence[Signal], depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = {key: spec.values(rng, VECTORS) for key, spec in case.inputs.items()}
    if case.constrain is not None:
        case.constrain(inputs)
    expected = flatten(case.expect(**inputs))
    now, late = simulate(model, case, outputs, depth, inputs)
    assert len(expected) == len(now)
    for i, (want, got, after) in enumerate(zip(expected, now, late, strict=True)):
        want = np.broadcast_to(np.asarray(want, np.int64), got.shape)
        for which, seen in (("now", got), ("pipelined", after)):
            wrong = np.flatnonzero(want != seen)
            if wrong.size:
                k = wrong[0]
                where = {key: int(values[k]) for key, values in inputs.items()}
                pytest.fail(
                    f"output {i} {which}: {wrong.size} wrong; {where} gives {seen[k]}, "
                    f"not {want[k]}"
                )


# One element at a time: the semantics take vectors, so the last axis gets length 1 where a
# function works over it, and saturations are counted element by element.


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a function that counts saturations so that each element's count comes with it."""

    def call(**inputs: Ints) -> Any:
        count = np.zeros(len(next(iter(inputs.values()))), np.int64)

        class Each(Saturations):
            """Knows which elements the last comparison changed."""

        original = np.count_nonzero

        def counting(array: Any) -> int:
            count[:] += np.asarray(array).reshape(len(count), -1).sum(axis=1)
            return int(original(array))

        np.count_nonzero = counting
        try:
            value = function(Each(), **inputs)
        finally:
            np.count_nonzero = original
        return value, count

    return call


def column(x: Ints) -> Ints:
    return x[:, None]


def _scale_of(mantissa: Ints, exponent: Ints) -> Scale:
    return Scale(mantissa, exponent)


def _shifted(inputs: dict[str, Ints]) -> None:
    """z is the normalise of a group maximum that is at least |x|."""
    m = np.maximum(np.abs(inputs["x"]), inputs.pop("m"))
    inputs["z"] = np.minimum(inputs["z"], fp.normalise(m))


def quantize_case(fmt: str) -> Case:
    form = codes.FORMATS[fmt]
    x = FIXED if form.low else In(32, False, 0, (1 << 31) - 1)

    def build(x: Signal, m: Signal) -> Any:
        most = hw.larger(hw.magnitude(x, fmt), m)
        scalars = hw.quantize_scalars(most, 16, fmt)
        code = hw.quantize_element(x, scalars.z, scalars.rl, fmt)
        return code, scalars.scale

    def expect(x: Ints, m: Ints) -> Any:
        got = semantics.quantize(np.stack([x, m], axis=1), fmt)
        return got.codes[:, 0], (got.scale.mantissa[:, 0], got.scale.exponent[:, 0])

    return Case({"x": x, "m": In(31, False)}, build, expect)


def static_case(fmt: str, value: float) -> Case:
    inverse = Real.of(value)

    def expect(saturations: Saturations, x: Ints) -> Any:
        return semantics.quantize_static(x, fmt, inverse, 16, saturations)

    return Case(
        {"x": FIXED}, lambda x: tuple(hw.quantize_static(x, fmt, inverse)), each(expect)
    )


def norm_case(centred: bool, width: int, eps: float) -> Case:
    """A vector of `width` whose elements are x, m and zeros."""
    real = Real.of(eps)
    constants = semantics.norm_constants(real, width, 16, centred)

    def build(x: Signal, m: Signal, gamma: Signal, beta: Signal) -> Any:
        zero = x.module.constant(0)
        parts = [x, m, zero]
        if centred:
            parts = [hw.centre(part, x + m, width) for part in parts]
        most = hw.larger(hw.larger(abs(parts[0]), abs(parts[1])), abs(parts[2]))
        z = hw.norm_shift(most, constants)
        squares = [hw.norm_square(part, z) for part in parts]
        total = squares[0] + squares[1] + squares[2] * (width - 2)
        scalars = hw.norm_scalars(total.assume(0, (1 << 62) - 1), z, constants)
        y = hw.norm_element(parts[0], z, scalars, gamma, 12, 16, beta if centred else None)
        return tuple(y)

    def expect(saturations: Saturations, x: Ints, m: Ints, gamma: Ints, beta: Ints) -> Any:
        vectors = np.zeros((len(x), width), np.int64)
        vectors[:, 0], vectors[:, 1] = x, m
        y = np.empty(len(x), np.int64)
        total = 0
        for i, vector in enumerate(vectors):
            weight = np.zeros(width, np.int64)
            weight[0] = gamma[i]
            if centred:
                offset = np.zeros(width, np.int64)
                offset[0] = beta[i]
                result = semantics.layer_norm(vector, weight, 12, offset, real)
            else:
                result = semantics.rms_norm(vector, weight, 12, real)
            y[i] = result[0]
        return y, total

    return Case({"x": FIXED, "m": FIXED, "gamma": In(16), "beta": FIXED}, build, expect)
