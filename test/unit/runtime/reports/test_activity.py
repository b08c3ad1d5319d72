"""Reads, writes and operations of a token, and the energy they take."""

from dataclasses import replace

import pytest

from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.backend.target.target import load_target
from intaglio.runtime.reports.activity import PARTS, Activity, activity, energy, figures_of
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.what_if import WhatIf


@pytest.fixture
def program(compiled):
    return load_program(compiled("llama"))


def test_attention_is_counted_from_the_caches(program):
    here, there = activity(program, 0), activity(program, 5)
    layers = len(program.caches) // 2
    cache = next(iter(program.caches.values()))
    vector = cache.heads * cache.width
    # Each token more is read once as a key and once as a value, in every layer.
    assert there.h_unit_bytes - here.h_unit_bytes == 5 * 2 * layers * vector
    # Of the first token: keys and values are written, then read.
    assert here.h_unit_bytes == 4 * layers * vector
    assert (there.products - here.products) % 5 == 0
    assert there.products == 6 * here.products
    assert here.operations < there.operations and here.value_bytes < there.value_bytes
    assert here.external_bytes == 0


def test_keys_are_read_again_for_more_heads_than_are_multiplied_at_once(program):
    machine = program.machine
    once, often = (
        activity(replace(program, machine=replace(machine, query_parallel=n)), 3) for n in (64, 1)
    )
    assert often.h_unit_bytes >= once.h_unit_bytes and often.products == once.products


def test_wider_multipliers_take_fewer_products(program):
    narrow = replace(program, machine=replace(program.machine, multiplier_bits=4))
    assert activity(narrow, 3).products == 4 * activity(program, 3).products


def test_an_adapter_in_slots_is_read_by_its_rank(model):
    program = WhatIf(model("llama"), Options("roma-mini", adapter_rank=4)).built().program
    empty = activity(program, 2)
    full = activity(program, 2, dict.fromkeys(program.sites, 3))
    elements = sum(3 * (site.rows + site.columns) for site in program.sites.values())
    assert full.products - empty.products == elements
    assert full.h_unit_bytes - empty.h_unit_bytes == elements


def test_a_state_is_read_twice_and_written_once(compiled):
    program = load_program(compiled("recurrent"))
    state = next(iter(program.matrices.values()))
    size = state.heads * state.key_width * state.value_width * len(program.matrices)
    assert activity(program, 0).h_unit_bytes >= 3 * size * 2
    # It does not grow; what grows is the cache of other layers.
    vectors = sum(cache.heads * cache.width for cache in program.caches.values())
    assert activity(program, 9).h_unit_bytes - activity(program, 0).h_unit_bytes == 9 * vectors


def test_energies_are_the_targets():
    target = load_target("roma")
    counts = Activity(0, products=10, h_unit_bytes=20, operations=30, value_bytes=40)
    found = energy(target, counts)
    assert found is not None
    assert found["h_unit_bytes"] == pytest.approx(20e-9 * target.number("energy.h_unit_byte_pj"))
    assert set(found) == {"products", "h_unit_bytes", "operations", "value_bytes"}
    assert set(figures_of(target)) == {key for key, _ in PARTS.values()} - {
        "energy.external_byte_pj"
    }
    # roma has no external memory, so what would be read from it has no energy.
    assert energy(target, Activity(0, external_bytes=1)) is None
    assert energy(load_target("hc1"), counts) is None


def test_parts_add_up(compiled):
    power = inspect_json(compiled("llama"))["power"]
    for one in power["positions"]:
        spent = one["activity"]
        assert sum(spent["parts"].values()) == pytest.approx(spent["millijoules"])
        assert spent["parts"]["l_units"] == pytest.approx(one["l_units"]["millijoules"])
    assert power["activity"]["figures"]["energy.h_unit_byte_pj"]["origin"] == "assumed"
