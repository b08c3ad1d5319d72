// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=half8"},rom-legalize' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=half8"},rom-legalize,rom-fuse-residual' %s | xdsl-opt | filecheck %s --check-prefix=FUSED
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=mxint8","formats.block=32"},rom-legalize' %s | filecheck %s --check-prefix=MX
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize' %s | filecheck %s --check-prefix=INT8

rom.parameter @emb : !rom.tensor<[256, 24], float32> {key = "e", peak = 0.1 : f64}
rom.parameter @g : !rom.tensor<[64], float32> {key = "g", peak = 1.0 : f64}
rom.parameter @h : !rom.tensor<[16], float32> {key = "h", peak = 1.0 : f64}
rom.parameter @w : !rom.tensor<[128, 64], int4, group 32> {key = "w", zero = 8 : i64, peak = 0.01 : f64}
rom.parameter @up : !rom.tensor<[64, 64], int4, group 32, zeros> {key = "up", peak = 0.5 : f64}
rom.parameter @odd : !rom.tensor<[64, 24], int4, group 8, zeros> {key = "odd", peak = 0.5 : f64}
rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {key = "a", peak = 0.5 : f64}
rom.parameter @ex : !rom.tensor<[256, 64], int4, group 32, experts 4> {key = "ex", zero = 8 : i64, peak = 0.5 : f64}
rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.cache @v : !rom.kv<128, 2, 16, float32>

// Only products read the norm: weights, which have sqrt(64) in them, go into the codes, and the
// factor follows all of the products. The codes reach 2**26 units of the stream.
rom.layer @folded {
^bb0(%p: index, %x: tensor<64xf32>, %l: tensor<4xf32>):
  %r = rom.route %l {onnx = [["r"]]} : tensor<4xf32> -> !rom.routing<2, 4>
  %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  %y = rom.linear %n by @w {onnx = [["y"]]} : tensor<64xf32> -> tensor<128xf32>
  %z = rom.linear %n by @up {onnx = [["z"]]} : tensor<64xf32> -> tensor<64xf32>
  %e = rom.expert_linear %n, %r expert 0 by @ex {onnx = [["e"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
  %t = rom.add %x, %z {onnx = [["t"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %s = rom.add %t, %e {onnx = [["s"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  rom.yield %s, %l : tensor<64xf32>, tensor<4xf32>
}
// CHECK:      rom.layer @folded {
// CHECK:        [[S:%\w+]] = rom.rms_scale [[X:%\w+]] {eps = #rom.real<10995116, 40>, onnx = {{\[}}["n"]]} : !rom.fixed<64, 16> -> !rom.scale
// CHECK-NEXT:   [[T:%\w+]] = rom.tap [[X]] by @g {{.*}} : !rom.fixed<64, 16> -> !rom.fixed<64, 13>
// CHECK-NEXT:   [[B:%\w+]] = rom.quantize_blocks [[T]] {onnx = {{\[}}["y"]]} : !rom.fixed<64, 13> -> !rom.blocks<64, half8, 16, 11>
// CHECK-NEXT:   [[D:%\w+]] = rom.dot [[B]] by @w {{.*}} : !rom.blocks<64, half8, 16, 11>
// CHECK-NEXT:   rom.requantize [[D]] scaled [[B]], @w norm [[S]]
// CHECK-NEXT:   [[E:%\w+]] = rom.dot [[B]] by @up
// CHECK-NEXT:   rom.requantize [[E]] scaled [[B]], @up norm [[S]]
// CHECK-NEXT:   rom.expert_product [[B]], %{{\w+}} expert 0 by @ex norm [[S]]
// CHECK-NOT:    rom.rms_norm
// The residual is added behind the factor.
// FUSED:        rom.requantize {{.*}}, @up residual %{{\w+}} norm %{{\w+}} {pre_shift
// MX:           rom.quantize_blocks {{.*}} : !rom.fixed<64, 13> -> !rom.blocks<64, mxint8, 32, 9>
// INT8:         rom.rms_norm
// INT8-NOT:     rom.rms_scale
// INT8-NOT:     rom.quantize_blocks

// Something else reads the norm too: it is worked out, and its blocks have a window of their own.
rom.layer @read {
^bb0(%p: index, %x: tensor<64xf32>):
  %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  %z = rom.linear %n by @up {onnx = [["z"]]} : tensor<64xf32> -> tensor<64xf32>
  %s = rom.add %z, %n {onnx = [["s"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  rom.yield %s : tensor<64xf32>
}
// CHECK:      rom.layer @read {
// CHECK-NEXT: ^
// CHECK-NEXT:   [[N:%\w+]] = rom.rms_norm
// CHECK-NEXT:   [[B:%\w+]] = rom.quantize_blocks [[N]] {{.*}} -> !rom.blocks<64, half8, 16, 16>
// CHECK-NEXT:   [[D:%\w+]] = rom.dot [[B]] by @up
// CHECK-NEXT:   rom.requantize [[D]] scaled [[B]], @up {pre_shift

// A norm of each head has several factors.
rom.layer @heads {
^bb0(%p: index, %x: tensor<64xf32>):
  %n = rom.rms_norm %x by @h {eps = 1.0e-05 : f64, groups = 4 : i64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  %z = rom.linear %n by @up {onnx = [["z"]]} : tensor<64xf32> -> tensor<64xf32>
  rom.yield %z : tensor<64xf32>
}
// CHECK:      rom.layer @heads {
// CHECK:        rom.rms_norm
// CHECK-NEXT:   rom.quantize_blocks
// CHECK-NOT:    norm %

// What the graph rounds itself keeps its codes of one scale, so its sums stay those of the graph.
rom.layer @rounded {
^bb0(%p: index, %x: tensor<64xf32>):
  %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  %y = rom.linear %n by @w {activation = "int8", onnx = [["y"]]} : tensor<64xf32> -> tensor<128xf32>
  %z = rom.linear %n by @up {onnx = [["z"]]} : tensor<64xf32> -> tensor<64xf32>
  rom.yield %z : tensor<64xf32>
}
// CHECK:      rom.layer @rounded {
// CHECK:        [[N:%\w+]] = rom.rms_norm
// CHECK-NEXT:   [[Q:%\w+]] = rom.quantize [[N]] {{.*}} -> !rom.quantized<1, 64, int8>
// CHECK-NEXT:   rom.dot [[Q]] by @w
// CHECK:        [[B:%\w+]] = rom.quantize_blocks [[N]]
// CHECK-NEXT:   rom.dot [[B]] by @up

// An adapter beside takes the same codes, and the factor follows it too.
rom.layer @adapted {
^bb0(%p: index, %x: tensor<64xf32>):
  %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  %z = rom.linear %n by @up {onnx = [["z"]]} : tensor<64xf32> -> tensor<64xf32>
  %c = rom.linear %n by @a {onnx = [["c"]]} : tensor<64xf32> -> tensor<8xf32>
  rom.yield %z : tensor<64xf32>
}
// CHECK:      rom.layer @adapted {
// CHECK-NEXT: ^bb0
// CHECK-NEXT:   [[S:%\w+]] = rom.rms_scale
// CHECK-NEXT:   [[N:%\w+]] = rom.tap
// CHECK-NEXT:   [[B:%\w+]] = rom.quantize_blocks [[N]]
// CHECK-NEXT:   rom.dot [[B]] by @up
// CHECK-NEXT:   rom.requantize {{.*}} norm [[S]]
// CHECK-NEXT:   [[A:%\w+]] = rom.dot [[B]] by @a
// CHECK-NEXT:   rom.requantize [[A]] scaled [[B]], @a norm [[S]]

// An epsilon that the sum of squares cannot hold.
rom.layer @epsilon {
^bb0(%p: index, %x: tensor<64xf32>):
  %n = rom.rms_norm %x by @g {eps = 1.0e+12 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  %z = rom.linear %n by @up {onnx = [["z"]]} : tensor<64xf32> -> tensor<64xf32>
  rom.yield %z : tensor<64xf32>
}
// CHECK:      rom.layer @epsilon {
// CHECK:        rom.rms_norm
// CHECK-NOT:    rom.rms_scale

// The last block is shorter where blocks do not divide a vector; keys have a scale a head.
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["Gather"]]} : tensor<24xf32>
  %i = rom.linear %x by @odd {onnx = [["i"]]} : tensor<24xf32> -> tensor<64xf32>
  %q = rom.slice %i from 0 {onnx = [["q"]]} : tensor<64xf32> -> tensor<32xf32>
  rom.append %q to @k at %position {onnx = [["kv"]]} : tensor<32xf32>
  %z = rom.linear %x by @odd {onnx = [["z"]]} : tensor<24xf32> -> tensor<64xf32>
  %o = rom.attention %z over @k, @v at %position {heads = 4 : i64, scale = 0.25 : f64, onnx = [["gqa"]]} : tensor<64xf32> -> tensor<64xf32>
  %s = rom.sample %o {onnx = [["h"]]} : tensor<64xf32>
  rom.emit %o, %s : tensor<64xf32>
}
// CHECK:      rom.step @decode
// CHECK:        rom.quantize_blocks {{.*}} : !rom.fixed<24, 16> -> !rom.blocks<24, half8, 16, 16>
// CHECK:        rom.quantize {{.*}} -> !rom.quantized<2, 16, int8>
// CHECK:        rom.quantize {{.*}} -> !rom.quantized<4, 16, int8>
// MX:         rom.step @decode
// MX:           rom.quantize_blocks {{.*}} -> !rom.blocks<24, mxint8, 32, 14>
