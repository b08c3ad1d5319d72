// RUN: intaglio-opt %s -p "attach-target{target=roma-mini},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-encode,program-to-hw" | filecheck %s

// The chip of a decoder with two layers: one module for each kind of part, instances of it, and
// memories whose contents are files. No weight stands in the IR.

// CHECK:     hw.module @l_unit(
// CHECK:     hw.module @matrix_unit(
// CHECK-COUNT-4: hw.instance "l_unit{{[0-9]}}" @l_unit(
// CHECK:     hw.module @matrix(
// CHECK-COUNT-8: hw.instance "tile{{[0-9]}}" @matrix_unit(
// CHECK:     hw.module @h_unit(
// CHECK:     hw.module @vector(
// CHECK:     hw.module @sequencer_matrix(
// CHECK:     hw.module @chip(
// CHECK-SAME: in %token_valid: i1
// CHECK-NOT: dense<

builtin.module {
  rom.parameter @emb : !rom.tensor<[256, 64], float32> {key = "onnx::e", peak = 0.1 : f64}
  rom.parameter @cos : !rom.tensor<[128, 8], float32> {key = "onnx::cos", peak = 1.0 : f64}
  rom.parameter @sin : !rom.tensor<[128, 8], float32> {key = "onnx::sin", peak = 1.0 : f64}
  rom.parameter @g0 : !rom.tensor<[64], float32> {key = "onnx::g0", peak = 1.0 : f64}
  rom.parameter @g1 : !rom.tensor<[64], float32> {key = "onnx::g1", peak = 1.5 : f64}
  rom.parameter @w0 : !rom.tensor<[128, 64], int4, group 32> {key = "onnx::w0", zero = 8 : i64, peak = 0.01 : f64}
  rom.parameter @w1 : !rom.tensor<[128, 64], int4, group 32> {key = "onnx::w1", zero = 8 : i64, peak = 0.01 : f64}
  rom.parameter @o0 : !rom.tensor<[64, 64], int4, group 32> {key = "onnx::o0", zero = 8 : i64, peak = 0.01 : f64}
  rom.parameter @o1 : !rom.tensor<[64, 64], int4, group 32> {key = "onnx::o1", zero = 8 : i64, peak = 0.01 : f64}
  rom.parameter @head : !rom.tensor<[256, 64], int4, group 32> {key = "onnx::head", zero = 8 : i64, peak = 0.01 : f64}
  rom.cache @k0 : !rom.kv<128, 2, 16, float32>
  rom.cache @v0 : !rom.kv<128, 2, 16, float32>
  rom.cache @k1 : !rom.kv<128, 2, 16, float32>
  rom.cache @v1 : !rom.kv<128, 2, 16, float32>
  rom.layer @decoder {
  ^bb0(%p: index, %x: tensor<64xf32>):
    rom.slot @g : !rom.tensor<[64], float32>
    rom.slot @w : !rom.tensor<[128, 64], int4, group 32>
    rom.slot @o : !rom.tensor<[64, 64], int4, group 32>
    rom.slot @k : !rom.kv<128, 2, 16, float32>
    rom.slot @v : !rom.kv<128, 2, 16, float32>
    %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n0"], ["n1"]]} : tensor<64xf32> -> tensor<64xf32>
    %qkv = rom.linear %n by @w {onnx = [["qkv0"], ["qkv1"]]} : tensor<64xf32> -> tensor<128xf32>
    %q0 = rom.slice %qkv from 0 {onnx = [["a0"], ["a1"]]} : tensor<128xf32> -> tensor<64xf32>
    %k0 = rom.slice %qkv from 64 {onnx = [["a0"], ["a1"]]} : tensor<128xf32> -> tensor<32xf32>
    %v0 = rom.slice %qkv from 96 {onnx = [["a0"], ["a1"]]} : tensor<128xf32> -> tensor<32xf32>
    %q = rom.rotary %q0 at %p by @cos, @sin {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["a0"], ["a1"]]} : tensor<64xf32> -> tensor<64xf32>
    %kk = rom.rotary %k0 at %p by @cos, @sin {heads = 2 : i64, rotary_dim = 16 : i64, onnx = [["a0"], ["a1"]]} : tensor<32xf32> -> tensor<32xf32>
    rom.append %kk to @k at %p {onnx = [["a0"], ["a1"]]} : tensor<32xf32>
    rom.append %v0 to @v at %p {onnx = [["a0"], ["a1"]]} : tensor<32xf32>
    %a = rom.attention %q over @k, @v at %p {heads = 4 : i64, scale = 0.25 : f64, onnx = [["a0"], ["a1"]]} : tensor<64xf32> -> tensor<64xf32>
    %y = rom.linear %a by @o {onnx = [["o0"], ["o1"]]} : tensor<64xf32> -> tensor<64xf32>
    %z = rom.add %x, %y {onnx = [["s0"], ["s1"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
    rom.yield %z : tensor<64xf32>
  }
  rom.step @decode context 128 {
  ^bb0(%token: i32, %position: index):
    %x = rom.embed %token of @emb {onnx = [["Gather"]]} : tensor<64xf32>
    %y = rom.repeat @decoder at %position (%x) instances [{g = @g0, w = @w0, o = @o0, k = @k0, v = @v0}, {g = @g1, w = @w1, o = @o1, k = @k1, v = @v1}] : (tensor<64xf32>) -> tensor<64xf32>
    %z = rom.linear %y by @head {onnx = [["h"]]} : tensor<64xf32> -> tensor<256xf32>
    %n = rom.sample %z {onnx = [["h"]]} : tensor<256xf32>
    rom.emit %z, %n : tensor<256xf32>
  }
}
