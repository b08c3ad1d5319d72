// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=half8"},rom-legalize' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=half8","kv=half8"},rom-legalize' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int16","kv=half8"},rom-legalize' %s | filecheck %s --check-prefix=WIDE

rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.cache @v : !rom.kv<128, 2, 16, float32>
rom.cache @s : !rom.kv<128, 2, 16, int8, static> {static_scale = 0.01 : f64}

// Queries, keys and values have an exponent and a step a head; wider queries keep their scale, and
// a cache with a scale of the graph its own codes.
// CHECK: rom.cache @k : !rom.kv<128, 2, 16, half8>
// CHECK: rom.cache @s : !rom.kv<128, 2, 16, int8, static>
rom.layer @l {
^bb0(%p: index, %q: tensor<64xf32>, %x: tensor<32xf32>):
  rom.append %x to @k at %p {onnx = [["kv"]]} : tensor<32xf32>
  rom.append %x to @v at %p {onnx = [["kv"]]} : tensor<32xf32>
  rom.append %x to @s at %p {onnx = [["kv"]]} : tensor<32xf32>
  %a = rom.attention %q over @k, @v at %p {heads = 4 : i64, scale = 0.25 : f64, onnx = [["gqa"]]} : tensor<64xf32> -> tensor<64xf32>
  rom.yield %a, %x : tensor<64xf32>, tensor<32xf32>
}
// CHECK:      [[K:%\w+]] = rom.quantize_heads %{{\w+}} {{.*}} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, half8>
// CHECK-NEXT: rom.append [[K]] to @k
// CHECK-NEXT: [[V:%\w+]] = rom.quantize_heads
// CHECK-NEXT: rom.append [[V]] to @v
// CHECK-NEXT: [[S:%\w+]] = rom.quantize %{{\w+}} for @s {{.*}} -> !rom.quantized<2, 16, int8>
// CHECK-NEXT: rom.append [[S]] to @s
// CHECK-NEXT: [[Q:%\w+]] = rom.quantize_heads %{{\w+}} {{.*}} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, half8>
// CHECK-NEXT: rom.query_key [[Q]] over @k
// WIDE:      rom.quantize %{{\w+}} {{.*}} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, int16>
