// RUN: xdsl-opt -p cse %s | filecheck %s --check-prefix=CSE
// RUN: xdsl-opt -p dce %s | filecheck %s --check-prefix=DCE

// Stock passes may merge and remove operators that read ROM only, never a write to a cache.

rom.parameter @embedding : !rom.tensor<[256, 32], float32> {key = "onnx::e"}
rom.parameter @w : !rom.tensor<[32, 32], int4, group 32> {key = "onnx::w"}
rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.cache @v : !rom.kv<128, 2, 16, float32>
rom.layer @layer {
^bb0(%p: index, %x: tensor<32xf32>):
  rom.append %x to @k at %p {onnx = [["l"]]} : tensor<32xf32>
  rom.yield %x : tensor<32xf32>
}
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @embedding {onnx = [["e"]]} : tensor<32xf32>
  // Two equal products of one matrix, and one that nothing uses.
  %a = rom.linear %x by @w {onnx = [["a"]]} : tensor<32xf32> -> tensor<32xf32>
  %b = rom.linear %x by @w {onnx = [["a"]]} : tensor<32xf32> -> tensor<32xf32>
  %dead = rom.activate %x {kind = "relu", onnx = [["dead"]]} : tensor<32xf32> -> tensor<32xf32>
  // Equal attentions: the first two see the same cache, the third a token more.
  %r0 = rom.attention %a over @k, @v at %position {heads = 2 : i64, scale = 1.0 : f64, onnx = [["r"]]} : tensor<32xf32> -> tensor<32xf32>
  %r1 = rom.attention %a over @k, @v at %position {heads = 2 : i64, scale = 1.0 : f64, onnx = [["r"]]} : tensor<32xf32> -> tensor<32xf32>
  rom.append %a to @k at %position {onnx = [["k"]]} : tensor<32xf32>
  rom.append %a to @k at %position {onnx = [["k"]]} : tensor<32xf32>
  %r2 = rom.attention %a over @k, @v at %position {heads = 2 : i64, scale = 1.0 : f64, onnx = [["r"]]} : tensor<32xf32> -> tensor<32xf32>
  %unread = rom.repeat @layer at %position (%a) instances [{}] : (tensor<32xf32>) -> tensor<32xf32>
  %s0 = rom.add %r0, %r1 {onnx = [["s0"]]} : tensor<32xf32>, tensor<32xf32> -> tensor<32xf32>
  %s1 = rom.add %s0, %r2 {onnx = [["s1"]]} : tensor<32xf32>, tensor<32xf32> -> tensor<32xf32>
  %s2 = rom.add %s1, %b {onnx = [["s2"]]} : tensor<32xf32>, tensor<32xf32> -> tensor<32xf32>
  %next = rom.sample %s2 {onnx = [["h"]]} : tensor<32xf32>
  rom.emit %s2, %next : tensor<32xf32>
}

// CSE:      rom.layer @layer
// CSE:      rom.step @decode
// CSE:        rom.embed
// CSE-NEXT:   [[A:%\w+]] = rom.linear
// CSE-NEXT:   [[R0:%\w+]] = rom.attention
// CSE-NEXT:   rom.append [[A]] to @k
// CSE-NEXT:   rom.append [[A]] to @k
// CSE-NEXT:   [[R2:%\w+]] = rom.attention
// CSE-NEXT:   rom.repeat @layer
// CSE-NEXT:   [[S0:%\w+]] = rom.add [[R0]], [[R0]]
// CSE-NEXT:   [[S1:%\w+]] = rom.add [[S0]], [[R2]]
// CSE-NEXT:   rom.add [[S1]], [[A]]

// DCE:      rom.layer @layer
// DCE:        rom.append
// DCE:      rom.step @decode
// DCE:        rom.embed
// DCE-NEXT:   rom.linear
// DCE-NEXT:   rom.linear
// DCE-NEXT:   rom.attention
// DCE-NEXT:   rom.attention
// DCE-NEXT:   rom.append
// DCE-NEXT:   rom.append
// DCE-NEXT:   rom.attention
// DCE-NEXT:   rom.repeat @layer
// DCE-NEXT:   rom.add
