// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

program.program @p positions [0] logits @y token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @y is declared

// -----

program.program @p positions [0] logits @x token @z {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @z is declared

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: a block has at least one instance

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}, {v = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: instances of @b bind different slots

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "multiply" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: unknown opcode 'multiply', known are embed, matvec,

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'matvec' cannot stand in queue 'vector'

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "tokens - 1" {onnx = [["n"]]}
  }
}
// CHECK: not a formula: 'tokens - 1'

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "2 *" {onnx = [["n"]]}
  }
}
// CHECK: not a formula: '2 *'

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "seconds" {onnx = [["n"]]}
  }
}
// CHECK: not a formula: 'seconds'

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {tile = 1 : i64} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: unknown queue 'tile', known are matrix, attention, vector, kv, power

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {vector = "all"} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: a wait for queue 'vector' is a count, not "all"

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {vector = -1 : i64} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: a wait for queue 'vector' is a count, not -1 : i64

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {vector = 1 : i64} takes "1" {onnx = [["n"]]}
    program.instruction "add" on "vector" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'matvec' waits for 1 instructions of queue 'vector', 0 are issued before it

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@u] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @u is declared

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@u] uses {} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no buffer @u is declared

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {weights = @v} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: no instance of @b binds slot @v

// -----

program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{w = @w}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {weights = 3 : i64} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'weights' of 'matvec' names no slot

// -----

program.block @b instances [{}] {
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {} waits {} takes "1" {onnx = [["n"]]}
}
// CHECK: 'program.block' expects parent op 'program.program'

// -----

program.buffer @x at 0 size 4 : i32
// CHECK: 'program.buffer' expects parent op 'program.program'

// -----

program.instruction "add" on "vector" reads [] writes [] uses {} waits {} takes "1" {onnx = [["n"]]}
// CHECK: 'program.instruction' expects parent op 'program.block'

// -----

rom.parameter @w : !rom.tensor<[4, 4], ternary> {key = "w"}
fabric.domain @power0 [@w]
program.program @p positions [0] logits @x token @x {
  program.buffer @x at 0 size 4 : i32
  program.block @b instances [{power = @power0, w = @w}] {
    program.instruction "wake" on "power" reads [] writes [] uses {domain = @power} waits {} takes "9" {onnx = [["n"]]}
    program.instruction "matvec" on "matrix" reads [@x] writes [@x] uses {weights = @w} waits {} takes "1" {onnx = [["n"]]}
  }
}
// CHECK: 'matvec' number 1 of instance 0 of @b (queue matrix) may find power domain @power0 off: it does not wait for a wake of it
