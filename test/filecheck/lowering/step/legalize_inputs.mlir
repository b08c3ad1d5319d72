// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8","activations.up=int16","activations.b_node=half8"},rom-legalize' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=half8","activations.up=int8"},rom-legalize' %s | filecheck %s --check-prefix=BLOCKS
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=half8","activations.up=int16","wide.b_node=0,2-3"},rom-legalize' %s | filecheck %s --check-prefix=WIDE

rom.parameter @g : !rom.tensor<[64], float32> {key = "g", peak = 1.0 : f64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w", zero = 8 : i64, peak = 0.01 : f64}
rom.parameter @up : !rom.tensor<[64, 64], int4, group 32, zeros> {key = "up", peak = 0.5 : f64}
rom.parameter @c : !rom.tensor<[64, 64], int4, group 32, zeros> {key = "c", peak = 0.5 : f64}

// Three products of one input: each reads its own rounding of it, in one operation a format. A norm
// folds only where all of its products take blocks.
rom.layer @three {
^bb0(%p: index, %x: tensor<64xf32>):
  %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  %a = rom.linear %n by @w {onnx = [["a_node"]]} : tensor<64xf32> -> tensor<64xf32>
  %z = rom.linear %n by @up {onnx = [["z_node"]]} : tensor<64xf32> -> tensor<64xf32>
  %b = rom.linear %n by @c {onnx = [["b_node"]]} : tensor<64xf32> -> tensor<64xf32>
  %s = rom.add %a, %z {onnx = [["s"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %t = rom.add %s, %b {onnx = [["t"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  rom.yield %t : tensor<64xf32>
}
// CHECK:      rom.layer @three {
// CHECK:        [[N:%\w+]] = rom.rms_norm
// CHECK-NEXT:   [[A:%\w+]] = rom.quantize [[N]] {{.*}} -> !rom.quantized<1, 64, int8>
// CHECK-NEXT:   rom.dot [[A]] by @w
// CHECK:        [[Z:%\w+]] = rom.quantize [[N]] {{.*}} -> !rom.quantized<1, 64, int16>
// CHECK-NEXT:   rom.dot [[Z]] by @up
// CHECK:        [[B:%\w+]] = rom.quantize_blocks [[N]] {{.*}} -> !rom.blocks<64, half8, 16, 16>
// CHECK-NEXT:   rom.dot [[B]] by @c
// BLOCKS:       [[N:%\w+]] = rom.rms_norm
// BLOCKS-NEXT:  [[A:%\w+]] = rom.quantize_blocks [[N]]
// BLOCKS-NEXT:  rom.dot [[A]] by @w
// BLOCKS:       [[Z:%\w+]] = rom.quantize [[N]] {{.*}} -> !rom.quantized<1, 64, int8>
// BLOCKS-NEXT:  rom.dot [[Z]] by @up
// BLOCKS:       rom.dot [[A]] by @c
// Of int16 all blocks are wide, and it folds too.
// WIDE:         [[N:%\w+]] = rom.tap
// WIDE-NEXT:    [[A:%\w+]] = rom.quantize_blocks [[N]] {{.*}} -> !rom.blocks<64, half8, 16, 11>
// WIDE-NEXT:    rom.dot [[A]] by @w {{.*}} -> !rom.accumulator<64, 50>
// WIDE:         [[Z:%\w+]] = rom.quantize_blocks [[N]] {{.*}} -> !rom.blocks<64, half8, 16, 11, wide "0-3">
// WIDE-NEXT:    rom.dot [[Z]] by @up {{.*}} -> !rom.accumulator<64, 50>
// WIDE:         [[B:%\w+]] = rom.quantize_blocks [[N]] {{.*}} -> !rom.blocks<64, half8, 16, 11, wide "0,2-3">
// WIDE-NEXT:    rom.dot [[B]] by @c
