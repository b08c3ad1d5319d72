// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="wide.o_proj=0,2","wide.lm_head=all"},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-encode' %S/program_to_hw.mlir -o %t.mlir
// RUN: filecheck %s --input-file %t.mlir
// RUN: xdsl-opt %t.mlir | diff - %t.mlir
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations.o_proj=mxint8","activations.lm_head=int8","formats.block=8","wide.o_proj=1,6"},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-encode' %S/program_to_hw.mlir | filecheck %s --check-prefix=STEPS
// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-encode' %S/program_to_hw.mlir | filecheck %s --check-prefix=NONE
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8","activations.o_proj=half8"},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-encode' %S/program_to_hw.mlir 2>&1 | filecheck %s --check-prefix=STAGE
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="activations=fp8","kv=int8","activations.o_proj=int8"},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-encode' %S/program_to_hw.mlir 2>&1 | filecheck %s --check-prefix=FP8

// Words with elements of a wide block are read twice, here those of whole rounds, or none of them; a vector is quantised a
// row at a time, of one block.

// CHECK:      program.queue "matrix"
// CHECK-SAME:   #program.field<"wide", 1, "a bit for each word of the slice, or of the round: 1: it is read for longer codes; of one bit: all words are, or none">
// CHECK:        program.descriptor "matvec" of @decoder instance 0 number {{.*}} planes = 1 : i64, wide = 0 : i64,
// CHECK:        program.descriptor "matvec" of @head instance 0 {{.*}} wide = 1 : i64,
// CHECK:      program.queue "vector"
// CHECK-SAME:   #program.field<"wide", 1, "a bit for each block: 1: its codes have 16 bits; of one bit: those of all blocks">
// CHECK:        program.descriptor "quantize_blocks" of @decoder instance 0 {{.*}} wide = 1 : i64}
// CHECK-NEXT:   program.descriptor "quantize_blocks" of @decoder instance 0 {{.*}} wide = 0 : i64}

// Of a row of two blocks one is wide: a bit each. With both kinds of steps it is told which is meant.

// STEPS:      program.queue "vector"
// STEPS-SAME:   #program.field<"wide", 2, {{.*}} #program.field<"to_even", 1, "1: steps are powers of two, codes are rounded to even">
// STEPS:        program.descriptor "quantize_blocks" of @decoder instance 0 {{.*}} wide = 0 : i64, to_even = 0 : i64}
// STEPS:        program.descriptor "quantize_blocks" of @decoder instance 0 {{.*}} wide = 2 : i64, to_even = 1 : i64}
// STEPS:        program.descriptor "quantize_blocks" of @decoder instance 0 {{.*}} wide = 1 : i64, to_even = 1 : i64}

// NONE-NOT: #program.field<"wide"
// NONE-NOT: "to_even"

// STAGE: the hardware of roma-mini multiplies inputs of int8; those of o0, o1 are half8: its L-Units have no stage for the exponents of blocks
// STAGE: help: --set activations=half8, with activations.NAME=int8 for the others, or --emit program
// FP8:   the hardware of roma-mini multiplies inputs of fp8; those of o0, o1 are int8: E4M3 codes are decoded for all products or for none
