// The least L-Unit and tile: what is not needed is not there, and memories are wrapped.
// RUN: python -c "from intaglio.backend.hw.matrix_tile import build_matrix_unit as build; from intaglio.backend.hw.matrix_plan import MatrixConfig; from intaglio.backend.hw.signal import Design; from intaglio.backend.target import load_target; m = load_target('roma-mini').machine(); d = Design(); build(d, MatrixConfig(m, (), (2, 4), 30, 1, 0, 0, 100, 20, 1, 8, 1)); print(d.text())" | filecheck %s

// CHECK-LABEL: hw.module @l_unit(in %clk: !seq.clock, in %code_address: i7, in %scale_address: i5,
// CHECK-SAME:    in %x: i128, in %accumulate: i1, in %clear: i1, in %capture: i1, out result: i30)
// CHECK:         hw.instance "codes" @rom_100x32(
// CHECK:         hw.instance "scales" @rom_20x16(
// CHECK-COUNT-16: comb.mul
// CHECK:         %accumulator = seq.compreg

// CHECK-LABEL: hw.module @rom_100x32(
// CHECK:         seq.firmem sym @mem 1, 1, undefined, port_order : <100 x 32>

// CHECK-LABEL: hw.module @matrix_unit(
// CHECK-SAME:    in %scale_address3: i5
// CHECK-SAME:    in %split: i1, in %deliver: i1
// CHECK-SAME:    out result3: i30)
// CHECK-COUNT-4: hw.instance "l_unit{{[0-3]}}" @l_unit(
// CHECK-NOT:     hw.instance
