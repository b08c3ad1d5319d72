// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize,fabric-place' %s | filecheck %s --check-prefix=PLACE
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize,fabric-place,program-schedule' %s -o %t.mlir
// RUN: python %S/../../whole.py < %t.mlir | filecheck %s --check-prefix=PROGRAM

// A layer with two of four experts, from float operators to instructions.

rom.cache @k : !rom.kv<64, 2, 16, float32>
rom.parameter @emb : !rom.tensor<[256, 64], float32> {key = "emb", peak = 1.0 : f64}
rom.parameter @router : !rom.tensor<[4, 64], int4, group 32> {key = "router", peak = 1.0 : f64, zero = 8 : i64}
rom.parameter @up : !rom.tensor<[512, 64], int4, group 32, experts 4> {key = "up", peak = 1.0 : f64, zero = 8 : i64}
rom.parameter @bias : !rom.tensor<[4, 128], float32> {key = "bias", peak = 1.0 : f64}
rom.parameter @down : !rom.tensor<[256, 64], int4, group 32, experts 4> {key = "down", peak = 1.0 : f64, zero = 8 : i64}
rom.parameter @head : !rom.tensor<[256, 64], int4, group 32> {key = "head", peak = 1.0 : f64, zero = 8 : i64}

// CHECK: rom.parameter @up : !rom.tensor<[512, 64], int4, group 32, experts 4> {{.*}}exponent =
// CHECK: rom.parameter @bias : !rom.tensor<[4, 128], fixed32> {{.*}}exponent = 16

// One expert's rows are placed; those of the others follow at the same distance in every bank.
// PLACE:      fabric.engrave @up in [#fabric.piece<rows 0 to 128, tiles 0 to 8, split [[SPLIT:[0-9]+]], at [[UP:[0-9]+]], {{[0-9]+}}>]
// PLACE-NEXT: fabric.engrave @down in [#fabric.piece<rows 0 to 64, tiles 0 to 8,
// PLACE-NOT:  fabric.engrave @bias
// PLACE:      fabric.constant @bias in @constants at 0

rom.step @decode context 64 {
^bb0(%token: i32, %p: index):
  %x = rom.embed %token of @emb {onnx = [["emb"]]} : tensor<64xf32>
  %kv = rom.slice %x from 0 {onnx = [["kv"]]} : tensor<64xf32> -> tensor<32xf32>
  rom.append %kv to @k at %p {onnx = [["kv"]]} : tensor<32xf32>
  %logits = rom.linear %x by @router {onnx = [["router"]]} : tensor<64xf32> -> tensor<4xf32>
  // CHECK: %[[R:\w+]] = rom.route %{{\w+}} {onnx = {{\[}}["moe"]]} : !rom.fixed<4, 16> -> !rom.routing<2, 4>
  // PROGRAM: program.instruction "route" on "vector" reads [@{{\w+}}] writes [@[[R:\w+]]]
  %r = rom.route %logits {onnx = [["moe"]]} : tensor<4xf32> -> !rom.routing<2, 4>
  // Both experts take the same codes.
  // CHECK: %[[Y:\w+]] = rom.expert_product %[[Q:\w+]], %[[R]] expert 0 by @up bias @bias {pre_shift = 0 : i64,
  // PROGRAM-DAG: program.instruction "expert_matvec" on "matrix" reads [@[[Q:\w+]], @[[R]]] writes [@{{\w+}}] uses {weights = @up, bias = @bias} {{.*}} {arguments = {pre_shift = 0 : i64, expert = 0 : i64}
  %h0 = rom.expert_linear %x, %r expert 0 by @up bias @bias {onnx = [["moe"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<128xf32>
  %g0 = rom.slice %h0 from 0 {onnx = [["moe"]]} : tensor<128xf32> -> tensor<64xf32>
  // CHECK: rom.clip %{{\w+}} {high = #rom.real<14680064, 21>, onnx = {{.*}}, low = #rom.real<-8388608, -8>}
  // PROGRAM-DAG: program.instruction "clip" on "vector" {{.*}}{arguments = {low = #rom.real<-8388608, -8>, high = #rom.real<14680064, 21>}
  %c0 = rom.clip %g0 {high = 7.0 : f64, onnx = [["moe"]]} : tensor<64xf32> -> tensor<64xf32>
  %y0 = rom.expert_linear %c0, %r expert 0 by @down {onnx = [["moe"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
  // CHECK: %[[Z:\w+]] = rom.weigh %{{\w+}}, %[[R]] expert 0 {onnx
  %z0 = rom.weigh %y0, %r expert 0 {onnx = [["moe"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
  // CHECK: rom.expert_product %[[Q]], %[[R]] expert 1 by @up bias @bias
  %h1 = rom.expert_linear %x, %r expert 1 by @up bias @bias {onnx = [["moe"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<128xf32>
  %g1 = rom.slice %h1 from 0 {onnx = [["moe"]]} : tensor<128xf32> -> tensor<64xf32>
  %y1 = rom.expert_linear %g1, %r expert 1 by @down {onnx = [["moe"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
  // CHECK: rom.weigh %{{\w+}}, %[[R]] expert 1 plus %[[Z]] {onnx
  // PROGRAM-DAG: program.instruction "weigh" on "vector" reads [@{{\w+}}, @[[R]], @{{\w+}}] writes [@{{\w+}}] {{.*}} {arguments = {expert = 1 : i64}
  %z1 = rom.weigh %y1, %r expert 1 plus %z0 {onnx = [["moe"]]} : tensor<64xf32>, !rom.routing<2, 4>, tensor<64xf32> -> tensor<64xf32>
  %v = rom.linear %z1 by @head {onnx = [["head"]]} : tensor<64xf32> -> tensor<256xf32>
  %next = rom.sample %v {onnx = [["head"]]} : tensor<256xf32>
  rom.emit %v, %next : tensor<256xf32>
}
