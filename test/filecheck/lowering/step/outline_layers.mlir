// RUN: xdsl-opt -p rom-outline-layers %s | filecheck %s

// Three layers of equal structure become one body; the first layer reads the embedding, the others
// what the layer before gives. Names of ONNX nodes stay, one list for each instance.

// CHECK:       rom.layer @layer {
// CHECK-NEXT:  ^bb0(%{{.*}}: index, %[[X:.*]]: tensor<8xf32>):
// CHECK-NEXT:    rom.slot @norm : !rom.tensor<[8], float32>
// CHECK-NEXT:    rom.slot @proj : !rom.tensor<[8, 8], int4, group 8>
// CHECK-NEXT:    rom.slot @key : !rom.kv<16, 1, 8, float32>
// CHECK-NEXT:    %[[N:.*]] = rom.rms_norm %[[X]] by @norm
// CHECK-SAME:        onnx = {{\[\[}}"norm.0"], ["norm.1"], ["norm.2"]]
// CHECK-NEXT:    %[[L:.*]] = rom.linear %[[N]] by @proj {onnx = {{\[\[}}"proj.0", "bias.0"], ["proj.1", "bias.1"], ["proj.2", "bias.2"]]}
// CHECK-NEXT:    rom.append %[[L]] to @key at %{{.*}} {onnx = {{\[\[}}"attention.0"], ["attention.1"], ["attention.2"]]}
// CHECK-NEXT:    %[[Y:.*]] = rom.add %[[X]], %[[L]] {onnx = {{\[\[}}"add.0"], ["add.1"], ["add.2"]]}
// CHECK-NEXT:    rom.yield %[[Y]] : tensor<8xf32>
// CHECK:       rom.step @decode context 16 {
// CHECK:         %[[E:.*]] = rom.embed
// CHECK-NEXT:    %[[R:.*]] = rom.repeat @layer at %{{.*}}(%[[E]]) instances
// CHECK-SAME:        [{norm = @layers_0_norm, proj = @layers_0_proj, key = @past_0_key}, {norm = @layers_1_norm, proj = @layers_1_proj, key = @past_1_key}, {norm = @layers_2_norm, proj = @layers_2_proj, key = @past_2_key}]
// CHECK-NEXT:    %{{.*}} = rom.linear %[[R]] by @head
builtin.module {
  rom.parameter @table : !rom.tensor<[16, 8], float32> {key = "onnx::table"}
  rom.parameter @layers_0_norm : !rom.tensor<[8], float32> {key = "onnx::n0"}
  rom.parameter @layers_1_norm : !rom.tensor<[8], float32> {key = "onnx::n1"}
  rom.parameter @layers_2_norm : !rom.tensor<[8], float32> {key = "onnx::n2"}
  rom.parameter @layers_0_proj : !rom.tensor<[8, 8], int4, group 8> {key = "onnx::w0", zero = 8 : i64}
  rom.parameter @layers_1_proj : !rom.tensor<[8, 8], int4, group 8> {key = "onnx::w1", zero = 8 : i64}
  rom.parameter @layers_2_proj : !rom.tensor<[8, 8], int4, group 8> {key = "onnx::w2", zero = 8 : i64}
  rom.parameter @head : !rom.tensor<[16, 8], int4, group 8> {key = "onnx::h", zero = 8 : i64}
  rom.cache @past_0_key : !rom.kv<16, 1, 8, float32>
  rom.cache @past_1_key : !rom.kv<16, 1, 8, float32>
  rom.cache @past_2_key : !rom.kv<16, 1, 8, float32>
  rom.step @decode context 16 {
  ^bb0(%token: i32, %position: index):
    %x = rom.embed %token of @table {onnx = [["embed"]]} : tensor<8xf32>
    %n0 = rom.rms_norm %x by @layers_0_norm {eps = 1.0e-05 : f64, onnx = [["norm.0"]]} : tensor<8xf32> -> tensor<8xf32>
    %l0 = rom.linear %n0 by @layers_0_proj {onnx = [["proj.0", "bias.0"]]} : tensor<8xf32> -> tensor<8xf32>
    rom.append %l0 to @past_0_key at %position {onnx = [["attention.0"]]} : tensor<8xf32>
    %y0 = rom.add %x, %l0 {onnx = [["add.0"]]} : tensor<8xf32>, tensor<8xf32> -> tensor<8xf32>
    %n1 = rom.rms_norm %y0 by @layers_1_norm {eps = 1.0e-05 : f64, onnx = [["norm.1"]]} : tensor<8xf32> -> tensor<8xf32>
    %l1 = rom.linear %n1 by @layers_1_proj {onnx = [["proj.1", "bias.1"]]} : tensor<8xf32> -> tensor<8xf32>
    rom.append %l1 to @past_1_key at %position {onnx = [["attention.1"]]} : tensor<8xf32>
    %y1 = rom.add %y0, %l1 {onnx = [["add.1"]]} : tensor<8xf32>, tensor<8xf32> -> tensor<8xf32>
    %n2 = rom.rms_norm %y1 by @layers_2_norm {eps = 1.0e-05 : f64, onnx = [["norm.2"]]} : tensor<8xf32> -> tensor<8xf32>
    %l2 = rom.linear %n2 by @layers_2_proj {onnx = [["proj.2", "bias.2"]]} : tensor<8xf32> -> tensor<8xf32>
    rom.append %l2 to @past_2_key at %position {onnx = [["attention.2"]]} : tensor<8xf32>
    %y2 = rom.add %y1, %l2 {onnx = [["add.2"]]} : tensor<8xf32>, tensor<8xf32> -> tensor<8xf32>
    %logits = rom.linear %y2 by @head {onnx = [["head"]]} : tensor<8xf32> -> tensor<16xf32>
    %next = rom.sample %logits {onnx = [["head"]]} : tensor<16xf32>
    rom.emit %logits, %next : tensor<16xf32>
  }
}

