// RUN: xdsl-opt -p 'attach-target{target=roma-mini}' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma},attach-target{target=roma-mini set="activations=int16","kv=fp8","l_unit.rom_bits=4096"}' %s | filecheck %s --check-prefix=SET
// RUN: not xdsl-opt -p 'attach-target{target=tom-min}' %s 2>&1 | filecheck %s --check-prefix=UNKNOWN
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="kv=int9","tyles=3"}' %s 2>&1 | filecheck %s --check-prefix=OPTIONS

// The chip becomes the first operation of the module; a second target replaces the first.

rom.cache @k : !rom.kv<128, 2, 16, float32>

// CHECK:      builtin.module {
// CHECK-NEXT:   fabric.machine {name = "roma-mini"
// CHECK-SAME:     tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64
// CHECK-SAME:     activations = "half8", kv = "half8", probabilities = "places8"
// CHECK-NEXT:   rom.cache @k

// SET:      builtin.module {
// SET-NEXT:   fabric.machine {name = "roma-mini"
// SET-SAME:     rom_bits = 4096 : i64
// SET-SAME:     activations = "int16", kv = "fp8", probabilities = "uint16"
// SET-NEXT:   rom.cache @k

// UNKNOWN: no target is called 'tom-min'
// UNKNOWN: help: {{.*}}roma, roma-mini, tom, tom-mini

// OPTIONS: --set kv=int9: formats.kv is 'int9', not among the choices
// OPTIONS: help: allowed: one of int8, int16, fp8
// OPTIONS: --set tyles=3: target 'roma-mini' has no parameter 'tyles'
