// RUN: intaglio-opt %s | intaglio-opt | filecheck %s

// CHECK-LABEL: hw.module @tables
hw.module @tables(in %i : i1, in %a : i8, out y : i4, out w : i8) {
  // CHECK-NEXT: %0 = hw.aggregate_constant [3 : i4, 2 : i4] : !hw.array<2xi4>
  %0 = hw.aggregate_constant [3 : i4, 2 : i4] : !hw.array<2xi4>
  %1 = hw.array_get %0[%i] : !hw.array<2xi4>, i1
  // CHECK: %named = hw.wire %a : i8
  %named = hw.wire %a : i8
  // CHECK-NEXT: %kept = hw.wire %a sym @kept {a = 1 : i8} : i8
  %kept = hw.wire %a sym @kept {a = 1 : i8} : i8
  hw.output %1, %named : i4, i8
}

// CHECK-LABEL: hw.module @rom
hw.module @rom(in %clk : !seq.clock, in %address : i4, in %enable : i1, out q : i36) {
  // CHECK-NEXT: %mem = seq.firmem sym @mem 1, 1, undefined, port_order : <16 x 36>
  %mem = seq.firmem sym @mem 1, 1, undefined, port_order : <16 x 36>
  // CHECK-NEXT: %0 = seq.firmem.read_port %mem[%address], clock %clk : <16 x 36>
  %0 = seq.firmem.read_port %mem[%address], clock %clk : <16 x 36>
  // CHECK-NEXT: %1 = seq.firmem.read_port %mem[%address], clock %clk enable %enable : <16 x 36>
  %1 = seq.firmem.read_port %mem[%address], clock %clk enable %enable : <16 x 36>
  hw.output %0 : i36
}

// CHECK-LABEL: hw.module @filled
hw.module @filled(in %clk : !seq.clock, in %address : i4, out q : i8) {
  // CHECK-NEXT: %mem = seq.firmem 0, 1, new, undefined {init = #seq.firmem.init<"bank.hex", false, true>} : <16 x 8>
  %mem = seq.firmem 0, 1, new, undefined {init = #seq.firmem.init<"bank.hex", false, true>} : <16 x 8>
  %0 = seq.firmem.read_port %mem[%address], clock %clk : <16 x 8>
  hw.output %0 : i8
}

// CHECK-LABEL: hw.module @sram
hw.module @sram(in %clk : !seq.clock, in %a : i4, in %d : i32, in %e : i1, in %m : i4, out q : i32) {
  // CHECK-NEXT: %mem = seq.firmem 1, 1, undefined, port_order : <16 x 32, mask 4>
  %mem = seq.firmem 1, 1, undefined, port_order : <16 x 32, mask 4>
  %0 = seq.firmem.read_port %mem[%a], clock %clk : <16 x 32, mask 4>
  // CHECK: seq.firmem.write_port %mem[%a] = %d, clock %clk enable %e mask %m : <16 x 32, mask 4>, i4
  seq.firmem.write_port %mem[%a] = %d, clock %clk enable %e mask %m : <16 x 32, mask 4>, i4
  // CHECK-NEXT: seq.firmem.write_port %mem[%a] = %d, clock %clk : <16 x 32, mask 4>
  seq.firmem.write_port %mem[%a] = %d, clock %clk : <16 x 32, mask 4>
  hw.output %0 : i32
}
