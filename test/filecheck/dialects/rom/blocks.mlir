// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP

// Codes with an exponent a block, and products that the factor of a norm follows.

rom.parameter @w : !rom.tensor<[128, 64], int4, group 32> {key = "w", zero = 8 : i64, exponent = 15 : i64}
rom.parameter @b : !rom.tensor<[128], fixed32> {key = "b", exponent = 16 : i64}
rom.parameter @up : !rom.tensor<[512, 64], int4, group 32, experts 4> {key = "up", zero = 8 : i64, exponent = 15 : i64}
rom.parameter @ub : !rom.tensor<[4, 128], fixed32> {key = "ub", exponent = 16 : i64}

%x, %r, %i = "test.op"() : () -> (!rom.fixed<64, 16>, !rom.fixed<128, 16>, !rom.routing<2, 4>)
%q = rom.quantize_blocks %x {onnx = [["MatMul"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, half8, 32, 16>
%m = rom.quantize_blocks %x {onnx = [["MatMul"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, mxint8, 128, -8>
%v = rom.quantize_blocks %x {onnx = [["MatMul"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, half8, 8, 16, wide "0,3-5">
%s = rom.rms_scale %x {eps = #rom.real<10995116, 40>, onnx = [["norm"]]} : !rom.fixed<64, 16> -> !rom.scale
// CHECK:      [[Q:%\w+]] = rom.quantize_blocks %{{\w+}} {onnx = {{\[}}["MatMul"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, half8, 32, 16>
// CHECK-NEXT: rom.quantize_blocks %{{\w+}} {onnx = {{\[}}["MatMul"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, mxint8, 128, -8>
// CHECK-NEXT: rom.quantize_blocks %{{\w+}} {onnx = {{\[}}["MatMul"]]} : !rom.fixed<64, 16> -> !rom.blocks<64, half8, 8, 16, wide "0,3-5">
// CHECK-NEXT: [[S:%\w+]] = rom.rms_scale %{{\w+}} {eps = #rom.real<10995116, 40>, onnx = {{\[}}["norm"]]} : !rom.fixed<64, 16> -> !rom.scale

%a = rom.dot %q by @w {onnx = [["MatMul"]]} : !rom.blocks<64, half8, 32, 16> -> !rom.accumulator<128, 49>
%y = rom.requantize %a scaled %q, @w {pre_shift = 10 : i64, onnx = [["MatMul"]]} : !rom.accumulator<128, 49>, !rom.blocks<64, half8, 32, 16> -> !rom.fixed<128, 16>
%n = rom.requantize %a scaled %q, @w norm %s {pre_shift = 10 : i64, onnx = [["MatMul"]]} : !rom.accumulator<128, 49>, !rom.blocks<64, half8, 32, 16> -> !rom.fixed<128, 16>
%z = rom.requantize %a scaled %q, @w bias @b residual %r norm %s {pre_shift = 10 : i64, onnx = [["MatMul"]]} : !rom.accumulator<128, 49>, !rom.blocks<64, half8, 32, 16>, !rom.fixed<128, 16> -> !rom.fixed<128, 16>
// CHECK-NEXT: [[A:%\w+]] = rom.dot [[Q]] by @w {onnx = {{\[}}["MatMul"]]} : !rom.blocks<64, half8, 32, 16> -> !rom.accumulator<128, 49>
// CHECK-NEXT: rom.requantize [[A]] scaled [[Q]], @w {pre_shift = 10
// CHECK-NEXT: rom.requantize [[A]] scaled [[Q]], @w norm [[S]] {pre_shift = 10
// CHECK-SAME:   : !rom.accumulator<128, 49>, !rom.blocks<64, half8, 32, 16> -> !rom.fixed<128, 16>
// CHECK-NEXT: rom.requantize [[A]] scaled [[Q]], @w bias @b residual %{{\w+}} norm [[S]] {pre_shift = 10
// CHECK-SAME:   : !rom.accumulator<128, 49>, !rom.blocks<64, half8, 32, 16>, !rom.fixed<128, 16> -> !rom.fixed<128, 16>

%e = rom.expert_product %q, %i expert 0 by @up {pre_shift = 10 : i64, onnx = [["QMoE"]]} : !rom.blocks<64, half8, 32, 16>, !rom.routing<2, 4> -> !rom.fixed<128, 16>
%f = rom.expert_product %q, %i expert 1 by @up bias @ub norm %s {pre_shift = 10 : i64, onnx = [["QMoE"]]} : !rom.blocks<64, half8, 32, 16>, !rom.routing<2, 4> -> !rom.fixed<128, 16>
// CHECK-NEXT: rom.expert_product [[Q]], %{{\w+}} expert 0 by @up {pre_shift = 10
// CHECK-NEXT: rom.expert_product [[Q]], %{{\w+}} expert 1 by @up bias @ub norm [[S]] {pre_shift = 10
// CHECK-SAME:   : !rom.blocks<64, half8, 32, 16>, !rom.routing<2, 4> -> !rom.fixed<128, 16>
