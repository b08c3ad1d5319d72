// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,rom-fuse-residual,fabric-place' -t mapping-json %S/program_to_hw.mlir | filecheck %s --check-prefix=MAPPING
// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,rom-fuse-residual,fabric-place,program-schedule' -t program-json %S/program_to_hw.mlir | filecheck %s --check-prefix=PROGRAM
// RUN: xdsl-opt -t system-verilog %s | filecheck %s --check-prefix=VERILOG
// RUN: not intaglio-opt -t mapping-json %S/program_to_hw.mlir 2>&1 | filecheck %s --check-prefix=NO-MAPPING
// RUN: not intaglio-opt -t program-json %S/program_to_hw.mlir 2>&1 | filecheck %s --check-prefix=NO-PROGRAM
// RUN: not intaglio-opt -t system-verilog %S/program_to_hw.mlir 2>&1 | filecheck %s --check-prefix=NO-VERILOG

// What other tools read, from stock xdsl-opt.

// MAPPING:      "target": "roma-mini",
// MAPPING:      "matrices": [
// PROGRAM:      "machine": {
// PROGRAM-NEXT: "name": "roma-mini",
// PROGRAM:      "blocks": [
// VERILOG:      module through(
// VERILOG:        assign q = a;
// NO-MAPPING:   the module places nothing; run fabric-place first
// NO-PROGRAM:   expected one program, found 0; run program-schedule first
// NO-VERILOG:   the module holds no hardware; run program-to-hw first

hw.module @through(in %a: i1, out q: i1) {
  hw.output %a : i1
}
