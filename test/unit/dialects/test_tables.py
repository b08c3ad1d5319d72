"""Tables: the interpolation formula, the stated error bounds, and determinism."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from intaglio.dialects.tables import GATE_FRAC, TABLES, Table, lookup, table

GATE_FUNCTIONS = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "gelu_tanh": lambda x: (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu_erf": lambda x: (1 + math.erf(x / math.sqrt(2))) / 2,
    "quick_gelu": lambda x: 1 / (1 + math.exp(-1.702 * x)),
    "tanh": math.tanh,
    "mish": lambda x: math.tanh(math.log1p(math.exp(min(x, 64) - 16))),
    "elu": lambda x: -math.expm1(min(x - 16, 0)),
    "softplus": lambda x: math.log1p(math.exp(-x)),
}


def slow_lookup(t: Table, argument: int) -> int:
    i, f = divmod(argument, 1 << t.step_bits)
    i -= t.lo_index
    if i >= len(t.entries) - 1:
        return t.entries[-1]
    step = (t.entries[i + 1] - t.entries[i]) * f
    return t.entries[i] + ((step + (1 << (t.step_bits - 1))) >> t.step_bits)


@pytest.mark.parametrize("name", TABLES)
def test_lookup_is_the_stated_formula(name: str) -> None:
    t = table(name)
    low = t.lo_index << t.step_bits
    rng = np.random.default_rng(1)
    edges = (np.arange(len(t.entries)) + t.lo_index) << t.step_bits
    arguments = np.concatenate(
        [edges, edges[1:] - 1, rng.integers(low, t.end, 2000), [t.end + 1, 1 << 40]]
    )
    assert lookup(t, arguments).tolist() == [slow_lookup(t, int(a)) for a in arguments]


@pytest.mark.parametrize("name", TABLES)
def test_values_and_differences_have_the_stated_widths(name: str) -> None:
    t = table(name)
    limit = 1 << t.value_bits
    assert all(0 <= entry < limit for entry in t.entries)
    deltas = np.diff(np.array(t.entries))
    assert np.abs(deltas).max() < 1 << (t.delta_bits - 1)
    assert t.value_bits in ((GATE_FRAC, GATE_FRAC + 1) if t.out_frac else (24,))


def test_reciprocal_everywhere() -> None:
    for start in range(1 << 23, 1 << 24, 1 << 21):
        m = np.arange(start, start + (1 << 21))
        r = lookup(table("reciprocal"), m)
        assert np.abs(r * m / 2**47 - 1).max() < 2**-21
        assert r.min() >= 1 << 23
        assert r.max() < 1 << 24


def test_rsqrt() -> None:
    v = np.unique(np.concatenate([np.arange(1 << 30, 1 << 32, 4099), [(1 << 32) - 1]]))
    r = lookup(table("rsqrt"), v)
    assert np.abs(r * np.sqrt(v) / 2**39 - 1).max() < 2**-21
    assert r.min() >= 1 << 23
    assert r.max() < 1 << 24


def test_exp2_everywhere() -> None:
    f = np.arange(1 << 16)
    p = lookup(table("exp2"), f)
    assert np.abs(p / 2**24 * 2 ** (f / 2**16) - 1).max() < 2**-21
    assert p[0] == 2**24 - 1
    assert p.min() > 1 << 23
    assert (np.diff(p) <= 0).all()


@pytest.mark.parametrize("name", GATE_FUNCTIONS)
def test_gates(name: str) -> None:
    x = np.concatenate([np.arange(0, 33 << 16, 11), [40 << 16, 2**31]])
    exact = np.vectorize(GATE_FUNCTIONS[name])(x / 2**16)
    y = lookup(table(name), x)
    assert np.abs(y / 2**GATE_FRAC - exact).max() < 2**-18
    limit = round(GATE_FUNCTIONS[name](60)) << GATE_FRAC
    assert y[-1] == limit
    assert (np.diff(y) * (1 if limit else -1) >= 0).all()


@pytest.mark.parametrize("name", GATE_FUNCTIONS)
def test_gate_entries_are_nearest(name: str) -> None:
    t = table(name)
    x = np.arange(len(t.entries)) / 2 ** (16 - t.step_bits)
    exact = np.vectorize(GATE_FUNCTIONS[name])(x[:-1]) * 2**GATE_FRAC
    assert np.abs(np.array(t.entries[:-1]) - exact).max() <= 0.5 + 1e-6


def test_entries_never_change() -> None:
    # What is etched must be what was verified: the bits of all tables, forever.
    text = repr([(t.name, t.lo_index, t.step_bits, t.entries) for t in map(table, TABLES)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f8fb73e2ccc731cd"


def test_unknown_name() -> None:
    with pytest.raises(KeyError):
        table("cosh")
