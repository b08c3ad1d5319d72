// RUN: xdsl-opt %s --split-input-file --verify-diagnostics | filecheck %s

// A read after the write: the product may find the vector not yet quantised.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
rom.parameter @w1 : !rom.tensor<[16, 16], int4, group 16> {key = "w1"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.quantized<1, 16, int8>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{w = @w0}, {w = @w1}] {
    program.instruction "quantize" on "vector" reads [@x] writes [@q] uses {} waits {matrix = 0 : i64} takes "9" {onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q] writes [@y] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: 'matvec' number 1 of instance 0 of @b (queue matrix) may read @q before 'quantize' number 0 of instance 0 of @b (queue vector) has written it: no wait orders them (read after write)

// -----

// A wait that is too small: for the first of two instructions.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.quantized<1, 16, int8>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{w = @w0}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "quantize" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q] writes [@y] uses {weights = @w} waits {vector = 1 : i64} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: 'matvec' number 2 of instance 0 of @b (queue matrix) may read @q before 'quantize' number 1 of instance 0 of @b

// -----

// A write after the read, by the next instance: it overwrites what the product still reads.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
rom.parameter @w1 : !rom.tensor<[16, 16], int4, group 16> {key = "w1"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.quantized<1, 16, int8>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{w = @w0}, {w = @w1}] {
    program.instruction "quantize" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q] writes [@y] uses {weights = @w} waits {vector = 1 : i64} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: 'quantize' number 0 of instance 1 of @b (queue vector) may write @q before 'matvec' number 1 of instance 0 of @b (queue matrix) has read it: no wait orders them (write after read)

// -----

// A write after a write, where values share rows: only some elements are the same.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @vectors at 1 : !rom.fixed<24, 16>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{w = @w0}] {
    program.instruction "copy" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "embed" on "matrix" reads [@t] writes [@y] uses {table = @w} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'embed' number 1 of instance 0 of @b (queue matrix) may write @y before 'copy' number 0 of instance 0 of @b (queue vector) has written @q, which shares places with it: no wait orders them (write after write)

// -----

// A cache: keys are read before this token's are appended.
rom.cache @k0 : !rom.kv<8, 1, 16, int8>
rom.cache @k1 : !rom.kv<8, 1, 16, int8>
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0] logits @y token @t {
  program.buffer @q in @codes at 0 : !rom.quantized<1, 16, int8>
  program.buffer @s in @scores at 1 : !rom.scores<1, 16>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{k = @k0}, {k = @k1}] {
    program.instruction "append" on "kv" reads [@q] writes [] uses {cache = @k} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "query_key" on "attention" reads [@q] writes [@s] uses {keys = @k} waits {} takes "1" {arguments = {score_scale = #rom.real<1, 0>, pre_shift = 0 : i64, window = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: 'query_key' number 1 of instance 0 of @b (queue attention) may read @k0 before 'append' number 0 of instance 0 of @b (queue kv) has written it: no wait orders them (read after write)

// -----

// A cache that two instances share, and the last one writes while the first still reads.
rom.cache @k0 : !rom.kv<8, 1, 16, int8>
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0] logits @y token @t {
  program.buffer @q in @codes at 0 : !rom.quantized<1, 16, int8>
  program.buffer @s in @scores at 1 : !rom.scores<1, 16>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{k = @k0}, {k = @k0}] {
    program.instruction "append" on "kv" reads [@q] writes [] uses {cache = @k} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "query_key" on "attention" reads [@q] writes [@s] uses {keys = @k} waits {kv = 1 : i64} takes "1" {arguments = {score_scale = #rom.real<1, 0>, pre_shift = 0 : i64, window = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: 'append' number 0 of instance 1 of @b (queue kv) may write @k0 before 'query_key' number 1 of instance 0 of @b (queue attention) has read it

// -----

// Ordered through another queue, and by the order of the own one: nothing to refuse.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
rom.cache @k0 : !rom.kv<8, 1, 16, int8>
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @good positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.quantized<1, 16, int8>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{k = @k0, w = @w0}] {
    program.instruction "quantize" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "append" on "kv" reads [@q] writes [] uses {cache = @k} waits {vector = 1 : i64} takes "9" {onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q] writes [@y] uses {weights = @w} waits {kv = 1 : i64} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
    program.instruction "embed" on "matrix" reads [@t] writes [@y] uses {table = @w} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: program.program @good

// -----

// What a token leaves out orders nothing: a sampled block before another.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.quantized<1, 16, int8>
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @a instances [{}] {
    program.instruction "quantize" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
  }
  program.block @head instances [{w = @w0}] sampled {
    program.instruction "embed" on "matrix" reads [@t] writes [@y] uses {table = @w} waits {vector = 0 : i64} takes "1" {onnx = [["n"]]}
  }
  program.block @c instances [{w = @w0}] {
    program.instruction "matvec" on "matrix" reads [@q] writes [@y] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: 'matvec' number 0 of instance 0 of @c (queue matrix) may read @q before 'quantize' number 0 of instance 0 of @a (queue vector) has written it

// -----

// A stated finish that the duration does not give.
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0, 7] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1 + tokens" {start = array<i64: 1, 1>, finish = array<i64: 3, 9>, onnx = [["n"]]}
  }
}
// CHECK: 'copy' number 0 of instance 0 of @b (queue vector) states finish 9 at position 7; its duration and waits make it 10

// -----

fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @scores rows 4 of 16 x 32
program.program @p positions [0, 7] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}, {w = @v}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {start = array<i64: 1, 1>, onnx = [["n"]]}
  }
}
// CHECK: an instruction states 2 cycles for 2 instances at 2 positions

// -----

// Codes are taken before their blocks are written.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @block_steps rows 4 of 1 x 5
fabric.memory @norm_scales rows 2 of 1 x 34
program.program @p positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.blocks<16, half8, 16, 16>
  program.buffer @s in @norm_scales at 0 : !rom.scale
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{w = @w0}] {
    program.instruction "rms_scale" on "vector" reads [@x] writes [@s] uses {} waits {} takes "9" {arguments = {eps = #rom.real<1, 0>}, onnx = [["n"]]}
    program.instruction "quantize_blocks" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q, @s] writes [@y] uses {weights = @w} waits {vector = 1 : i64} takes "1" {arguments = {pre_shift = 0 : i64, normed}, onnx = [["n"]]}
  }
}
// CHECK: 'matvec' number 2 of instance 0 of @b (queue matrix) may read @q before 'quantize_blocks' number 1 of instance 0 of @b (queue vector) has written it: no wait orders them (read after write)

// -----

// The factor of a norm is taken before it is left.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @block_steps rows 4 of 1 x 5
fabric.memory @norm_scales rows 2 of 1 x 34
program.program @p positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.blocks<16, half8, 16, 16>
  program.buffer @s in @norm_scales at 0 : !rom.scale
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{w = @w0}] {
    program.instruction "quantize_blocks" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "rms_scale" on "vector" reads [@x] writes [@s] uses {} waits {} takes "9" {arguments = {eps = #rom.real<1, 0>}, onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q, @s] writes [@y] uses {weights = @w} waits {vector = 1 : i64} takes "1" {arguments = {pre_shift = 0 : i64, normed}, onnx = [["n"]]}
  }
}
// CHECK: 'matvec' number 2 of instance 0 of @b (queue matrix) may read @s before 'rms_scale' number 1 of instance 0 of @b (queue vector) has written it: no wait orders them (read after write)

// -----

// Both are there.
rom.parameter @w0 : !rom.tensor<[16, 16], int4, group 16> {key = "w0"}
fabric.memory @vectors rows 4 of 16 x 32
fabric.memory @codes rows 4 of 16 x 16
fabric.memory @block_steps rows 4 of 1 x 5
fabric.memory @norm_scales rows 2 of 1 x 34
program.program @factor positions [0] logits @y token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<16, 16>
  program.buffer @q in @codes at 1 : !rom.blocks<16, half8, 16, 16>
  program.buffer @s in @norm_scales at 0 : !rom.scale
  program.buffer @y in @vectors at 2 : !rom.fixed<16, 16>
  program.buffer @t : i32
  program.block @b instances [{w = @w0}] {
    program.instruction "quantize_blocks" on "vector" reads [@x] writes [@q] uses {} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "rms_scale" on "vector" reads [@x] writes [@s] uses {} waits {} takes "9" {arguments = {eps = #rom.real<1, 0>}, onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q, @s] writes [@y] uses {weights = @w} waits {vector = 2 : i64} takes "1" {arguments = {pre_shift = 0 : i64, normed}, onnx = [["n"]]}
  }
}
// CHECK: program.program @factor
