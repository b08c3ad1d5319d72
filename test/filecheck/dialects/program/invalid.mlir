// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @y token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @y is declared

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @z {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @z is declared

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: a block has at least one instance

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}, {v = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: instances of @b bind different slots

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "multiply" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: unknown opcode 'multiply', known are embed, embed_position, matvec,

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'copy' cannot stand in queue 'matrix'

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "tokens - 1" {onnx = [["n"]]}
  }
}
// CHECK: not a formula: 'tokens - 1'

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "2 *" {onnx = [["n"]]}
  }
}
// CHECK: not a formula: '2 *'

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "seconds" {onnx = [["n"]]}
  }
}
// CHECK: not a formula: 'seconds'

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {tile = 1 : i64} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: unknown queue 'tile', known are matrix, attention, vector, kv, power

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {vector = "all"} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: a wait for queue 'vector' is a count, not "all"

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {vector = -2 : i64} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: a wait leaves out the last 2 instructions of queue 'vector'; an instance of @b has 1

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {vector = 1 : i64} takes "1" {onnx = [["n"]]}
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'copy' waits for 1 instructions of queue 'vector', 0 are issued before it

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@u] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @u is declared

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "copy" on "vector" reads [@x] writes [@u] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @u is declared

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {weights = @v} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: no instance of @b binds slot @v

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {weights = 3 : i64} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'weights' of 'matvec' names no slot

// -----

program.block @b instances [{}] {
    program.instruction "copy" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
}
// CHECK: 'program.block' expects parent op 'program.program'

// -----

program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
// CHECK: 'program.buffer' expects parent op 'program.program'

// -----

program.instruction "add" on "vector" reads [] writes [] uses {} waits {} takes "1" {onnx = [["n"]]}
// CHECK: 'program.instruction' expects parent op 'program.block'

// -----

rom.parameter @w : !rom.tensor<[4, 4], ternary> {key = "w"}
fabric.domain @power0 [@w]
fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @x {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.block @b instances [{power = @power0, w = @w}] {
    program.instruction "wake" on "power" reads [] writes [] uses {domain = @power} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@q] writes [@x] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: 'matvec' number 1 of instance 0 of @b (queue matrix) may find power domain @power0 off: it does not wait for a wake of it

// -----

// As an instruction is declared (dialects/isa): values by number and kind, roles, arguments.
fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [] writes [] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'matvec' reads 1 or 2 values (input, residual), not 0

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "softcap" on "vector" reads [@t, @t, @t] writes [@x] uses {banana = @w} waits {} takes "1" {arguments = {pear = 3 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'softcap' reads 1 value (input), not 3

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "softcap" on "vector" reads [@x] writes [@x] uses {banana = @w} waits {} takes "1" {arguments = {cap = #rom.real<1, 0>, inverse = #rom.real<1, 0>}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'softcap' has the unknown role 'banana'; it has no roles

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "softcap" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {arguments = {cap = #rom.real<1, 0>, inverse = #rom.real<1, 0>, pear = 3 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'softcap' has the unknown argument 'pear'; arguments are inverse, cap

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "softcap" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {arguments = {cap = #rom.real<1, 0>}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'softcap' has no argument 'inverse'

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "softcap" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {arguments = {cap = #rom.real<1, 0>, inverse = 1 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: argument 'inverse' of 'softcap' is 1, not [mantissa, exponent]

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "softcap" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {arguments = {cap = #rom.real<16777216, 0>, inverse = #rom.real<1, 0>}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: argument 'cap' of 'softcap' has a wrong mantissa: it is 16777216, which 25 bits do not hold

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "softcap" on "vector" reads [@t] writes [@x] uses {} waits {} takes "1" {arguments = {cap = #rom.real<1, 0>, inverse = #rom.real<1, 0>}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'softcap' reads fixed-point numbers as input; 't' is a token

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@q] writes [@x] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 64 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: argument 'pre_shift' of 'matvec' is 64, which 6 bits do not hold

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@q] writes [@x] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 1.0 : f32}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: argument 'pre_shift' of 'matvec' is 1.000000e+00 : f32, not an integer

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@q] writes [@x] uses {} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'matvec' has no role 'weights'

// -----

rom.parameter @w : !rom.tensor<[4, 4], int4, group 4> {key = "w"}
rom.parameter @g : !rom.tensor<[4], fixed16> {key = "g"}
rom.cache @k : !rom.kv<8, 1, 4, int8>
fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @k}] {
    program.instruction "matvec" on "matrix" reads [@q] writes [@x] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'matvec' takes a matrix of codes in ROM as weights; 'k' is a cache

// -----

rom.parameter @w : !rom.tensor<[4, 4], int4, group 4> {key = "w"}
rom.parameter @g : !rom.tensor<[4], fixed16> {key = "g"}
rom.cache @k : !rom.kv<8, 1, 4, int8>
fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @g}] {
    program.instruction "matvec" on "matrix" reads [@q] writes [@x] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'matvec' takes a matrix of codes in ROM as weights; 'g' is a vector of numbers

// -----

rom.parameter @w : !rom.tensor<[4, 4], int4, group 4> {key = "w"}
rom.parameter @g : !rom.tensor<[4], fixed16> {key = "g"}
rom.cache @k : !rom.kv<8, 1, 4, int8>
fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "attention" reads [@q] writes [@x] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'matvec' takes a matrix of an adapter as weights; 'w' is a matrix of codes in ROM

// -----

rom.parameter @w : !rom.tensor<[4, 4], int4, group 4> {key = "w"}
rom.parameter @g : !rom.tensor<[4], fixed16> {key = "g"}
rom.cache @k : !rom.kv<8, 1, 4, int8>
fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{w = @v}] {
    program.instruction "matvec" on "matrix" reads [@q] writes [@x] uses {weights = @w} waits {} takes "1" {arguments = {pre_shift = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'matvec' takes a matrix of codes in ROM as weights; there is no 'v'

// -----

rom.parameter @w : !rom.tensor<[4, 4], int4, group 4> {key = "w"}
rom.parameter @g : !rom.tensor<[4], fixed16> {key = "g"}
rom.cache @k : !rom.kv<8, 1, 4, int8>
fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{k = @k}] {
    program.instruction "quantize" on "vector" reads [@x] writes [@q] uses {scale_of = @k} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'quantize' takes a cache with a static scale as scale_of; 'k' is a cache

// -----

fabric.memory @vectors rows 2 of 16 x 32
fabric.memory @codes rows 2 of 16 x 16
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<1, 0>
  program.buffer @q in @codes at 0 : !rom.quantized<1, 4, int8>
  program.buffer @t : i32
  program.block @b instances [{k = @k}] {
    program.instruction "query_key" on "attention" reads [@q] writes [@x] uses {keys = @k} waits {} takes "1" {arguments = {cap = #rom.real<1, 0>, log2e = #rom.real<1, 0>, score_scale = #rom.real<1, 0>, pre_shift = 0 : i64, window = 0 : i64}, onnx = [["n"]]}
  }
}
// CHECK: instruction 0 of @b: 'query_key' has no argument 'cap_inverse'; it takes cap, cap_inverse, log2e together

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @codes at 0 : !rom.fixed<16, 16>
}
// CHECK: @x lies in memory @vectors, being of fixed

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @t in @vectors at 0 : i32
}
// CHECK: @t lies in no memory, being of token

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @q in @codes at 0 : !rom.quantized<1, 16, int8>
}
// CHECK: @q lies in memory @codes, which the module does not state

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 3 : !rom.fixed<17, 16>
}
// CHECK: @x ends at row 5, memory @vectors has 4

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 3 : !rom.fixed<8, 16> {element = 16 : i64}
}
// CHECK: @x begins at row 3, element 16

// -----

// Scores take rows for the longest context: of two heads seven each.
rom.cache @k : !rom.kv<100, 2, 16, int8>
fabric.memory @scores rows 13 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @s in @scores at 0 : !rom.scores<2, 16>
}
// CHECK: @s ends at row 14, memory @scores has 13

// -----

program.program @p positions [0] logits @x token @t {
  program.buffer @x : index
}
// CHECK: @x has a type that no value has

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<32, 16>
  program.buffer @t : i32
  program.buffer @h in @vectors at 1 : !rom.fixed<32, 16> {of = @x}
}
// CHECK: @h does not lie within 'x', of which it is a part

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<32, 16>
  program.buffer @t : i32
  program.buffer @h in @vectors at 1 : !rom.fixed<16, 15> {of = @x}
}
// CHECK: @h has 15 fraction bits, 'x', of which it is a part, 16

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<32, 16>
  program.buffer @t : i32
  program.buffer @h in @vectors at 1 : !rom.fixed<16, 16> {of = @z}
}
// CHECK: @h is a part of 'z', and there is no buffer of this name

// -----

fabric.memory @vectors rows 4 of 16 x 32
program.program @p positions [0] logits @x token @t {
  program.buffer @x in @vectors at 0 : !rom.fixed<32, 16>
  program.buffer @t : i32
  program.buffer @h in @vectors at 1 : !rom.fixed<16, 16> {of = @x}
  program.block @b instances [{}] {
    program.instruction "copy" on "vector" reads [@x] writes [@h] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: @h is written by an instruction, and is a part of 'x'
