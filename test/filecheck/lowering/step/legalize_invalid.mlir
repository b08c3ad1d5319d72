// RUN: xdsl-opt -p 'rom-legalize' %s --split-input-file --verify-diagnostics | filecheck %s --check-prefix=MACHINE
// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize' %s --split-input-file --verify-diagnostics | filecheck %s

rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.parameter @w : !rom.tensor<[64, 64], float32> {key = "w", peak = 1.0 : f64}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// MACHINE: the module has no fabric.machine; run attach-target first
// CHECK: @w holds floats and no operator says how to convert it

// -----

rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.parameter @g : !rom.tensor<[64], float32> {key = "g", peak = 1.0 : f64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w", peak = 1.0 : f64}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w bias @g {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
%z = rom.rms_norm %y by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @g would need two different integer forms, one of them for rom.rms_norm

// -----

rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @w states no peak to choose an exponent by
