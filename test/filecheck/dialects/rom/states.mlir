// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP
// A convolution over three taps: two states, one product a tap.

rom.parameter @t0 : !rom.tensor<[64], float32> {key = "onnx::t0", peak = 1.0 : f64}
rom.parameter @t1 : !rom.tensor<[64], float32> {key = "onnx::t1", peak = 1.0 : f64}
rom.parameter @t2 : !rom.tensor<[64], float32> {key = "onnx::t2", peak = 1.0 : f64}
rom.parameter @b : !rom.tensor<[64], float32> {key = "onnx::b", peak = 1.0 : f64}
rom.state @c1 : !rom.state<64>
rom.state @c2 : !rom.state<64>
rom.state @s1 : !rom.matrices<4, 8, 16>
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%d1 = rom.delay %x in @c1 at %p {onnx = [["conv"]]} : tensor<64xf32> -> tensor<64xf32>
%d2 = rom.delay %d1 in @c2 at %p {onnx = [["conv"]]} : tensor<64xf32> -> tensor<64xf32>
%a = rom.tap %d2 by @t0 bias @b {onnx = [["conv"]]} : tensor<64xf32> -> tensor<64xf32>
%c = rom.tap %d1 by @t1 onto %a {onnx = [["conv"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
%y = rom.tap %x by @t2 onto %c {onnx = [["conv"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
%q, %k, %g1, %g2 = "test.op"() : () -> (tensor<16xf32>, tensor<32xf32>, tensor<4xf32>, tensor<4xf32>)
%z = rom.linear_attention %q, %k, %x gates %g1, %g2 in @s1 at %p {rule = "gated_delta", onnx = [["LinearAttention"]]} : tensor<16xf32>, tensor<32xf32>, tensor<64xf32>, tensor<4xf32>, tensor<4xf32> -> tensor<64xf32>
%o = rom.linear_attention %q, %q, %x in @s1 at %p {rule = "linear", onnx = [["LinearAttention"]]} : tensor<16xf32>, tensor<16xf32>, tensor<64xf32> -> tensor<64xf32>
%c1, %v, %g = "test.op"() : () -> (!rom.quantized<2, 8, int16>, !rom.fixed<64, 16>, !rom.fixed<4, 24>)
%i = rom.linear_attention %c1, %c1, %v gates %g in @s1 at %p {rule = "gated", pre_shift = 0 : i64, onnx = [["LinearAttention"]]} : !rom.quantized<2, 8, int16>, !rom.quantized<2, 8, int16>, !rom.fixed<64, 16>, !rom.fixed<4, 24> -> !rom.fixed<64, 20>

// CHECK:      rom.state @c1 : !rom.state<64>
// CHECK:      %[[D1:.*]] = rom.delay %{{.*}} in @c1 at %{{.*}} {onnx = {{\[}}["conv"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK:      %[[D2:.*]] = rom.delay %[[D1]] in @c2
// CHECK:      %[[A:.*]] = rom.tap %[[D2]] by @t0 bias @b
// CHECK:      rom.tap %[[D1]] by @t1 onto %[[A]]
// CHECK:      rom.linear_attention %{{.*}}, %{{.*}}, %{{.*}} gates %{{.*}}, %{{.*}} in @s1 at %{{.*}} {rule = "gated_delta", onnx = {{\[}}["LinearAttention"]]}
// CHECK:      rom.linear_attention %{{.*}}, %{{.*}}, %{{.*}} in @s1 at %{{.*}} {rule = "linear", onnx = {{\[}}["LinearAttention"]]}
// CHECK:      rom.linear_attention %{{.*}}, %{{.*}}, %{{.*}} gates %{{.*}} in @s1 at %{{.*}} {rule = "gated", pre_shift = 0 : i64
