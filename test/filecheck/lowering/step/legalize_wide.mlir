// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize' %s 2>&1 | filecheck %s

// What no accumulator can hold exactly is refused, with the node.

rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.parameter @w : !rom.tensor<[64, 8388608], int4, group 32, offsets 32> {key = "w", zero = 8 : i64, peak = 1.0 : f64}

rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = "test.op"() : () -> tensor<8388608xf32>
  %y = rom.linear %x by @w {onnx = [["proj"]]} : tensor<8388608xf32> -> tensor<64xf32>
  %s = rom.sample %y {onnx = [["head"]]} : tensor<64xf32>
  rom.emit %y, %s : tensor<64xf32>
}
// CHECK: node 'proj': weights of int4 with offsets of 32 bits for 8388608 inputs of int8 are beyond the chip's arithmetic: an exact sum needs 63 bits, more than 62
