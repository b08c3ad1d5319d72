// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP
// RUN: xdsl-opt -t descriptor-listing %s | filecheck %s --check-prefix=WORDS

// Descriptors as a power controller and a matrix array are told them. In a word the first field has the lowest bits:
// waits, as wide as the largest needs, then the units' own fields. A matrix's one scale is no number of the program.

program.queue "power" short 1 fields [#program.field<"wake", 1, "1: switch on, 0: switch off">, #program.field<"domain", 3, "number of the domain">] {
  program.descriptor "wake" of @layer instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 5 : i64}
  program.descriptor "sleep" of @layer instance 1 number 3 waits {matrix = 2 : i64} fields {wake = 0 : i64, domain = 4 : i64}
}
program.queue "matrix" short 0 fields [#program.field<"places", 12 signed, "places to shift by">, #program.field<"mantissa", 16 signed, "one scale">] {
  program.descriptor "matvec" of @layer instance 0 number 1 waits {power = 1 : i64} fields {places = -7 : i64, mantissa = @w} {onnx = ["/q_proj/MatMul"]}
}

// CHECK:      program.queue "power" short 1 fields [#program.field<"wake", 1, "1: switch on, 0: switch off">, #program.field<"domain", 3, "number of the domain">] {
// CHECK-NEXT:   program.descriptor "wake" of @layer instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 5 : i64}
// CHECK-NEXT:   program.descriptor "sleep" of @layer instance 1 number 3 waits {matrix = 2 : i64} fields {wake = 0 : i64, domain = 4 : i64}
// CHECK:      program.queue "matrix" short 0 fields [#program.field<"places", 12 signed, "places to shift by">, #program.field<"mantissa", 16 signed, "one scale">] {
// CHECK-NEXT:   program.descriptor "matvec" of @layer instance 0 number 1 waits {power = 1 : i64} fields {places = -7 : i64, mantissa = @w} {onnx = ["/q_proj/MatMul"]}

// WORDS:      power: 6 bits
// WORDS-NEXT:   wait_matrix 2: instructions of matrix that must have finished
// WORDS-NEXT:   wake 1: 1: switch on, 0: switch off
// WORDS-NEXT:   domain 3: number of the domain
// WORDS-NEXT:   0: 2c layer[0] wake wait_matrix=0 wake=1 domain=5
// WORDS-NEXT:   1: 22 layer[1] sleep wait_matrix=2 wake=0 domain=4
// WORDS-NEXT: matrix: 29 bits
// WORDS:        0: 00001ff3 layer[0] matvec wait_power=1 places=-7 mantissa=@w
