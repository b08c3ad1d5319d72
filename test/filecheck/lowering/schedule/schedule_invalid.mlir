// RUN: xdsl-opt -p 'attach-target{target=roma-mini},fabric-place,program-schedule' %s --split-input-file --verify-diagnostics | filecheck %s
// RUN: xdsl-opt -p program-schedule %s --split-input-file --verify-diagnostics | filecheck %s --check-prefix=MACHINE

rom.cache @k : !rom.kv<128, 2, 16, int8>
// CHECK: expected one rom.step, found 0
// MACHINE: the module has no fabric.machine; run attach-target first

// -----

rom.parameter @emb : !rom.tensor<[256, 64], fixed16> {key = "emb"}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["e"]]} : tensor<64xf32>
  %y = rom.linear %x by @w {onnx = [["m"]]} : tensor<64xf32> -> tensor<64xf32>
  %next = rom.sample %y {onnx = [["h"]]} : tensor<64xf32>
  rom.emit %y, %next : tensor<64xf32>
}
// CHECK: rom.embed computes with floats; run rom-legalize first
