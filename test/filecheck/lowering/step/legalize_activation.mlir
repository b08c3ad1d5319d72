// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=int16"},rom-legalize' %s | filecheck %s --check-prefix=INT16
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=fp8"},rom-legalize' %s | filecheck %s --check-prefix=FP8

// What the graph rounds to int8 is rounded to int8 where the machine's integers are wider, beside a
// product of the same vector that it does not round. The share of zeros stays with the matrix.

rom.parameter @w : !rom.tensor<[96, 64], ternary> {key = "w", zero = 1 : i64, zero_fraction = 0.25 : f64, peak = 0.5 : f64}
rom.parameter @v : !rom.tensor<[32, 64], ternary> {key = "v", zero = 1 : i64, peak = 0.5 : f64}
rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {key = "a", zero = 128 : i64, peak = 0.5 : f64}
rom.cache @k : !rom.kv<128, 2, 16, float32>
// CHECK: rom.parameter @w : !rom.tensor<[96, 64], ternary> {{.*}}zero_fraction = 2.500000e-01 : f64

rom.layer @body {
^bb0(%p: index, %x: tensor<64xf32>):
  %y = rom.linear %x by @w {activation = "int8", onnx = [["y"]]} : tensor<64xf32> -> tensor<96xf32>
  %z = rom.linear %x by @v {activation = "int8", onnx = [["z"]]} : tensor<64xf32> -> tensor<32xf32>
  %l = rom.linear %x by @a {onnx = [["l"]]} : tensor<64xf32> -> tensor<8xf32>
  rom.yield %x : tensor<64xf32>
}
// One quantisation serves all three where the machine has int8 or FP8 throughout.
// CHECK:      [[Q:%\w+]] = rom.quantize {{.*}} -> !rom.quantized<1, 64, int8>
// CHECK-NEXT: rom.dot [[Q]] by @w
// CHECK:      rom.dot [[Q]] by @v
// CHECK:      rom.dot [[Q]] by @a
// CHECK-NOT:  activation =

// INT16:      [[Q:%\w+]] = rom.quantize {{.*}} -> !rom.quantized<1, 64, int8>
// INT16-NEXT: rom.dot [[Q]] by @w
// INT16:      rom.dot [[Q]] by @v
// INT16:      [[W:%\w+]] = rom.quantize {{.*}} -> !rom.quantized<1, 64, int16>
// INT16-NEXT: rom.dot [[W]] by @a

// FP8:        [[Q:%\w+]] = rom.quantize {{.*}} -> !rom.quantized<1, 64, fp8>
// FP8-NEXT:   rom.dot [[Q]] by @w
// FP8:        rom.dot [[Q]] by @a
