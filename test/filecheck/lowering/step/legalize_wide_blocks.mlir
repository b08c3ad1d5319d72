// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=half8"},rom-legalize' %s 2>&1 | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=mxint8"},rom-legalize' %s | filecheck %s --check-prefix=MX
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize' %s | filecheck %s --check-prefix=INT8

// Half steps take two bits of the sum, which powers of two leave; one scale takes none of 15 places.

rom.parameter @w : !rom.tensor<[64, 28672], int8, group 32, zeros> {key = "w", peak = 1.0 : f64}
rom.parameter @wide : !rom.tensor<[64, 53248], int4, group 32, zeros> {key = "v", peak = 1.0 : f64}
rom.parameter @e : !rom.tensor<[16, 28672], float32> {key = "e", peak = 1.0 : f64}
rom.parameter @f : !rom.tensor<[16, 53248], float32> {key = "f", peak = 1.0 : f64}
rom.cache @k : !rom.kv<128, 2, 16, float32>

rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %v = rom.embed %token of @f {onnx = [["Gather"]]} : tensor<53248xf32>
  %u = rom.linear %v by @wide {onnx = [["up"]]} : tensor<53248xf32> -> tensor<64xf32>
  %x = rom.embed %token of @e {onnx = [["Gather"]]} : tensor<28672xf32>
  %y = rom.linear %x by @w {onnx = [["down"]]} : tensor<28672xf32> -> tensor<64xf32>
  %s = rom.sample %y {onnx = [["head"]]} : tensor<64xf32>
  rom.emit %y, %s : tensor<64xf32>
}
// CHECK: node 'down': weights of int8 for 28672 inputs of half8 are beyond the chip's arithmetic: an exact sum needs 63 bits, more than 62
// CHECK: help: --set activations=mxint8, or --set activations=int8
// MX: !rom.accumulator<64, 58>
// MX: !rom.accumulator<64, 61>
// INT8: !rom.accumulator<64, 43>
// INT8: !rom.accumulator<64, 46>
