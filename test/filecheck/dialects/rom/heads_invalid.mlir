// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize_heads %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, int8>
// CHECK: 'int8' has no exponents of heads; half8 has

// -----

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize_heads %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, mxint8>
// CHECK: 'mxint8' has no exponents of heads; half8 has

// -----

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize_heads %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 32, half8>
// CHECK: 4 groups of 32 do not cover 64 elements

// -----

rom.cache @k : !rom.kv<128, 2, 16, half8, static>
// CHECK: half8 has a scale a head, no static one

// -----

rom.cache @k : !rom.kv<128, 2, 16, mxint8>
// CHECK: unknown KV format 'mxint8', known are int4, int8, int16, fp8, half8, and float32 before legalisation

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%x, %p = "test.op"() : () -> (!rom.fixed<32, 16>, index)
%q = rom.quantize_heads %x {onnx = [["n"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, half8>
rom.append %q to @k at %p {onnx = [["n"]]} : !rom.quantized<2, 16, half8>
// CHECK: @k takes 2 groups of int8, not 2 of half8

// -----

rom.cache @v : !rom.kv<128, 2, 16, int8>
%s, %p = "test.op"() : () -> (!rom.scores<4, 16>, index)
%w = rom.softmax %s over @v at %p {onnx = [["n"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, places8>
// CHECK: probabilities of places8 take values of half8, whose scales are never 0; @v has int8
