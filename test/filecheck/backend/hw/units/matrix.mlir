// The least L-Unit and tile: what is not needed is not there, and memories are wrapped.
// RUN: python %S/matrix_unit.py roma-mini grouped | filecheck %s
// RUN: python %S/matrix_unit.py bitrom-mini single | filecheck %s --check-prefix=TERNARY

// CHECK-LABEL: hw.module @l_unit(in %clk: !seq.clock, in %rst: i1, in %code_address: i7, in %scale_address: i5,
// CHECK-SAME:    in %x: i128, in %valid: i1, in %clear: i1, in %capture: i1, out result: i30)
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

// Cells of -1, 0 and +1 and one scale for the matrix: nothing multiplies, and no ROM holds scales.
// TERNARY-LABEL: hw.module @l_unit(
// TERNARY-NOT:     "scales"
// TERNARY-NOT:     comb.mul
// TERNARY:       hw.module @matrix_unit(
