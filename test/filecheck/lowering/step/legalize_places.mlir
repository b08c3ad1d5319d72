// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=half8","probabilities=places8"},rom-legalize' %s | filecheck %s

rom.cache @k : !rom.kv<128, 2, 16, float32>
rom.cache @v : !rom.kv<128, 2, 16, float32>

rom.layer @l {
^bb0(%p: index, %q: tensor<64xf32>):
  %a = rom.attention %q over @k, @v at %p {heads = 4 : i64, scale = 0.25 : f64, onnx = [["gqa"]]} : tensor<64xf32> -> tensor<64xf32>
  rom.yield %a : tensor<64xf32>
}
// CHECK:      [[W:%\w+]] = rom.softmax %{{\w+}} over @v at %{{\w+}} {{.*}} -> !rom.probabilities<4, places8>
// CHECK-NEXT: rom.weighted_sum [[W]] over @v
