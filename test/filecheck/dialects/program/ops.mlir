// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP

rom.parameter @w0 : !rom.tensor<[64, 64], int4, group 32> {key = "w0"}
rom.parameter @w1 : !rom.tensor<[64, 64], int4, group 32> {key = "w1"}
rom.parameter @head : !rom.tensor<[256, 64], int4, group 32> {key = "head"}

fabric.memory @vectors rows 17 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16

program.program @decode positions [0, 127] logits @y token @t {
  program.buffer @x in @codes at 0 : !rom.quantized<1, 64, int8>
  program.buffer @y in @vectors at 1 : !rom.fixed<256, 16>
  program.buffer @half in @vectors at 2 : !rom.fixed<8, 16> {element = 8 : i64, of = @y}
  program.buffer @t : i32
  program.block @decoder instances [{w = @w0}, {w = @w1}] {
    program.instruction "quantize" on "vector" reads [@y] writes [@x] uses {} waits {matrix = 0 : i64} takes "34" {onnx = [["a"], ["b"]]}
    program.instruction "matvec" on "matrix" reads [@x] writes [@y] uses {weights = @w} waits {vector = 1 : i64} takes "17 + max(ceildiv(2 * tokens, 8), rank)" {arguments = {pre_shift = 3 : i64}, start = array<i64: 1, 2, 3, 4>, finish = array<i64: 19, 51, 21, 53>, onnx = [["a"], ["b"]]}
  }
  program.block @head instances [{head = @head}] sampled {
    program.instruction "matvec" on "matrix" reads [@x] writes [@y] uses {weights = @head} waits {vector = 0 : i64} takes "7" {arguments = {pre_shift = 3 : i64}, onnx = [["h"]]}
    program.instruction "sample" on "vector" reads [@y] writes [@t] uses {} waits {matrix = 1 : i64} takes "7" {onnx = [["h"]]}
  }
}
// CHECK:      program.program @decode positions [0, 127] logits @y token @t {
// CHECK-NEXT:   program.buffer @x in @codes at 0 : !rom.quantized<1, 64, int8>
// CHECK-NEXT:   program.buffer @y in @vectors at 1 : !rom.fixed<256, 16>
// CHECK-NEXT:   program.buffer @half in @vectors at 2 : !rom.fixed<8, 16> {element = 8 : i64, of = @y}
// CHECK-NEXT:   program.buffer @t : i32
// CHECK-NEXT:   program.block @decoder instances [{w = @w0}, {w = @w1}] {
// CHECK-NEXT:     program.instruction "quantize" on "vector" reads [@y] writes [@x] uses {}
// CHECK-SAME:       waits {matrix = 0 : i64} takes "34" {onnx = {{\[}}["a"], ["b"]]}
// CHECK-NEXT:     program.instruction "matvec" on "matrix" reads [@x] writes [@y] uses {weights = @w}
// CHECK-SAME:       waits {vector = 1 : i64} takes "17 + max(ceildiv(2 * tokens, 8), rank)"
// CHECK-SAME:       {arguments = {pre_shift = 3 : i64}, start = array<i64: 1, 2, 3, 4>, finish = array<i64: 19, 51, 21, 53>, onnx = {{\[}}["a"], ["b"]]}
// CHECK-NEXT:   }
// CHECK-NEXT:   program.block @head instances [{head = @head}] sampled {
// CHECK-NEXT:     program.instruction "matvec" on "matrix"
// CHECK-NEXT:     program.instruction "sample" on "vector"
// CHECK-NEXT:   }
// CHECK-NEXT: }
