"""The recurrence of linear attention: its formulas restated in Python's integers, and in floats."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from intaglio.dialects import semantics
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas import recurrence
from intaglio.dialects.formulas.arrays import Arrays
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.semantics import Matrices

LIMIT = recurrence.STATE_LIMIT


def fixed(x, fraction):
    return np.round(np.asarray(x) * 2.0**fraction).astype(np.int64)


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


# --- the decay ----------------------------------------------------------------------------------


def test_factor_of_slow_decays():
    """An error of it counts over its difference to 1."""
    x = np.concatenate([np.geomspace(1e-5, 0.5, 4000), [2**-6, 2**-6 - 2**-24]])
    codes = fixed(x, 24)
    found = recurrence.decay_factor(Arrays(), -codes, 24) / 2.0**24
    exact = np.exp(-codes / 2.0**24)
    slow = codes < 1 << 18
    assert np.abs(found - exact)[slow].max() < 2**-24
    assert (np.abs(found - exact) / exact)[~slow].max() < 2**-20


@pytest.mark.parametrize("fraction", [8, 16, 24, 30])
def test_factor_at_the_ends(fraction):
    """0 and what is positive keep all; what is far below keeps nothing."""
    logarithm = np.array([0, 1, 2**31 - 1, -(2**31), max(-100 << fraction, -(2**31))])
    found = recurrence.decay_factor(Arrays(), logarithm, fraction)
    assert found[:3].tolist() == [1 << 24] * 3
    if fraction < 27:
        assert found[3:].tolist() == [0, 0]


def test_factor_falls():
    x = np.arange(0, 3 << 18, 7)
    found = recurrence.decay_factor(Arrays(), -x, 24)
    # Where the polynomial ends it may rise by what the table is off.
    assert np.diff(found).max() <= 16
    assert found.min() >= 0 and found.max() == 1 << 24


# --- the exponent -------------------------------------------------------------------------------


def test_no_element_leaves_its_width():
    """For any state, decay, key and news, at their largest too."""
    rng, r = np.random.default_rng(1), Arrays()
    for _ in range(2000):
        fmt = ("int8", "int16")[rng.integers(2)]
        limit = FORMATS[fmt].limit
        top = int(rng.integers(0, LIMIT + 1)) if rng.random() < 0.9 else LIMIT
        factor = int(rng.integers(0, (1 << 24) + 1)) >> int(rng.integers(0, 26))
        exponent, frac = int(rng.integers(-10, 61)), int(rng.integers(8, 31))
        largest = int(rng.integers(0, 1 << 31)) >> int(rng.integers(0, 32))
        mantissa = int(rng.integers(1 << 23, 1 << 24)) if rng.random() < 0.95 else 0
        key = ScaleOf(np.array(mantissa), np.array(int(rng.integers(10, 50))))
        one = recurrence.news(
            r, np.array(largest), key, limit, frac, np.array(top), np.array(exponent),
            np.array(factor),
        )  # fmt: skip
        w = recurrence.added(r, np.array(largest), key.mantissa, one.places)
        assert 0 <= w <= LIMIT
        assert one.exponent <= recurrence.FINEST
        exact = Fraction(top * factor, 1) / Fraction(2) ** (exponent + 24)
        places = frac + int(key.exponent) - int(one.places)
        exact += Fraction(limit * int(w)) / Fraction(2) ** places
        assert exact * Fraction(2) ** int(one.exponent) < LIMIT + 1
        found = recurrence.remembered(r, np.array(top), np.array(limit), np.array(factor), w, one)
        assert abs(int(found) - exact * Fraction(2) ** int(one.exponent)) <= 1 + Fraction(1, 64)
        if exact and one.exponent < recurrence.FINEST:
            # No more than two bits are left free, unless a term is nothing but its last bits.
            small = top * factor < 1 << 16 or limit * int(w) < 1 << 16
            assert small or found >= LIMIT // 5


def test_a_state_that_is_nothing_keeps_its_exponent():
    r, zero = Arrays(), np.array(0)
    one = recurrence.news(
        r, zero, ScaleOf(zero, zero), 127, 16, zero, np.array(7), np.array(1 << 24)
    )
    assert int(one.exponent) == 7


def test_an_element_by_hand():
    """``(S * g * 2**-24 + k * w)`` at the new exponent, half up; guards keep it within 1/256."""
    rng, r = np.random.default_rng(3), Arrays()
    for _ in range(500):
        s, k, w = (int(rng.integers(-n, n + 1)) for n in (LIMIT, 127, LIMIT))
        factor = int(rng.integers(0, (1 << 24) + 1))
        old, new = int(rng.integers(20, 45)), int(rng.integers(8, 40))
        one = recurrence.News(*(np.array(n) for n in (0, 0, old, new)))
        arrays = [np.array(n) for n in (s, k, factor, w)]
        found = int(recurrence.remembered(r, *arrays, one))
        exact = Fraction(s * factor, 1 << old) + Fraction(k * w, 1 << new)
        expected = max(-LIMIT, min(LIMIT, half_up(exact)))
        assert abs(found - max(-LIMIT, min(LIMIT, exact))) <= Fraction(1, 2) + Fraction(1, 256)
        assert abs(found - expected) <= 1


# --- the whole ----------------------------------------------------------------------------------


def example(rng, heads, groups, width, columns, tokens, decay):
    """Queries over the root of their width, keys of length 1, values, gates."""
    q, k = (rng.standard_normal((tokens, groups, width)) for _ in "qk")
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    v = rng.standard_normal((tokens, heads, columns))
    d = -decay * rng.uniform(0.5, 1.5, (tokens, heads))
    return q / math.sqrt(width), k, v, d, 1 / (1 + np.exp(-rng.standard_normal((tokens, heads))))


def floats(q, k, v, d, b, rule, state=None):
    """The same in float64: LinearAttention as its operator is defined."""
    tokens, heads, columns = v.shape
    repeat = heads // q.shape[1]
    q, k = np.repeat(q, repeat, 1), np.repeat(k, repeat, 1)
    s = np.zeros((heads, q.shape[-1], columns)) if state is None else state.values
    out = np.empty(v.shape)
    for t in range(tokens):
        u = v[t]
        if "gated" in rule:
            s = s * np.exp(d[t])[:, None, None]
        if "delta" in rule:
            u = (u - np.einsum("hkv,hk->hv", s, k[t])) * b[t][:, None]
        s = s + k[t][:, :, None] * u[:, None, :]
        out[t] = np.einsum("hkv,hk->hv", s, q[t])
    return out, s


def integers(q, k, v, d, b, rule, fmt, state=None, fraction=20):
    tokens, heads, columns = v.shape
    groups, width = q.shape[1:]
    query, key = (
        semantics.quantize(fixed(x.reshape(tokens, -1), 24), fmt, 24, groups) for x in (q, k)
    )
    saturations = semantics.Saturations()
    out, state = semantics.linear_attention(
        query,
        key,
        fixed(v.reshape(tokens, -1), 16),
        fixed(d, 24) if "gated" in rule else None,
        fixed(b, 20) if "delta" in rule else None,
        state or Matrices.empty(heads, width, columns),
        fractions=(16, 24, 20, fraction),
        shift=semantics.pre_shift(semantics.state_sum_bits(width, fmt)),
        saturations=saturations,
    )
    assert saturations.count == 0
    read = [x.values.reshape(tokens, groups, width) for x in (query, key)]
    return out.reshape(tokens, heads, columns) / 2.0**fraction, state, read


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("fmt", ["int8", "int16"])
@pytest.mark.parametrize(
    ("heads", "groups", "width", "columns"),
    [(1, 1, 1, 1), (2, 1, 4, 8), (4, 2, 16, 16), (3, 3, 8, 5), (2, 2, 64, 32), (4, 1, 128, 24)],
)
def test_as_in_floats(rule, fmt, heads, groups, width, columns):
    """Of the codes that queries and keys have: what is lost is the state's."""
    rng = np.random.default_rng(7)
    q, k, v, d, b = example(rng, heads, groups, width, columns, 40, 0.05)
    found, state, (read, written) = integers(q, k, v, d, b, rule, fmt)
    expected, last = floats(read, written, v, d, b, rule)
    assert np.abs(found - expected).max() < 4e-4 * np.abs(expected).max()
    assert np.abs(state.values - last).max() < 4e-4 * np.abs(last).max()


@pytest.mark.parametrize("decay", [0.1, 0.01, 0.001, 0.0])
def test_it_does_not_drift(decay):
    """Mean error of the last tokens of 600, of the range: below a thousandth, not growing."""
    rng = np.random.default_rng(11)
    q, k, v, d, b = example(rng, 4, 4, 32, 32, 600, decay)
    found, _, (read, written) = integers(q, k, v, d, b, "gated_delta", "int8")
    expected, _ = floats(read, written, v, d, b, "gated_delta")
    error = np.abs(found - expected).mean(axis=(1, 2)) / np.abs(expected).max()
    assert error[-50:].mean() < 3e-4
    assert error[-50:].mean() < 1.6 * error[250:300].mean()


def test_tokens_together_and_one_by_one():
    rng = np.random.default_rng(2)
    q, k, v, d, b = example(rng, 4, 2, 8, 8, 12, 0.1)
    whole, last, _ = integers(q, k, v, d, b, "gated_delta", "int8")
    state, parts = None, []
    for cut in (slice(0, 1), slice(1, 7), slice(7, 12)):
        part, state, _ = integers(
            *(x[cut] for x in (q, k, v, d, b)), "gated_delta", "int8", state=state
        )
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(state.mantissas, last.mantissas)
    np.testing.assert_array_equal(state.exponents, last.exponents)


def test_forgetting_at_once_and_values_of_nothing():
    """A decay that leaves nothing, keys, queries and values of 0."""
    rng = np.random.default_rng(4)
    q, k, v, d, b = example(rng, 2, 2, 4, 4, 6, 1.0)
    d[3], k[4], v[5], q[2] = -100.0, 0.0, 0.0, 0.0
    found, state, (read, written) = integers(q, k, v, d, b, "gated_delta", "int16")
    expected, last = floats(read, written, v, d, b, "gated_delta")
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(state.values - last).max() < 1e-4
    nothing = integers(0 * q, 0 * k, 0 * v, d, b, "gated_delta", "int8")
    assert not nothing[0].any() and not nothing[1].mantissas.any()
