// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-encode' %S/program_to_hw.mlir -o %t.mlir
// RUN: filecheck %s --input-file %t.mlir
// RUN: xdsl-opt %t.mlir | diff - %t.mlir
// RUN: xdsl-opt -t descriptor-listing %t.mlir | filecheck %s --check-prefix=WORDS
// RUN: xdsl-opt -p program-encode %t.mlir --verify-diagnostics | filecheck %s --check-prefix=TWICE
// RUN: sed 's/columns = 64 : i64/columns = 128 : i64/' %t.mlir > %t.wide.mlir
// RUN: not xdsl-opt %t.wide.mlir 2>&1 | filecheck %s --check-prefix=WIDE
// RUN: sed 's/"columns", 7,/"columns", 8,/' %t.mlir > %t.other.mlir
// RUN: xdsl-opt -p program-to-hw %t.other.mlir --verify-diagnostics | filecheck %s --check-prefix=OTHER
// RUN: sed 's/of @head/of @tail/' %t.mlir > %t.block.mlir
// RUN: xdsl-opt -p program-to-hw %t.block.mlir --verify-diagnostics | filecheck %s --check-prefix=BLOCK
// RUN: not xdsl-opt -t descriptor-listing %S/program_to_hw.mlir 2>&1 | filecheck %s --check-prefix=NONE

// One descriptor for each beat of each instruction instance of a queue, in its order; those of the head come last, and the
// others are the `short` ones. Waits count from the token's acceptance, so each instance of a block has its own.

// CHECK:      program.program @decode
// CHECK:      program.queue "matrix" short 25 flows reduces fields [#program.field<"embed", 1,
// CHECK-NEXT:   program.descriptor "embed" of @part0 instance 0 number 0 waits {} fields {embed = 1 : i64,
// CHECK-NEXT:   program.descriptor "matvec" of @decoder instance 0 number [[Q:[0-9]+]] waits {vector = [[W:[0-9]+]] : i64} fields {embed = 0 : i64,
// CHECK-SAME:     code_base = 256 : i64, scale_base = 0 : i64,
// CHECK-SAME:     first = 0 : i64, last = 127 : i64,
// CHECK-NEXT:   program.descriptor "matvec" of @decoder instance 0 number {{[0-9]+}} waits {vector = [[W]] : i64}
// CHECK-SAME:     code_base = 260 : i64, scale_base = 1 : i64,
// CHECK-SAME:     first = 16 : i64, last = 127 : i64,
// CHECK-COUNT-6: program.descriptor "matvec" of @decoder instance 0 number {{[0-9]+}} waits {vector = [[W]] : i64}
// CHECK-COUNT-4: program.descriptor "matvec" of @decoder instance 0 number {{[0-9]+}} waits {matrix = 1 : i64, attention = {{[0-9]+}} : i64, vector = {{[0-9]+}} : i64}
// CHECK-NEXT:   program.descriptor "matvec" of @decoder instance 1 number [[Q]] waits {vector = [[X:[0-9]+]] : i64} fields {embed = 0 : i64,
// CHECK-SAME:     first = 0 : i64, last = 127 : i64,
// CHECK-COUNT-7: program.descriptor "matvec" of @decoder instance 1 number {{[0-9]+}} waits {vector = [[X]] : i64}
// CHECK-COUNT-4: program.descriptor "matvec" of @decoder instance 1 number {{[0-9]+}} waits {matrix = {{[0-9]+}} : i64, attention = {{[0-9]+}} : i64, vector = {{[0-9]+}} : i64}
// CHECK-COUNT-16: program.descriptor "matvec" of @head instance 0 number {{[0-9]+}} waits {vector = {{[0-9]+}} : i64}
// CHECK-NEXT: }
// CHECK:      program.queue "attention" short 8 flows reduces fields [#program.field<"weighted", 1,
// CHECK:      program.queue "vector" short [[ALL:[0-9]+]] flows reduces fields
// CHECK-NEXT:   program.descriptor "rms_norm" of @decoder instance 0 number 0 waits {matrix = 1 : i64, matrix_peaks = 1 : i64} fields
// CHECK-NEXT:   program.descriptor "rms_norm" of @decoder instance 0 number 1 waits {matrix = 1 : i64, reductions = 1 : i64} fields
// CHECK:        program.descriptor "rms_norm" of @decoder instance 1 number 1 waits {matrix = 10 : i64, reductions = {{[0-9]+}} : i64} fields
// CHECK:      program.queue "kv" short 8 flows fields

// WORDS: matrix: {{[0-9]+}} bits
// WORDS: 1: {{[0-9a-f]+}} decoder[0] matvec wait_matrix=0 wait_attention=0 wait_vector={{[0-9]+}} embed=0
// WORDS: kv:

// TWICE: the program is encoded already
// WIDE:  'embed': 128 does not fit the 7 bits of 'columns' (elements of a row)
// OTHER: the units of queue 'matrix' have other fields: field 'columns' is another
// BLOCK: a descriptor of queue 'matrix' is of no block @tail
// NONE:  the program is not encoded; run program-encode first
