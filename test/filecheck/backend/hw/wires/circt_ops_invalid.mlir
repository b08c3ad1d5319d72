// RUN: intaglio-opt %s --verify-diagnostics --split-input-file | filecheck %s

// CHECK: 1 fields for an array of 2 elements
hw.module @short(out y : !hw.array<2xi4>) {
  %0 = hw.aggregate_constant [3 : i4] : !hw.array<2xi4>
  hw.output %0 : !hw.array<2xi4>
}

// -----

// CHECK: 8 bits do not split into 3 masked parts
hw.module @parts() {
  %mem = seq.firmem 1, 1, undefined, port_order : <16 x 8, mask 3>
  hw.output
}

// -----

// CHECK: mask is i2, the memory has 4 bits
hw.module @mask(in %clk : !seq.clock, in %a : i4, in %d : i8, in %m : i2) {
  %mem = seq.firmem 1, 1, undefined, port_order : <16 x 8, mask 4>
  seq.firmem.write_port %mem[%a] = %d, clock %clk mask %m : <16 x 8, mask 4>, i2
  hw.output
}

// -----

// CHECK: no such behaviour: sometimes, port_order
hw.module @behaviour() {
  %mem = seq.firmem 1, 1, sometimes, port_order : <16 x 8>
  hw.output
}
