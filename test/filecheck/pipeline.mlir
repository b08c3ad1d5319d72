// RUN: xdsl-opt -p 'rom-outline-layers,attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize,rom-fuse-residual,fabric-place,program-schedule' %s -o %t.mlir
// RUN: xdsl-opt %t.mlir | python %S/whole.py | filecheck %s
// RUN: filecheck %s --input-file %t.mlir --check-prefix=BEATS

// From the operators of a model of two layers to a program, by stock xdsl-opt; what comes out
// parses and verifies again. Each instruction is looked at once, by its last beat.

rom.parameter @emb : !rom.tensor<[256, 64], float32> {key = "emb", peak = 0.1 : f64}
rom.parameter @cos : !rom.tensor<[128, 8], float32> {key = "cos", peak = 1.0 : f64}
rom.parameter @sin : !rom.tensor<[128, 8], float32> {key = "sin", peak = 1.0 : f64}
rom.parameter @layers_0_norm : !rom.tensor<[64], float32> {key = "n0", peak = 1.0 : f64}
rom.parameter @layers_1_norm : !rom.tensor<[64], float32> {key = "n1", peak = 1.5 : f64}
rom.parameter @layers_0_qkv : !rom.tensor<[128, 64], int4, group 32> {key = "qkv0", zero = 8 : i64, peak = 0.01 : f64}
rom.parameter @layers_1_qkv : !rom.tensor<[128, 64], int4, group 32> {key = "qkv1", zero = 8 : i64, peak = 0.02 : f64}
rom.parameter @layers_0_o : !rom.tensor<[64, 64], int4, group 32> {key = "o0", zero = 8 : i64, peak = 0.01 : f64}
rom.parameter @layers_1_o : !rom.tensor<[64, 64], int4, group 32> {key = "o1", zero = 8 : i64, peak = 0.02 : f64}
rom.parameter @head : !rom.tensor<[256, 64], int8, group 32> {key = "head", zero = 128 : i64, peak = 0.01 : f64}
rom.cache @past_0_key : !rom.kv<128, 2, 16, float32>
rom.cache @past_0_value : !rom.kv<128, 2, 16, float32>
rom.cache @past_1_key : !rom.kv<128, 2, 16, float32>
rom.cache @past_1_value : !rom.kv<128, 2, 16, float32>

rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["Gather"]]} : tensor<64xf32>

  %n0 = rom.rms_norm %x by @layers_0_norm {eps = 1.0e-05 : f64, onnx = [["norm.0"]]} : tensor<64xf32> -> tensor<64xf32>
  %p0 = rom.linear %n0 by @layers_0_qkv {onnx = [["qkv.0"]]} : tensor<64xf32> -> tensor<128xf32>
  %a0 = rom.slice %p0 from 0 {onnx = [["gqa.0"]]} : tensor<128xf32> -> tensor<64xf32>
  %b0 = rom.slice %p0 from 64 {onnx = [["gqa.0"]]} : tensor<128xf32> -> tensor<32xf32>
  %c0 = rom.slice %p0 from 96 {onnx = [["gqa.0"]]} : tensor<128xf32> -> tensor<32xf32>
  %q0 = rom.rotary %a0 at %position by @cos, @sin {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["gqa.0"]]} : tensor<64xf32> -> tensor<64xf32>
  %k0 = rom.rotary %b0 at %position by @cos, @sin {heads = 2 : i64, rotary_dim = 16 : i64, onnx = [["gqa.0"]]} : tensor<32xf32> -> tensor<32xf32>
  rom.append %k0 to @past_0_key at %position {onnx = [["gqa.0"]]} : tensor<32xf32>
  rom.append %c0 to @past_0_value at %position {onnx = [["gqa.0"]]} : tensor<32xf32>
  %o0 = rom.attention %q0 over @past_0_key, @past_0_value at %position {heads = 4 : i64, scale = 0.25 : f64, onnx = [["gqa.0"]]} : tensor<64xf32> -> tensor<64xf32>
  %y0 = rom.linear %o0 by @layers_0_o {onnx = [["o.0"]]} : tensor<64xf32> -> tensor<64xf32>
  %x1 = rom.add %x, %y0 {onnx = [["add.0"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>

  %n1 = rom.rms_norm %x1 by @layers_1_norm {eps = 1.0e-05 : f64, onnx = [["norm.1"]]} : tensor<64xf32> -> tensor<64xf32>
  %p1 = rom.linear %n1 by @layers_1_qkv {onnx = [["qkv.1"]]} : tensor<64xf32> -> tensor<128xf32>
  %a1 = rom.slice %p1 from 0 {onnx = [["gqa.1"]]} : tensor<128xf32> -> tensor<64xf32>
  %b1 = rom.slice %p1 from 64 {onnx = [["gqa.1"]]} : tensor<128xf32> -> tensor<32xf32>
  %c1 = rom.slice %p1 from 96 {onnx = [["gqa.1"]]} : tensor<128xf32> -> tensor<32xf32>
  %q1 = rom.rotary %a1 at %position by @cos, @sin {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["gqa.1"]]} : tensor<64xf32> -> tensor<64xf32>
  %k1 = rom.rotary %b1 at %position by @cos, @sin {heads = 2 : i64, rotary_dim = 16 : i64, onnx = [["gqa.1"]]} : tensor<32xf32> -> tensor<32xf32>
  rom.append %k1 to @past_1_key at %position {onnx = [["gqa.1"]]} : tensor<32xf32>
  rom.append %c1 to @past_1_value at %position {onnx = [["gqa.1"]]} : tensor<32xf32>
  %o1 = rom.attention %q1 over @past_1_key, @past_1_value at %position {heads = 4 : i64, scale = 0.25 : f64, onnx = [["gqa.1"]]} : tensor<64xf32> -> tensor<64xf32>
  %y1 = rom.linear %o1 by @layers_1_o {onnx = [["o.1"]]} : tensor<64xf32> -> tensor<64xf32>
  %x2 = rom.add %x1, %y1 {onnx = [["add.1"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>

  %z = rom.linear %x2 by @head {onnx = [["lm_head"]]} : tensor<64xf32> -> tensor<256xf32>
  %next = rom.sample %z {onnx = [["lm_head"]]} : tensor<256xf32>
  rom.emit %z, %next : tensor<256xf32>
}

// CHECK:      fabric.machine {name = "roma-mini"
// CHECK:      rom.parameter @layers_1_norm : !rom.tensor<[64], fixed16>
// CHECK:      rom.cache @past_1_value : !rom.kv<128, 2, 16, int8>
// CHECK-NEXT: fabric.engrave @emb in
// CHECK:      fabric.engrave @layers_1_qkv in
// CHECK:      fabric.constant @layers_1_norm in @constants at
// CHECK:      fabric.reserve @past_1_value in @kv at
// CHECK:      program.program @decode positions [0, 127]
// CHECK:        program.block @part0 instances [{emb = @emb}] {
// CHECK-NEXT:     program.instruction "embed" on "matrix"
// CHECK-NEXT:   }
// CHECK-NEXT:   program.block @layer instances [
// CHECK-SAME:     {{.*}}qkv = @layers_0_qkv{{.*}}}, {{{.*}}qkv = @layers_1_qkv{{.*}}}] {
// CHECK-NEXT:     program.instruction "rms_norm" on "vector"
// CHECK-SAME:       onnx = {{\[}}["norm.0"], ["norm.1"]]
// CHECK-NEXT:     program.instruction "quantize" on "vector"
// CHECK-NEXT:     program.instruction "matvec" on "matrix"
// CHECK-NEXT:     program.instruction "rotary" on "vector"
// CHECK-NEXT:     program.instruction "rotary" on "vector"
// CHECK-NEXT:     program.instruction "quantize" on "vector"
// CHECK-NEXT:     program.instruction "append" on "kv"
// CHECK-NEXT:     program.instruction "quantize" on "vector"
// CHECK-NEXT:     program.instruction "append" on "kv"
// CHECK-NEXT:     program.instruction "quantize" on "vector"
// CHECK-NEXT:     program.instruction "query_key" on "attention"
// CHECK-NEXT:     program.instruction "softmax" on "vector"
// CHECK-NEXT:     program.instruction "weighted_sum" on "attention"
// CHECK-NEXT:     program.instruction "quantize" on "vector"
// The addition of the residual is part of the product, and both names stay.
// CHECK-NEXT:     program.instruction "matvec" on "matrix" reads [@{{\w+}}, @[[X:\w+]]] writes [@[[X]]]
// CHECK-SAME:       onnx = {{\[}}["o.0", "add.0"], ["o.1", "add.1"]]
// CHECK-NEXT:   }
// CHECK-NEXT:   program.block @head instances [{head = @head}] sampled {
// CHECK-NEXT:     program.instruction "quantize" on "vector" reads [@[[X]]]
// CHECK-NEXT:     program.instruction "matvec" on "matrix"
// CHECK-NEXT:     program.instruction "sample" on "vector" {{.*}} writes [@next]
// CHECK-NEXT:   }
// CHECK-NEXT: }

// A beat of each, in the order in which a head of the attention needs them: the product by the rows
// that leave the array together, what is done by head by the heads of a cache.
// BEATS:      program.block @layer instances
// BEATS:      "rms_norm" {{.*}} waits {matrix = 0 : i64, matrix_peaks = 0 : i64} takes "8" every "4" reduces "15" beat {pass = 1 : i64, count = 64 : i64, more = 1 : i64}
// What is written is looked through for the largest magnitude, which norms and quantisations need.
// BEATS-NEXT: "rms_norm" {{.*}} waits {matrix = -3 : i64, reductions = 1 : i64} takes "5" every "1" reduces "12" beat {pass = 2 : i64, count = 16 : i64, more = 1 : i64, peak = 2 : i64}
// BEATS:      "quantize" {{.*}} waits {matrix = -4 : i64, vector = 2 : i64, reductions = 5 : i64} {{.*}} beat {of = 1 : i64, pass = 1 : i64, count = 16 : i64, entry = 1 : i64, more = 1 : i64}
// BEATS:      "matvec" {{.*}} waits {vector = 9 : i64} takes "20" every "4" reduces "23" beat {of = 2 : i64, first = {{[0-9]+}} : i64, count = 16 : i64, more = 1 : i64}
// BEATS:      "rotary" on "vector" reads [@part1_of_{{.*}} waits {matrix = {{[1-8]}} : i64} takes "5" every "1" reduces "12" beat {of = 4 : i64, count = 16 : i64, more = 1 : i64}
// BEATS:      "quantize" {{.*}} beat {of = 5 : i64, count = 16 : i64, entry = [[K:[0-9]+]] : i64, more = 1 : i64}
// BEATS:      "quantize" {{.*}} beat {of = 5 : i64, pass = 1 : i64, count = 16 : i64, entry = [[K]] : i64, more = 1 : i64}
// BEATS:      "append" {{.*}} beat {of = 6 : i64, count = 1 : i64, more = 1 : i64}
// BEATS:      "query_key" {{.*}} takes "{{.*}}tokens{{.*}}" every "{{.*}}tokens{{.*}}" beat {of = 10 : i64, count = 1 : i64, more = 1 : i64}
// BEATS:      "softmax" {{.*}} every "ceildiv(tokens, 16)" reduces "11 + ceildiv(tokens, 16)" beat {of = 11 : i64, count = 2 : i64, entry = [[E:[0-9]+]] : i64, more = 1 : i64}
// BEATS:      "softmax" {{.*}} every "2 * ceildiv(tokens, 16)" reduces "11 + 2 * ceildiv(tokens, 16)" beat {of = 11 : i64, pass = 1 : i64, count = 2 : i64, entry = [[E]] : i64, more = 1 : i64}
// BEATS:      "softmax" {{.*}} beat {of = 11 : i64, pass = 2 : i64, count = 2 : i64, entry = [[E]] : i64, more = 1 : i64}
// BEATS:      "weighted_sum" {{.*}} beat {of = 12 : i64, count = 1 : i64, more = 1 : i64, peak = 3 : i64}
// BEATS:      "quantize" {{.*}} beat {of = 13 : i64, {{.*}}count = {{.*}} more = 1 : i64}
// BEATS:      "matvec" {{.*}} beat {of = 14 : i64, {{.*}}count = 16 : i64
// BEATS:      program.block @head instances
// Logits are looked at as they come.
// BEATS:      "sample" {{.*}} waits {matrix = 1 : i64} {{.*}} beat {of = 2 : i64, count = 16 : i64, more = 1 : i64}
// BEATS:      "matvec" {{.*}} beat {of = 1 : i64, first = 240 : i64, count = 16 : i64}
// BEATS:      "sample" {{.*}} waits {matrix = 16 : i64} {{.*}} beat {of = 2 : i64, first = 240 : i64, count = 16 : i64}
