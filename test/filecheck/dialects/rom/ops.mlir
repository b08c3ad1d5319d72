// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP

// The float stage: declarations, a layer with slots, every operator as imported.

rom.parameter @embedding : !rom.tensor<[256, 64], float32> {key = "onnx::e", peak = 0.5 : f64}
rom.parameter @w0 : !rom.tensor<[96, 64], int4, group 32> {key = "onnx::w0", zero = 8 : i64}
rom.parameter @w1 : !rom.tensor<[96, 64], int4, group 32, zeros> {key = "onnx::w1"}
rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {key = "lora::a"}
rom.parameter @bias : !rom.tensor<[96], float32> {key = "onnx::b"}
rom.parameter @gamma : !rom.tensor<[64], float32> {key = "onnx::g", multiplier = 8.0 : f64}
rom.parameter @head_gamma : !rom.tensor<[16], float32> {key = "onnx::hg"}
rom.parameter @beta : !rom.tensor<[64], float32> {key = "onnx::beta"}
rom.parameter @cos : !rom.tensor<[128, 8], float32> {key = "onnx::cos"}
rom.parameter @sin : !rom.tensor<[128, 8], float32> {key = "onnx::sin"}
rom.cache @k0 : !rom.kv<128, 2, 16, float32>
rom.cache @v0 : !rom.kv<128, 2, 16, int8, static> {static_scale = 0.0625 : f64}
rom.parameter @slot_a : !rom.adapter<[8, 64], fp8> {key = "adapter::layers.0.k_proj.A"}
rom.parameter @slot_b : !rom.adapter<[32, 8], fp8> {key = "adapter::layers.0.k_proj.B"}
rom.site "layers.0.k_proj" beside @w0 rows 64 to 96 by @slot_a, @slot_b {onnx = [["qkv"]]}
// CHECK:      rom.parameter @embedding : !rom.tensor<[256, 64], float32>
// CHECK-SAME:   {key = "onnx::e", peak = 5.000000e-01 : f64}
// CHECK-NEXT: rom.parameter @w0 : !rom.tensor<[96, 64], int4, group 32>
// CHECK-SAME:   {key = "onnx::w0", zero = 8 : i64}
// CHECK-NEXT: rom.parameter @w1 : !rom.tensor<[96, 64], int4, group 32, zeros> {key = "onnx::w1"}
// CHECK-NEXT: rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {key = "lora::a"}
// CHECK:      rom.parameter @gamma : !rom.tensor<[64], float32>
// CHECK-SAME:   {key = "onnx::g", multiplier = 8.000000e+00 : f64}
// CHECK:      rom.cache @k0 : !rom.kv<128, 2, 16, float32>
// CHECK-NEXT: rom.cache @v0 : !rom.kv<128, 2, 16, int8, static>
// CHECK-SAME:   {static_scale = 6.250000e-02 : f64}
// CHECK-NEXT: rom.parameter @slot_a : !rom.adapter<[8, 64], fp8> {key = "adapter::layers.0.k_proj.A"}
// CHECK-NEXT: rom.parameter @slot_b : !rom.adapter<[32, 8], fp8> {key = "adapter::layers.0.k_proj.B"}
// CHECK-NEXT: rom.site "layers.0.k_proj" beside @w0 rows 64 to 96 by @slot_a, @slot_b {onnx = {{\[}}["qkv"]]}

rom.layer @decoder {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.slot @w : !rom.tensor<[96, 64], int4, group 32>
  rom.slot @g : !rom.tensor<[64], float32>
  %n = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n0"], ["n1"]]} : tensor<64xf32> -> tensor<64xf32>
  rom.yield %n : tensor<64xf32>
}
// CHECK:      rom.layer @decoder {
// CHECK-NEXT: ^{{.*}}(%{{\w+}}: index, %{{\w+}}: tensor<64xf32>):
// CHECK-NEXT:   rom.slot @w : !rom.tensor<[96, 64], int4, group 32>
// CHECK-NEXT:   rom.slot @g : !rom.tensor<[64], float32>
// CHECK-NEXT:   rom.rms_norm %{{\w+}} by @g {eps = 1.000000e-05 : f64, onnx = {{\[}}["n0"], ["n1"]]}
// CHECK-SAME:     : tensor<64xf32> -> tensor<64xf32>
// CHECK-NEXT:   rom.yield %{{\w+}} : tensor<64xf32>
// CHECK-NEXT: }

// Two carried values.
rom.layer @pair {
^bb0(%p: index, %x: tensor<64xf32>, %y: tensor<64xf32>):
  rom.yield %y, %x : tensor<64xf32>, tensor<64xf32>
}
// CHECK:      rom.layer @pair {
// CHECK:        rom.yield %{{\w+}}, %{{\w+}} : tensor<64xf32>, tensor<64xf32>
// CHECK-NEXT: }

// Only a position.
rom.layer @empty {
^bb0(%p: index):
  rom.yield
}
// CHECK:      rom.layer @empty {
// CHECK:        rom.yield
// CHECK-NEXT: }

rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @embedding {onnx = [["Gather"]]} : tensor<64xf32>
  %placed = rom.embed_position %position of @embedding {onnx = [["Gather_1"]]} : tensor<64xf32>
  %y = rom.repeat @decoder at %position (%x) instances [{w = @w0, g = @gamma}, {w = @w0, g = @beta}] : (tensor<64xf32>) -> tensor<64xf32>
  %r0, %r1 = rom.repeat @pair at %position (%x, %y) instances [{}, {}] : (tensor<64xf32>, tensor<64xf32>) -> tensor<64xf32>, tensor<64xf32>
  %n = rom.rms_norm %y by @head_gamma {eps = 1.0e-06 : f64, groups = 4 : i64, onnx = [["qnorm"]]} : tensor<64xf32> -> tensor<64xf32>
  %l = rom.layer_norm %n by @gamma, @beta {eps = 1.0e-06 : f64, onnx = [["ln"]]} : tensor<64xf32> -> tensor<64xf32>
  %m = rom.layer_norm %l by @gamma {eps = 1.0e-06 : f64, onnx = [["ln"]]} : tensor<64xf32> -> tensor<64xf32>
  %w = rom.linear %m by @w0 bias @bias {onnx = [["MatMul", "Add"]]} : tensor<64xf32> -> tensor<96xf32>
  %low = rom.linear %m by @a {onnx = [["lora"]]} : tensor<64xf32> -> tensor<8xf32>
  %q = rom.slice %w from 0 {onnx = [["Split"]]} : tensor<96xf32> -> tensor<64xf32>
  %k = rom.slice %w from 64 {onnx = [["Split"]]} : tensor<96xf32> -> tensor<32xf32>
  %qr = rom.rotary %q at %position by @cos, @sin {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["GQA"]]} : tensor<64xf32> -> tensor<64xf32>
  %kr = rom.rotary %k at %position by @cos, @sin {heads = 2 : i64, rotary_dim = 16 : i64, interleaved, onnx = [["GQA"]]} : tensor<32xf32> -> tensor<32xf32>
  rom.append %kr to @k0 at %position {onnx = [["GQA"]]} : tensor<32xf32>
  rom.append %kr to @v0 at %position {onnx = [["GQA"]]} : tensor<32xf32>
  %at = rom.attention %qr over @k0, @v0 at %position {heads = 4 : i64, scale = 0.25 : f64, softcap = 50.0 : f64, window = 64 : i64, onnx = [["GQA"]]} : tensor<64xf32> -> tensor<64xf32>
  %act = rom.activate %at {kind = "silu", onnx = [["Sigmoid", "Mul"]]} : tensor<64xf32> -> tensor<64xf32>
  %sum = rom.add %act, %x {onnx = [["Add"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %mul = rom.mul %sum, %x {onnx = [["Mul"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %scaled = rom.scale %mul {factor = 8.0 : f64, onnx = [["Mul"]]} : tensor<64xf32> -> tensor<64xf32>
  %logits = rom.softcap %scaled {cap = 30.0 : f64, onnx = [["Div", "Tanh", "Mul"]]} : tensor<64xf32> -> tensor<64xf32>
  %next = rom.sample %logits {onnx = [["lm_head"]]} : tensor<64xf32>
  rom.emit %logits, %next : tensor<64xf32>
}
// CHECK:      rom.step @decode context 128 {
// CHECK-NEXT: ^{{.*}}(%{{\w+}}: i32, %{{\w+}}: index):
// CHECK-NEXT:   %{{\w+}} = rom.embed %{{\w+}} of @embedding {onnx = {{\[}}["Gather"]]} : tensor<64xf32>
// CHECK-NEXT:   %{{\w+}} = rom.embed_position %{{\w+}} of @embedding {onnx = {{\[}}["Gather_1"]]} : tensor<64xf32>
// CHECK-NEXT:   %{{\w+}} = rom.repeat @decoder at %{{\w+}}(%{{\w+}}) instances
// CHECK-SAME:     [{w = @w0, g = @gamma}, {w = @w0, g = @beta}] : (tensor<64xf32>) -> tensor<64xf32>
// CHECK-NEXT:   %{{\w+}}, %{{\w+}} = rom.repeat @pair at %{{\w+}}(%{{\w+}}, %{{\w+}}) instances [{}, {}]
// CHECK-SAME:     : (tensor<64xf32>, tensor<64xf32>) -> tensor<64xf32>, tensor<64xf32>
// CHECK-NEXT:   rom.rms_norm %{{\w+}} by @head_gamma
// CHECK-SAME:     {eps = 1.000000e-06 : f64, groups = 4 : i64, onnx = {{\[}}["qnorm"]]}
// CHECK-NEXT:   rom.layer_norm %{{\w+}} by @gamma, @beta {eps
// CHECK-NEXT:   rom.layer_norm %{{\w+}} by @gamma {eps
// CHECK-NEXT:   rom.linear %{{\w+}} by @w0 bias @bias {onnx = {{\[}}["MatMul", "Add"]]} : tensor<64xf32> -> tensor<96xf32>
// CHECK-NEXT:   rom.linear %{{\w+}} by @a {onnx = {{\[}}["lora"]]} : tensor<64xf32> -> tensor<8xf32>
// CHECK-NEXT:   rom.slice %{{\w+}} from 0 {onnx = {{\[}}["Split"]]} : tensor<96xf32> -> tensor<64xf32>
// CHECK-NEXT:   rom.slice %{{\w+}} from 64 {onnx = {{\[}}["Split"]]} : tensor<96xf32> -> tensor<32xf32>
// CHECK-NEXT:   rom.rotary %{{\w+}} at %{{\w+}} by @cos, @sin
// CHECK-SAME:     {heads = 4 : i64, rotary_dim = 16 : i64, onnx
// CHECK-NEXT:   rom.rotary %{{\w+}} at %{{\w+}} by @cos, @sin
// CHECK-SAME:     {heads = 2 : i64, rotary_dim = 16 : i64, interleaved, onnx
// CHECK-NEXT:   rom.append %{{\w+}} to @k0 at %{{\w+}} {onnx = {{\[}}["GQA"]]} : tensor<32xf32>
// CHECK-NEXT:   rom.append %{{\w+}} to @v0 at %{{\w+}} {onnx = {{\[}}["GQA"]]} : tensor<32xf32>
// CHECK-NEXT:   rom.attention %{{\w+}} over @k0, @v0 at %{{\w+}} {heads = 4 : i64
// CHECK-SAME:     scale = 2.500000e-01 : f64, softcap = 5.000000e+01 : f64, window = 64 : i64
// CHECK-NEXT:   rom.activate %{{\w+}} {kind = "silu", onnx = {{\[}}["Sigmoid", "Mul"]]}
// CHECK-NEXT:   rom.add %{{\w+}}, %{{\w+}}
// CHECK-NEXT:   rom.mul %{{\w+}}, %{{\w+}}
// CHECK-NEXT:   rom.scale %{{\w+}} {factor = 8.000000e+00 : f64
// CHECK-NEXT:   rom.softcap %{{\w+}} {cap = 3.000000e+01 : f64
// CHECK-NEXT:   %{{\w+}} = rom.sample %{{\w+}} {onnx = {{\[}}["lm_head"]]} : tensor<64xf32>
// CHECK-NEXT:   rom.emit %{{\w+}}, %{{\w+}} : tensor<64xf32>
// CHECK-NEXT: }

// The integer stage: images, constants of 24 bits, quantised vectors, attention in parts.

rom.parameter @table : !rom.tensor<[256, 64], fixed16> {key = "onnx::e", exponent = 18 : i64, codes = #rom.image<"rom/constants.bin", 64, 32768, "00ff">}
rom.parameter @w : !rom.tensor<[64, 64], ternary, group 64> {key = "onnx::w", zero = 1 : i64, exponent = -3 : i64, codes = #rom.image<"rom/codes.bin", 0, 1024, "aa">, scales = #rom.image<"rom/scales.bin", 0, 128, "bb">}
rom.parameter @o : !rom.tensor<[64, 64], int4, group 64, offsets 19> {key = "onnx::o", zero = 8 : i64, offsets = #rom.image<"rom/offsets.bin", 0, 256, "dd">}
rom.parameter @z : !rom.tensor<[64, 64], int2, group 64, zeros> {key = "onnx::z", zeros = #rom.image<"rom/zeros.bin", 0, 64, "cc">}
rom.parameter @bias64 : !rom.tensor<[64], fixed32> {key = "onnx::b64", exponent = 16 : i64}
rom.cache @k : !rom.kv<128, 2, 16, int16>
rom.cache @v : !rom.kv<128, 2, 16, fp8, static> {static_scale = #rom.real<8388608, 32>, static_inverse = #rom.real<8388608, 14>}
// CHECK:      rom.parameter @table : !rom.tensor<[256, 64], fixed16>
// CHECK-SAME:   exponent = 18 : i64, codes = #rom.image<"rom/constants.bin", 64, 32768, "00ff">
// CHECK-NEXT: rom.parameter @w : !rom.tensor<[64, 64], ternary, group 64>
// CHECK-SAME:   exponent = -3 : i64, {{.*}}codes = #rom.image<"rom/codes.bin", 0, 1024, "aa">
// CHECK-SAME:   scales = #rom.image<"rom/scales.bin", 0, 128, "bb">
// CHECK-NEXT: rom.parameter @o : !rom.tensor<[64, 64], int4, group 64, offsets 19>
// CHECK-SAME:   {key = "onnx::o", zero = 8 : i64, offsets = #rom.image<"rom/offsets.bin", 0, 256, "dd">}
// CHECK-NEXT: rom.parameter @z : !rom.tensor<[64, 64], int2, group 64, zeros>
// CHECK-SAME:   zeros = #rom.image<"rom/zeros.bin", 0, 64, "cc">
// CHECK-NEXT: rom.parameter @bias64 : !rom.tensor<[64], fixed32>
// CHECK-NEXT: rom.cache @k : !rom.kv<128, 2, 16, int16>
// CHECK-NEXT: rom.cache @v : !rom.kv<128, 2, 16, fp8, static>
// CHECK-SAME:   static_scale = #rom.real<8388608, 32>, static_inverse = #rom.real<8388608, 14>

rom.step @integer context 0 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @table {onnx = [["Gather"]]} : !rom.fixed<64, 16>
  %q = rom.quantize %x {onnx = [["MatMul"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %q by @w {onnx = [["MatMul"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 34>
  %y = rom.requantize %a scaled %q, @w bias @bias64 residual %x {pre_shift = 0 : i64, onnx = [["MatMul"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  %bare = rom.requantize %a scaled %q, @w {pre_shift = 2 : i64, onnx = [["MatMul"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  %kv = rom.slice %bare from 32 {onnx = [["Split"]]} : !rom.fixed<64, 16> -> !rom.fixed<32, 16>
  %k = rom.quantize %kv {onnx = [["GQA"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, int16>
  %v = rom.quantize %kv for @v {onnx = [["GQA"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, fp8>
  rom.append %k to @k at %position {onnx = [["GQA"]]} : !rom.quantized<2, 16, int16>
  rom.append %v to @v at %position {onnx = [["GQA"]]} : !rom.quantized<2, 16, fp8>
  %heads = rom.quantize %y {onnx = [["GQA"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, int8>
  %s = rom.query_key %heads over @k at %position {score_scale = #rom.real<12101203, 25>, onnx = [["GQA"]]} : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
  %t = rom.query_key %heads over @k at %position {score_scale = #rom.real<1, -2>, cap = #rom.real<3, 0>, cap_inverse = #rom.real<1, 2>, log2e = #rom.real<12, 3>, window = 32 : i64, onnx = [["GQA"]]} : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
  %p = rom.softmax %s over @v at %position {window = 32 : i64, onnx = [["GQA"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, uint8>
  %p16 = rom.softmax %t over @v at %position {onnx = [["GQA"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, uint16>
  %o = rom.weighted_sum %p over @v at %position {window = 32 : i64, onnx = [["GQA"]]} : !rom.probabilities<4, uint8> -> !rom.fixed<64, 16>
  %c = rom.softcap %o {cap = #rom.real<30, 0>, inverse = #rom.real<-1, 5>, onnx = [["Tanh"]]} : !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  %next = rom.sample %c {onnx = [["lm_head"]]} : !rom.fixed<64, 16>
  rom.emit %c, %next : !rom.fixed<64, 16>
}
// CHECK:      rom.step @integer context 0 {
// CHECK:        rom.quantize %{{\w+}} {onnx = {{\[}}["MatMul"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
// CHECK-NEXT:   rom.dot %{{\w+}} by @w {onnx = {{\[}}["MatMul"]]}
// CHECK-SAME:     : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 34>
// CHECK-NEXT:   rom.requantize %{{\w+}} scaled %{{\w+}}, @w bias @bias64 residual %{{\w+}} {pre_shift = 0 : i64
// CHECK-SAME:     : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
// CHECK-NEXT:   rom.requantize %{{\w+}} scaled %{{\w+}}, @w {pre_shift = 2 : i64
// CHECK-SAME:     : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
// CHECK-NEXT:   rom.slice %{{\w+}} from 32
// CHECK-NEXT:   rom.quantize %{{\w+}} {onnx = {{\[}}["GQA"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, int16>
// CHECK-NEXT:   rom.quantize %{{\w+}} for @v {onnx = {{\[}}["GQA"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, fp8>
// CHECK-NEXT:   rom.append %{{\w+}} to @k at %{{\w+}} {onnx = {{\[}}["GQA"]]} : !rom.quantized<2, 16, int16>
// CHECK-NEXT:   rom.append %{{\w+}} to @v at %{{\w+}} {onnx = {{\[}}["GQA"]]} : !rom.quantized<2, 16, fp8>
// CHECK-NEXT:   rom.quantize
// CHECK-NEXT:   rom.query_key %{{\w+}} over @k at %{{\w+}} {score_scale = #rom.real<12101203, 25>
// CHECK-SAME:     : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
// CHECK-NEXT:   rom.query_key %{{\w+}} over @k at %{{\w+}} {score_scale = #rom.real<1, -2>
// CHECK-SAME:     cap = #rom.real<3, 0>, cap_inverse = #rom.real<1, 2>, log2e = #rom.real<12, 3>, window = 32 : i64
// CHECK-NEXT:   rom.softmax %{{\w+}} over @v at %{{\w+}} {window = 32 : i64
// CHECK-SAME:     : !rom.scores<4, 16> -> !rom.probabilities<4, uint8>
// CHECK-NEXT:   rom.softmax %{{\w+}} over @v at %{{\w+}} {onnx
// CHECK-SAME:     : !rom.scores<4, 16> -> !rom.probabilities<4, uint16>
// CHECK-NEXT:   rom.weighted_sum %{{\w+}} over @v at %{{\w+}} {window = 32 : i64
// CHECK-SAME:     : !rom.probabilities<4, uint8> -> !rom.fixed<64, 16>
// CHECK-NEXT:   rom.softcap %{{\w+}} {cap = #rom.real<30, 0>, inverse = #rom.real<-1, 5>
// CHECK-NEXT:   rom.sample
// CHECK-NEXT:   rom.emit
// CHECK-NEXT: }
