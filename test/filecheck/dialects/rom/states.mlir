// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP
// A convolution over three taps: two states, one product a tap.

rom.parameter @t0 : !rom.tensor<[64], float32> {key = "onnx::t0", peak = 1.0 : f64}
rom.parameter @t1 : !rom.tensor<[64], float32> {key = "onnx::t1", peak = 1.0 : f64}
rom.parameter @t2 : !rom.tensor<[64], float32> {key = "onnx::t2", peak = 1.0 : f64}
rom.parameter @b : !rom.tensor<[64], float32> {key = "onnx::b", peak = 1.0 : f64}
rom.state @c1 : !rom.state<64>
rom.state @c2 : !rom.state<64>
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%d1 = rom.delay %x in @c1 at %p {onnx = [["conv"]]} : tensor<64xf32> -> tensor<64xf32>
%d2 = rom.delay %d1 in @c2 at %p {onnx = [["conv"]]} : tensor<64xf32> -> tensor<64xf32>
%a = rom.tap %d2 by @t0 bias @b {onnx = [["conv"]]} : tensor<64xf32> -> tensor<64xf32>
%c = rom.tap %d1 by @t1 onto %a {onnx = [["conv"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
%y = rom.tap %x by @t2 onto %c {onnx = [["conv"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>

// CHECK:      rom.state @c1 : !rom.state<64>
// CHECK:      %[[D1:.*]] = rom.delay %{{.*}} in @c1 at %{{.*}} {onnx = {{\[}}["conv"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK:      %[[D2:.*]] = rom.delay %[[D1]] in @c2
// CHECK:      %[[A:.*]] = rom.tap %[[D2]] by @t0 bias @b
// CHECK:      rom.tap %[[D1]] by @t1 onto %[[A]]
