// Passes out of order: each says which one is missing, or that it comes too late.

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},fabric-place' %s --verify-diagnostics | filecheck %s --check-prefix=FLOATS
// RUN: xdsl-opt -p 'attach-target{target=roma-mini},program-schedule' %s --verify-diagnostics | filecheck %s --check-prefix=FLOATS
// RUN: xdsl-opt -p 'rom-fuse-residual' %s --verify-diagnostics | filecheck %s --check-prefix=FLOATS
// FLOATS: rom.embed computes with floats; run rom-legalize first

// RUN: xdsl-opt -p 'rom-adapter-slots{rank=4}' %s --verify-diagnostics | filecheck %s --check-prefix=MACHINE
// RUN: xdsl-opt -p 'fabric-place' %s --verify-diagnostics | filecheck %s --check-prefix=MACHINE
// MACHINE: the module has no fabric.machine; run attach-target first

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,program-schedule' %s --verify-diagnostics | filecheck %s --check-prefix=PLACE
// PLACE: @w has no place; run fabric-place first

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,fabric-place,program-encode' %s --verify-diagnostics | filecheck %s --check-prefix=PROGRAM
// PROGRAM: expected one program, found 0; run program-schedule first

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,rom-legalize' %s --verify-diagnostics | filecheck %s --check-prefix=LEGALISED
// LEGALISED: the module is legalised already

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,rom-adapter-slots{rank=4}' %s --verify-diagnostics | filecheck %s --check-prefix=SLOTS
// SLOTS: the module is legalised already; rom-adapter-slots comes before rom-legalize

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,attach-target{target=tom-mini}' %s --verify-diagnostics | filecheck %s --check-prefix=TARGET
// TARGET: the module is legalised already; attach-target comes before rom-legalize

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,fabric-place,fabric-place' %s --verify-diagnostics | filecheck %s --check-prefix=PLACED
// PLACED: the module is placed already

// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,fabric-place,program-schedule,fabric-place' %s --verify-diagnostics | filecheck %s --check-prefix=SCHEDULED
// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,fabric-place,program-schedule,program-schedule' %s --verify-diagnostics | filecheck %s --check-prefix=SCHEDULED
// SCHEDULED: the module is scheduled already

// The same machine again changes nothing, and layers are found in integers too.
// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,attach-target{target=roma-mini},rom-outline-layers' %s | filecheck %s --check-prefix=SAME
// SAME: !rom.fixed<64, 16>

rom.parameter @emb : !rom.tensor<[256, 64], float32> {key = "emb", peak = 0.1 : f64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w", zero = 8 : i64, peak = 0.01 : f64}
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["Gather"]]} : tensor<64xf32>
  %y = rom.linear %x by @w {onnx = [["m"]]} : tensor<64xf32> -> tensor<64xf32>
  %next = rom.sample %y {onnx = [["m"]]} : tensor<64xf32>
  rom.emit %y, %next : tensor<64xf32>
}
