"""The network of a ROM bank against its truth table, at every address."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.backend.images.logic_rom import Gate, Network, plain_network, share, shared_network


def ternary(rows: int, columns: int, zeros: float, seed: int = 0) -> list[int]:
    """Words of random weights in the code 00, 01, 10."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, (rows, columns), p=[zeros, (1 - zeros) / 2, (1 - zeros) / 2])
    return [sum(c << 2 * place for place, c in enumerate(row)) for row in codes.tolist()]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Words, their bits, address bits: of any size, dense, sparse, with equal rows."""
    bits = draw(st.integers(1, 9))
    kinds = draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=4))
    word = st.sampled_from([0, (1 << bits) - 1, *kinds]) | st.integers(0, (1 << bits) - 1)
    words = draw(st.lists(word, max_size=40))
    needed = max(0, len(words) - 1).bit_length()
    return words, bits, needed + draw(st.integers(0, 2))


def well_formed(network: Network) -> bool:
    """Gates use what is before them, no constants, each input once, and no two are equal."""
    for place, gate in enumerate(network.gates):
        inputs = gate.inputs
        if len(inputs) < 2 or any(a >= b for a, b in pairwise(inputs)):
            return False
        if inputs[0] < 2 or inputs[-1] >> 1 > network.inputs + place:
            return False
    return len(set(network.gates)) == len(network.gates)


@settings(max_examples=150, deadline=None)
@given(tables(), st.data())
def test_network_equals_the_table(table: tuple[list[int], int, int], data: st.DataObject) -> None:
    words, bits, inputs = table
    blocks = data.draw(st.none() | st.integers(0, inputs))
    whole = [*words, *[0] * ((1 << inputs) - len(words))]
    for network in (
        shared_network(words, bits, inputs, blocks),
        plain_network(words, bits, inputs),
    ):
        assert network.table() == whole
        assert len(network.outputs) == bits
        assert well_formed(network)


@pytest.mark.parametrize(
    ("words", "bits", "inputs", "gates"),
    [
        ([], 3, 0, 0),
        ([], 0, 0, 0),
        ([5], 3, 0, 0),
        ([0] * 7, 4, 3, 0),
        ([3] * 8, 2, 3, 0),
        ([0, 1], 1, 1, 0),
        ([1, 0], 1, 1, 0),
        ([0, 0, 0, 1], 1, 2, 1),
    ],
    ids=["empty", "no bits", "one word", "zeros", "ones", "wire", "inverter", "and"],
)
def test_the_least(words: list[int], bits: int, inputs: int, gates: int) -> None:
    network = shared_network(words, bits, inputs)
    assert len(network.gates) == gates
    assert network.table() == [*words, *[0] * ((1 << inputs) - len(words))]


def test_sizes_of_real_banks() -> None:
    """Sharing saves a quarter of the connections and more; same table, same network."""
    words = ternary(200, 64, 0.42)
    network = shared_network(words, 128, 8)
    assert network.table() == [*words, *[0] * 56]
    assert network == shared_network(list(words), 128, 8)
    assert network.connections < 0.75 * plain_network(words, 128, 8).connections


def test_a_third_code_that_is_rare_saves() -> None:
    """With few zeros a plane comes from the other and the zeros."""
    words = ternary(256, 8, 0.1)
    swapped = [word ^ 0x1_0000 for word in words]
    # A bit beside them breaks the pairs: 17 bits, all shifted by one.
    apart = [word << 1 | 1 for word in words]
    assert shared_network(words, 16).connections < 0.85 * shared_network(apart, 17).connections
    assert shared_network(swapped, 17).table() == swapped


def test_dense_columns_are_inverted() -> None:
    words = ternary(128, 8, 0.9)
    dense = [word ^ 0xFFFF for word in words]
    assert shared_network(dense, 16).connections == shared_network(words, 16).connections


def test_pairs_of_lines() -> None:
    """Lines 0 and 1 are together in three columns, with 2 in two of them."""
    matrix = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
    pairs, terms = share(matrix)
    assert [set(pair) for pair in pairs] == [{0, 1}, {2, 3}]
    assert terms == [[4], [4], [3], [1]]


def test_many_pairs() -> None:
    """More lines than fit the first array: sums of what is left are the columns."""
    rng = np.random.default_rng(3)
    matrix = rng.random((64, 300)) < 0.5
    pairs, terms = share(matrix)
    assert len(pairs) > 600
    sums = [*np.eye(64, dtype=int)]
    for one, other in pairs:
        sums.append(sums[one] + sums[other])
    for column, left in zip(matrix.T, terms, strict=True):
        np.testing.assert_array_equal(sum(sums[term] for term in left), column)


def test_evaluate_some_inputs() -> None:
    """NAND and NOR of two inputs for the cases 00, 01, 11."""
    network = Network(2, (Gate("and", (2, 4)), Gate("or", (2, 4))), (7, 9, 1, 0, 3))
    assert network.evaluate([0b110, 0b100], 0b111) == [0b011, 0b001, 0b111, 0, 0b001]
    assert network.inverted == 3
    assert network.connections == 4


@pytest.mark.parametrize(
    ("words", "bits", "inputs", "blocks", "message"),
    [
        ([1, 1, 1], 1, 1, None, "3 words need 2 address bits, not 1"),
        ([4], 2, 0, None, "more than 2 bits"),
        ([1, 1], 2, 1, 2, "2 of 1 address bits"),
    ],
)
def test_what_does_not_fit(
    words: list[int], bits: int, inputs: int, blocks: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shared_network(words, bits, inputs, blocks)
