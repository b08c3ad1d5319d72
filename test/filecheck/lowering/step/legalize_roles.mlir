// RUN: not xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize' %s 2>&1 | filecheck %s

// A tensor of the model in two roles is the user's to mend.

rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.parameter @g : !rom.tensor<[64], float32> {key = "g", peak = 1.0 : f64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w", peak = 1.0 : f64}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w bias @g {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
%z = rom.rms_norm %y by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @g would need two different integer forms, one of them for rom.rms_norm
// CHECK-NEXT: help: the model uses one tensor in two roles
