// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP

// A family is the matrices of all experts, the rows of one behind those of the other.

rom.parameter @up : !rom.tensor<[512, 64], int4, group 32, experts 4> {key = "up", zero = 8 : i64}
rom.parameter @down : !rom.tensor<[256, 64], int2, group 16, zeros, experts 4> {key = "down"}
rom.parameter @up_bias : !rom.tensor<[4, 128], float32> {key = "up_bias"}
// CHECK:      rom.parameter @up : !rom.tensor<[512, 64], int4, group 32, experts 4> {key = "up", zero = 8 : i64}
// CHECK-NEXT: rom.parameter @down : !rom.tensor<[256, 64], int2, group 16, zeros, experts 4>

// The router's logits choose two of four; of equal ones the last, or the first.

%x, %logits = "test.op"() : () -> (tensor<64xf32>, tensor<4xf32>)
%r = rom.route %logits {onnx = [["QMoE"]]} : tensor<4xf32> -> !rom.routing<2, 4>
%s = rom.route %logits {lowest, over_all, onnx = [["TopK"]]} : tensor<4xf32> -> !rom.routing<3, 4>
// CHECK:      %[[R:\w+]] = rom.route %{{\w+}} {onnx = {{\[}}["QMoE"]]} : tensor<4xf32> -> !rom.routing<2, 4>
// CHECK-NEXT: rom.route %{{\w+}} {lowest, over_all, onnx = {{\[}}["TopK"]]} : tensor<4xf32> -> !rom.routing<3, 4>

// One after the other: products, the limits of SwiGLU, the share of each, added to what is there.

%h = rom.expert_linear %x, %r expert 0 by @up bias @up_bias {onnx = [["QMoE"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<128xf32>
%g = rom.slice %h from 0 {onnx = [["QMoE"]]} : tensor<128xf32> -> tensor<64xf32>
%c = rom.clip %g {high = 7.0 : f64, onnx = [["QMoE"]]} : tensor<64xf32> -> tensor<64xf32>
%y = rom.expert_linear %c, %r expert 1 by @down {onnx = [["QMoE"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
%z = rom.weigh %y, %r expert 0 {onnx = [["QMoE"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
%w = rom.weigh %y, %r expert 1 plus %z {onnx = [["QMoE"]]} : tensor<64xf32>, !rom.routing<2, 4>, tensor<64xf32> -> tensor<64xf32>
// CHECK-NEXT: rom.expert_linear %{{\w+}}, %[[R]] expert 0 by @up bias @up_bias
// CHECK-SAME:   : tensor<64xf32>, !rom.routing<2, 4> -> tensor<128xf32>
// CHECK:      rom.clip %{{\w+}} {high = 7.000000e+00 : f64, onnx
// CHECK-NEXT: rom.expert_linear %{{\w+}}, %[[R]] expert 1 by @down {onnx
// CHECK-NEXT: %[[Z:\w+]] = rom.weigh %{{\w+}}, %[[R]] expert 0 {onnx
// CHECK-NEXT: rom.weigh %{{\w+}}, %[[R]] expert 1 plus %[[Z]] {onnx

// In the integer stage the product is one operation.

%q, %f = "test.op"() : () -> (!rom.quantized<1, 64, int8>, !rom.fixed<4, 16>)
%i = rom.route %f {onnx = [["QMoE"]]} : !rom.fixed<4, 16> -> !rom.routing<1, 4>
%p = rom.expert_product %q, %i expert 0 by @up {pre_shift = 2 : i64, onnx = [["QMoE"]]} : !rom.quantized<1, 64, int8>, !rom.routing<1, 4> -> !rom.fixed<128, 16>
// CHECK:      rom.expert_product %{{\w+}}, %{{\w+}} expert 0 by @up {pre_shift = 2 : i64, onnx
// CHECK-SAME:   : !rom.quantized<1, 64, int8>, !rom.routing<1, 4> -> !rom.fixed<128, 16>
