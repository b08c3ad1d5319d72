// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

%q = "test.op"() : () -> !rom.blocks<64, int8, 32, 16>
// CHECK: 'int8' has no exponents of blocks; half8, mxint8 have

// -----

%q = "test.op"() : () -> !rom.blocks<48, half8, 0, 16>
// CHECK: a block of 0 elements is no power of two

// -----

%q = "test.op"() : () -> !rom.blocks<48, mxint8, 24, 16>
// CHECK: a block of 24 elements is no power of two

// -----

%q = "test.op"() : () -> !rom.blocks<0, half8, 1, 16>
// CHECK: there are 0 elements, at least 1 is needed

// -----

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, half8>
// CHECK: half8

// -----

%x = "test.op"() : () -> !rom.fixed<32, 16>
%q = rom.quantize_blocks %x {onnx = [["n"]]} : !rom.fixed<32, 16> -> !rom.blocks<64, half8, 32, 16>
// CHECK: 64 codes do not cover 32 elements

// -----

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize_blocks %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, half8, 32, 19>
// CHECK: the least exponent would be -1, and may be 0 to 24

// -----

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize_blocks %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, mxint8, 32, -9>
// CHECK: the least exponent would be 25, and may be 0 to 24

// -----

rom.parameter @w : !rom.tensor<[128, 64], int4, group 32> {key = "k"}
%q = "test.op"() : () -> !rom.blocks<32, half8, 32, 16>
%a = rom.dot %q by @w {onnx = [["n"]]} : !rom.blocks<32, half8, 32, 16> -> !rom.accumulator<128, 49>
// CHECK: @w has shape [128, 64], the operation needs [128, 32]

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%a, %q, %s = "test.op"() : () -> (!rom.accumulator<64, 40>, !rom.quantized<1, 64, int8>, !rom.scale)
%y = rom.requantize %a scaled %q, @w norm %s {pre_shift = 0 : i64, onnx = [["n"]]} : !rom.accumulator<64, 40>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
// CHECK: a quantised vector has its scale; only blocks take that of a norm

// -----

rom.parameter @w : !rom.tensor<[256, 64], int4, group 32, experts 4> {key = "k"}
%q, %r, %s = "test.op"() : () -> (!rom.quantized<1, 64, int8>, !rom.routing<2, 4>, !rom.scale)
%y = rom.expert_product %q, %r expert 0 by @w norm %s {pre_shift = 0 : i64, onnx = [["n"]]} : !rom.quantized<1, 64, int8>, !rom.routing<2, 4> -> !rom.fixed<64, 16>
// CHECK: a quantised vector has its scale; only blocks take that of a norm

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%a, %q, %s = "test.op"() : () -> (!rom.accumulator<64, 40>, !rom.blocks<64, half8, 32, 16>, !rom.fixed<1, 16>)
%y = "rom.requantize"(%a, %q, %s) <{weights = @w, pre_shift = 0 : i64, onnx = [["n"]], operandSegmentSizes = array<i32: 1, 1, 0, 1>}> : (!rom.accumulator<64, 40>, !rom.blocks<64, half8, 32, 16>, !rom.fixed<1, 16>) -> !rom.fixed<64, 16>
// CHECK: Expected attribute !rom.scale but got !rom.fixed<1, 16>

// -----

%x = "test.op"() : () -> !rom.fixed<16, 16>
%k = "test.op"() : () -> !rom.blocks<32, half8, 16, 16>
rom.cache @k : !rom.kv<128, 2, 16, int8>
%p = "test.op"() : () -> index
rom.append %k to @k at %p {onnx = [["n"]]} : !rom.blocks<32, half8, 16, 16>
// CHECK: Unexpected attribute !rom.blocks<32, half8, 16, 16>

// -----

%x = "test.op"() : () -> !rom.fixed<20000, 16>
%s = rom.rms_scale %x {eps = #rom.real<10995116, 40>, onnx = [["n"]]} : !rom.fixed<20000, 16> -> !rom.scale
// CHECK: norms take up to 16384 elements, not 20000

// -----

%x = "test.op"() : () -> !rom.fixed<64, 16>
%s = rom.rms_scale %x {eps = #rom.real<8388608, -30>, onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.scale
// CHECK: is beyond the sum of squares

// -----

// CHECK: wide blocks: '3-' is no list of numbers and ranges such as 3,17-20
%q = "test.op"() : () -> !rom.blocks<64, half8, 32, 16, wide "3-">

// -----

// CHECK: wide blocks: '1-0' ends before it begins
%q = "test.op"() : () -> !rom.blocks<64, half8, 32, 16, wide "1-0">

// -----

// CHECK: wide blocks "1,0" are written as "0-1"
%q = "test.op"() : () -> !rom.blocks<64, half8, 32, 16, wide "1,0">

// -----

// CHECK: block 2 is to be wide; there are 2, from 0 to 1
%q = "test.op"() : () -> !rom.blocks<64, half8, 32, 16, wide "2">
