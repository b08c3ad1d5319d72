"""Faults of hardware text: the same for the same seed, one line each, still hardware."""

from __future__ import annotations

import pytest

from intaglio.backend import circt

TEXT = """\
builtin.module {
  hw.module @unit(in %clk: !seq.clock, in %rst: i1, in %a: i8, in %b: i8, out y: i8, out z: i1) {
    %0 = hw.constant 0 : i8
    %count = seq.compreg %1, %clk reset %rst, %0 : i8
    %2 = hw.constant 3 : i8
    %3 = comb.add %count, %2 : i8
    %4 = comb.icmp ult %a, %b : i8
    %1 = comb.mux %4, %3, %a : i8
    %5 = comb.extract %a from 2 : (i8) -> i4
    %6 = comb.extract %b from 4 : (i8) -> i4
    %7 = comb.concat %5, %6 : i4, i4
    %8 = comb.sub %7, %count : i8
    %9 = comb.icmp eq %8, %2 : i8
    %10 = hw.aggregate_constant [5 : i8, 6 : i8] : !hw.array<2xi8>
    %11 = hw.array_get %10[%9] : !hw.array<2xi8>, i1
    %12 = comb.xor %11, %8 : i8
    hw.output %12, %9 : i8, i1
  }
  hw.module @sram_4x8(in %x: i8, out y: i8) {
    %0 = comb.add %x, %x : i8
    hw.output %0 : i8
  }
}
"""


def test_drawn_faults(script):
    module = script("mutant_text")
    kinds: set[str] = set()
    for seed in range(8):
        found = list(module.mutants(TEXT, seed, 100))
        assert found == list(module.mutants(TEXT, seed, 100))
        assert len({one.line for one in found}) == len(found) >= 11
        assert all(one.module == "unit" and one.old in TEXT for one in found)
        for one in found[:4]:
            other = one.of(TEXT)
            assert other != TEXT
            circt.verify(other)
        kinds |= set(module.changes(found))
    for kind in ("mux arms swapped", "register without reset", "icmp eq becomes ne"):
        assert kind in kinds
    assert any("table entry" in kind for kind in kinds)
    assert any("extract from" in kind for kind in kinds)


def test_text_of_one_module_for_a_proof(script):
    module = script("mutant_proof")
    tied = module.tied(TEXT, "unit", {"a": (0b11110000, 0b01010000), "b": (0, 0)})
    circt.verify(tied)
    assert "%a.given" in tied and "%b.given" not in tied
    alone = module.only(TEXT, "unit")
    circt.verify(alone)
    assert "sram_4x8" not in alone
    outside, stubs = module.outside(TEXT)
    circt.verify(outside)
    assert "hw.module.extern @sram_4x8(" in outside and "module sram_4x8(" in stubs


def test_the_same_and_not_the_same(script, tmp_path):
    pytest.importorskip("pyosys")
    module = script("mutant_proof")
    # 8 bits of a sum do not see what is above them; a constant input decides a comparison.
    same = TEXT.replace("%12 = comb.xor %11, %8", "%12 = comb.xor %8, %11")
    assert module.unproven(TEXT, same, "unit", {}, tmp_path / "a") is None
    other = TEXT.replace("icmp ult", "icmp slt")
    assert module.unproven(TEXT, other, "unit", {}, tmp_path / "b") is not None
    positive = {"a": (0x80, 0), "b": (0x80, 0)}
    assert module.unproven(TEXT, other, "unit", positive, tmp_path / "c") is None
