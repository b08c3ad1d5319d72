// RUN: intaglio-opt %S/program_to_hw.mlir -p "attach-target{target=roma-mini},rom-legalize,rom-fuse-residual,fabric-place,program-schedule,program-to-hw" --verify-diagnostics | filecheck %s --check-prefix=ENCODED
// RUN: intaglio-opt %s -p program-encode --verify-diagnostics | filecheck %s

// CHECK: expected one program, found 0; run program-schedule first
// ENCODED: the program is not encoded; run program-encode first

builtin.module {
}
