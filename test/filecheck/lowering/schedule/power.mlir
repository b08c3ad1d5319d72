// RUN: xdsl-opt -p 'attach-target{target=tom-mini set="activations=int8","kv=int8"},fabric-place' %s | filecheck %s --check-prefix=PLACE
// RUN: xdsl-opt -p 'attach-target{target=tom-mini set="activations=int8","kv=int8"},fabric-place,program-schedule' %s -o %t.mlir
// RUN: grep -v 'more = 1 : i64' %t.mlir | filecheck %s
// RUN: xdsl-opt %t.mlir | grep -v 'more = 1 : i64' | filecheck %s
// RUN: filecheck %s --input-file %t.mlir --check-prefix=BEATS
// RUN: sed 's/v = @v1/v = @v0/' %s | xdsl-opt -p 'attach-target{target=tom-mini set="activations=int8","kv=int8"},fabric-place,program-schedule' | filecheck %s --check-prefix=SHARED
// RUN: sed 's/w = @w1, v = @v1/w = @w0, v = @v0/' %s | xdsl-opt -p 'attach-target{target=tom-mini set="activations=int8","kv=int8"},fabric-place,program-schedule' | filecheck %s --check-prefix=SAME
// RUN: not xdsl-opt -p 'attach-target{target=tom-mini set="activations=int8","kv=int8","policy.in_flight=2"},fabric-place,program-schedule' %s 2>&1 | filecheck %s --check-prefix=FLIGHT

// FLIGHT: 2 tokens in flight are not possible with power gating, adders that attention shares with matrices
// FLIGHT: help: compile with --in-flight 1

// A chip whose ROM banks can be switched off: a power domain for each layer and one for the head.

rom.parameter @emb : !rom.tensor<[256, 64], fixed16> {key = "emb"}
rom.parameter @w0 : !rom.tensor<[64, 64], ternary, group 64> {key = "layers.0.w"}
rom.parameter @v0 : !rom.tensor<[64, 64], ternary, group 64> {key = "layers.0.v"}
rom.parameter @w1 : !rom.tensor<[64, 64], ternary, group 64> {key = "layers.1.w"}
rom.parameter @v1 : !rom.tensor<[64, 64], ternary, group 64> {key = "layers.1.v"}
rom.parameter @head : !rom.tensor<[256, 64], ternary, group 64> {key = "head"}

rom.layer @layer {
^bb0(%p: index, %x: !rom.fixed<64, 16>):
  rom.slot @w : !rom.tensor<[64, 64], ternary, group 64>
  rom.slot @v : !rom.tensor<[64, 64], ternary, group 64>
  %c = rom.quantize %x {onnx = [["w0"], ["w1"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @w {onnx = [["w0"], ["w1"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 34>
  %y = rom.requantize %a scaled %c, @w {pre_shift = 0 : i64, onnx = [["w0"], ["w1"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  %d = rom.quantize %y {onnx = [["v0"], ["v1"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %b = rom.dot %d by @v {onnx = [["v0"], ["v1"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 34>
  %z = rom.requantize %b scaled %d, @v {pre_shift = 0 : i64, onnx = [["v0"], ["v1"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  rom.yield %z : !rom.fixed<64, 16>
}
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["e"]]} : !rom.fixed<64, 16>
  %y = rom.repeat @layer at %position (%x) instances [{w = @w0, v = @v0}, {w = @w1, v = @v1}] : (!rom.fixed<64, 16>) -> !rom.fixed<64, 16>
  %c = rom.quantize %y {onnx = [["h"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @head {onnx = [["h"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<256, 34>
  %z = rom.requantize %a scaled %c, @head {pre_shift = 0 : i64, onnx = [["h"]]} : !rom.accumulator<256, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<256, 16>
  %next = rom.sample %z {onnx = [["h"]]} : !rom.fixed<256, 16>
  rom.emit %z, %next : !rom.fixed<256, 16>
}

// Domains share no bank: those of tom-mini have 256 words.
// PLACE:      fabric.engrave @v0 in [#fabric.piece<rows 0 to 64, tiles 0 to 4, split 2, at 16,
// PLACE-NEXT: fabric.engrave @w1 in [#fabric.piece<rows 0 to 64, tiles 0 to 4, split 2, at 256,
// The embedding, of which a token reads a row, is in none.
// PLACE:      fabric.domain @power0 [@w0, @v0]
// PLACE-NEXT: fabric.domain @power1 [@w1, @v1]
// PLACE-NEXT: fabric.domain @power_head [@head]
// PLACE-NOT:  fabric.domain

// A matrix that two layers multiply with is in none either; nor are those of layers that share all.
// SHARED:      fabric.domain @power0 [@w0]
// SHARED-NEXT: fabric.domain @power1 [@w1]
// SAME-NOT:    fabric.domain @power0
// SAME:        fabric.domain @power_head [@head]

// Of each instruction its last beat. The first layer is woken as the token begins, each block behind it by the layer before.
// CHECK:      program.block @part0 instances [{emb = @emb, next_power1 = @power0}] {
// CHECK-NEXT:   program.instruction "wake" on "power" reads [] writes [] uses {domain = @next_power1} waits {} takes "40"
// CHECK-NEXT:   program.instruction "embed" on "matrix"
// CHECK-NEXT: }
// CHECK-NEXT: program.block @layer instances
// CHECK-SAME:     power = @power0, next_power = @power1}
// CHECK-SAME:     power = @power1, next_power = @power_head}] {
// CHECK-NEXT:   program.instruction "quantize" on "vector"
// CHECK-NEXT:   program.instruction "matvec" on "matrix" {{.*}} uses {weights = @w} waits {vector = 8 : i64, power = 0 : i64}
// CHECK-NEXT:   program.instruction "quantize" on "vector"
// As late as leaves 40 cycles before the next layer's first product.
// CHECK-NEXT:   program.instruction "wake" on "power" reads [] writes [] uses {domain = @next_power} waits {vector = 12 : i64} takes "40"
// CHECK-NEXT:   program.instruction "matvec" on "matrix" {{.*}} uses {weights = @v} waits {matrix = 8 : i64, vector = 12 : i64, power = 0 : i64}
// CHECK-NEXT:   program.instruction "sleep" on "power" reads [] writes [] uses {domain = @power} waits {matrix = 16 : i64} takes "2"
// CHECK-NEXT: }
// CHECK-NEXT: program.block @head instances [{head = @head, power0 = @power_head}] sampled {
// CHECK-NEXT:   program.instruction "quantize" on "vector"
// CHECK-NEXT:   program.instruction "matvec" on "matrix" {{.*}} uses {weights = @head} waits {vector = 5 : i64, power = 0 : i64}
// CHECK-NEXT:   program.instruction "sleep" on "power" reads [] writes [] uses {domain = @power0} waits {matrix = 32 : i64} takes "2"
// CHECK-NEXT:   program.instruction "sample" on "vector"
// CHECK-NEXT: }

// ROM is on before the first beat that reads it, and off after the last.
// BEATS-LABEL: program.block @layer
// BEATS:       "matvec" {{.*}} uses {weights = @w} waits {vector = 8 : i64, power = 0 : i64} takes "18" every "2" reduces "24" beat {of = 1 : i64, count = 8 : i64, more = 1 : i64, peak = 1 : i64}
// BEATS-NEXT:  "matvec" {{.*}} uses {weights = @w} waits {vector = 8 : i64, power = 0 : i64} takes "18" every "2" reduces "24" beat {of = 1 : i64, first = 8 : i64, count = 8 : i64, more = 1 : i64, peak = 1 : i64}
// BEATS:       "wake" on "power"
// BEATS-NEXT:  "matvec" {{.*}} uses {weights = @v} waits {matrix = 8 : i64, vector = 12 : i64, power = 0 : i64} takes "18" every "2" reduces "24" beat {of = 3 : i64, count = 8 : i64, more = 1 : i64}
// BEATS-COUNT-7: "matvec" {{.*}} uses {weights = @v}
// BEATS-NEXT:  "sleep" on "power"
