// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int16","kv=fp8","formats.fraction_bits=14"},rom-legalize' %s | filecheck %s --check-prefix=FP8

rom.parameter @emb : !rom.tensor<[256, 64], float32> {key = "e", peak = 0.1 : f64}
rom.parameter @cos : !rom.tensor<[512, 8], float32> {key = "cos", peak = 1.0 : f64}
rom.parameter @sin : !rom.tensor<[512, 8], float32> {key = "sin", peak = 1.0 : f64}
rom.parameter @g : !rom.tensor<[64], float32> {key = "g", peak = 1.0 : f64}
rom.parameter @beta : !rom.tensor<[64], float32> {key = "beta", peak = 1.0 : f64}
rom.parameter @b : !rom.tensor<[128], float32> {key = "b", peak = 1.0 : f64}
rom.parameter @w : !rom.tensor<[128, 64], int4, group 32> {key = "w", zero = 8 : i64, peak = 0.01 : f64}
rom.parameter @up : !rom.tensor<[64, 64], int4, group 32, zeros> {key = "up", peak = 0.5 : f64}
rom.parameter @hqq : !rom.tensor<[64, 64], int4, group 32, offsets 25> {key = "hqq", zero = 8 : i64, peak = 0.5 : f64}
rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {key = "a", peak = 0.5 : f64}
rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.cache @v : !rom.kv<128, 2, 16, int8> {static_scale = 0.0625 : f64}

// A vector gets mantissas with an exponent that its peak allows, gamma takes in sqrt(64); angles
// are kept for the positions that the caches can hold; scales of a matrix get an exponent.
// CHECK:      rom.parameter @emb : !rom.tensor<[256, 64], fixed16> {{.*}}exponent = 18 : i64
// CHECK-NEXT: rom.parameter @cos : !rom.tensor<[128, 8], fixed16> {{.*}}exponent = 14 : i64
// CHECK-NEXT: rom.parameter @sin : !rom.tensor<[128, 8], fixed16> {{.*}}exponent = 14 : i64
// CHECK-NEXT: rom.parameter @g : !rom.tensor<[64], fixed16> {{.*}}multiplier = 8.000000e+00 : f64, exponent = 11 : i64
// CHECK-NEXT: rom.parameter @beta : !rom.tensor<[64], fixed32> {{.*}}exponent = 16 : i64
// CHECK-NEXT: rom.parameter @b : !rom.tensor<[128], fixed32> {{.*}}exponent = 16 : i64
// CHECK-NEXT: rom.parameter @w : !rom.tensor<[128, 64], int4, group 32> {{.*}}exponent = 21 : i64
// CHECK-NEXT: rom.parameter @up : !rom.tensor<[64, 64], int4, group 32, zeros> {{.*}}exponent = 15 : i64
// CHECK-NEXT: rom.parameter @hqq : !rom.tensor<[64, 64], int4, group 32, offsets 25> {{.*}}exponent = 15 : i64
// CHECK-NEXT: rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {{.*}}exponent = 15 : i64
// A cache that the graph quantised keeps its format and scale.
// CHECK-NEXT: rom.cache @k : !rom.kv<128, 2, 16, int8>
// CHECK-NEXT: rom.cache @v : !rom.kv<128, 2, 16, int8, static>
// CHECK-SAME:   {static_scale = #rom.real<8388608, 27>, static_inverse = #rom.real<8388608, 19>}

// FP8:      rom.parameter @emb : !rom.tensor<[256, 64], fixed16> {{.*}}exponent = 18 : i64
// FP8:      rom.parameter @beta : !rom.tensor<[64], fixed32> {{.*}}exponent = 14 : i64
// FP8:      rom.cache @k : !rom.kv<128, 2, 16, fp8, static>
// FP8-SAME:   {static_scale = #rom.real<8388608, 32>, static_inverse = #rom.real<8388608, 14>}
// FP8-NEXT: rom.cache @v : !rom.kv<128, 2, 16, int8, static>

rom.step @decode context 512 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["Gather"]]} : tensor<64xf32>
  %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
  // CHECK:      [[X:%\w+]] = rom.embed {{.*}} : !rom.fixed<64, 16>
  // CHECK-NEXT: [[N:%\w+]] = rom.rms_norm [[X]] by @g {eps = #rom.real<10995116, 40>, onnx = {{\[}}["n"]]}
  // CHECK-SAME:   : !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  // FP8:        rom.rms_norm {{.*}} : !rom.fixed<64, 14> -> !rom.fixed<64, 14>

  // Products of one vector share its quantisation.
  %qkv = rom.linear %n by @w bias @b {onnx = [["qkv", "bias"]]} : tensor<64xf32> -> tensor<128xf32>
  %u = rom.linear %n by @up {onnx = [["up"]]} : tensor<64xf32> -> tensor<64xf32>
  %low = rom.linear %n by @a {onnx = [["lora"]]} : tensor<64xf32> -> tensor<8xf32>
  // CHECK-NEXT: [[C:%\w+]] = rom.quantize [[N]] {onnx = {{\[}}["qkv", "bias"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  // CHECK-NEXT: [[D:%\w+]] = rom.dot [[C]] by @w {onnx = {{\[}}["qkv", "bias"]]}
  // CHECK-NEXT: [[Q:%\w+]] = rom.requantize [[D]] scaled [[C]], @w bias @b {pre_shift = 0 : i64
  // CHECK-NEXT: [[E:%\w+]] = rom.dot [[C]] by @up
  // CHECK-NEXT: rom.requantize [[E]] scaled [[C]], @up {pre_shift
  // CHECK-NEXT: [[F:%\w+]] = rom.dot [[C]] by @a
  // CHECK-NEXT: rom.requantize [[F]] scaled [[C]], @a {pre_shift
  // FP8:        rom.quantize {{.*}} -> !rom.quantized<1, 64, int16>
  // FP8-NEXT:   rom.dot {{.*}} by @w {{.*}} -> !rom.accumulator<128, [[BITS:\d+]]>
  // FP8-NEXT:   rom.requantize {{.*}} {pre_shift = 2 : i64

  %q0 = rom.slice %qkv from 0 {onnx = [["split"]]} : tensor<128xf32> -> tensor<64xf32>
  %k0 = rom.slice %qkv from 64 {onnx = [["split"]]} : tensor<128xf32> -> tensor<32xf32>
  %q = rom.rotary %q0 at %position by @cos, @sin {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["r"]]} : tensor<64xf32> -> tensor<64xf32>
  // CHECK-NEXT: [[Q0:%\w+]] = rom.slice [[Q]] from 0 {{.*}} : !rom.fixed<128, 16> -> !rom.fixed<64, 16>
  // CHECK-NEXT: [[K0:%\w+]] = rom.slice [[Q]] from 64
  // CHECK-NEXT: [[R:%\w+]] = rom.rotary [[Q0]]

  // What is cached is quantised by the head; for a static cache by its scale.
  rom.append %k0 to @k at %position {onnx = [["kv"]]} : tensor<32xf32>
  rom.append %k0 to @v at %position {onnx = [["kv"]]} : tensor<32xf32>
  // CHECK-NEXT: [[KQ:%\w+]] = rom.quantize [[K0]] {onnx = {{\[}}["kv"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, int8>
  // CHECK-NEXT: rom.append [[KQ]] to @k at
  // CHECK-NEXT: [[VQ:%\w+]] = rom.quantize [[K0]] for @v {onnx
  // CHECK-NEXT: rom.append [[VQ]] to @v at
  // FP8:        rom.quantize {{.*}} for @k {{.*}} -> !rom.quantized<2, 16, fp8>

  // Attention becomes scores in units of log2, probabilities, and their weighted sum.
  %o = rom.attention %q over @k, @v at %position {heads = 4 : i64, scale = 0.25 : f64, window = 32 : i64, onnx = [["gqa"]]} : tensor<64xf32> -> tensor<64xf32>
  // CHECK-NEXT: [[H:%\w+]] = rom.quantize [[R]] {onnx = {{\[}}["gqa"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, int8>
  // CHECK-NEXT: [[S:%\w+]] = rom.query_key [[H]] over @k at %{{\w+}} {score_scale = #rom.real<12102203, 25>, window = 32 : i64
  // CHECK-NEXT: [[P:%\w+]] = rom.softmax [[S]] over @v at %{{\w+}} {window = 32 : i64, {{.*}} -> !rom.probabilities<4, uint8>
  // CHECK-NEXT: [[O:%\w+]] = rom.weighted_sum [[P]] over @v at %{{\w+}} {window = 32 : i64, {{.*}} -> !rom.fixed<64, 16>
  // FP8:        rom.softmax {{.*}} -> !rom.probabilities<4, uint16>

  // A soft cap is applied in natural units, so log2(e) comes after it.
  %capped = rom.attention %o over @k, @v at %position {heads = 4 : i64, scale = 0.25 : f64, softcap = 50.0 : f64, onnx = [["gqa"]]} : tensor<64xf32> -> tensor<64xf32>
  // CHECK-NEXT: rom.quantize [[O]]
  // CHECK-NEXT: rom.query_key {{.*}} {score_scale = #rom.real<8388608, 25>
  // CHECK-SAME:   cap = #rom.real<13107200, 18>, cap_inverse = #rom.real<{{[0-9]+}}, {{[0-9]+}}>, log2e = #rom.real<12102203, 23>
  // CHECK-NEXT: rom.softmax
  // CHECK-NEXT: [[CAPPED:%\w+]] = rom.weighted_sum

  // The others keep their form; constants become exact.
  %l = rom.layer_norm %capped by @g, @beta {eps = 1.0e-05 : f64, onnx = [["ln"]]} : tensor<64xf32> -> tensor<64xf32>
  %act = rom.activate %l {kind = "silu", onnx = [["act"]]} : tensor<64xf32> -> tensor<64xf32>
  %mul = rom.mul %act, %u {onnx = [["mul"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %sum = rom.add %mul, %x {onnx = [["add"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %scaled = rom.scale %sum {factor = 0.5 : f64, onnx = [["scale"]]} : tensor<64xf32> -> tensor<64xf32>
  %cap = rom.softcap %scaled {cap = 30.0 : f64, onnx = [["cap"]]} : tensor<64xf32> -> tensor<64xf32>
  %next = rom.sample %cap {onnx = [["h"]]} : tensor<64xf32>
  rom.emit %cap, %next : tensor<64xf32>
  // CHECK-NEXT: rom.layer_norm [[CAPPED]] by @g, @beta {eps = #rom.real<10995116, 40>
  // CHECK-NEXT: rom.activate {{.*}} {kind = "silu"
  // CHECK-NEXT: rom.mul
  // CHECK-NEXT: rom.add
  // CHECK-NEXT: rom.scale {{.*}} {factor = #rom.real<8388608, 24>
  // CHECK-NEXT: rom.softcap {{.*}} {cap = #rom.real<15728640, 19>{{.*}}, inverse = #rom.real<{{[0-9]+}}, {{[0-9]+}}>
  // CHECK-NEXT: rom.sample {{.*}} : !rom.fixed<64, 16>
  // CHECK-NEXT: rom.emit {{.*}} : !rom.fixed<64, 16>
}
