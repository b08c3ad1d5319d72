// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

rom.parameter @w : !rom.tensor<[64, 64], ternary> {key = "k", zero_fraction = 1.5 : f64}
// CHECK: `zero_fraction` is for matrices, from 0 to 1

// -----

rom.parameter @w : !rom.tensor<[64], float32> {key = "k", zero_fraction = 0.5 : f64}
// CHECK: `zero_fraction` is for matrices, from 0 to 1

// -----

rom.parameter @w : !rom.tensor<[64, 64], ternary> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w {activation = "int5", onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: unknown format 'int5', known are int4, int8, int16, fp8
