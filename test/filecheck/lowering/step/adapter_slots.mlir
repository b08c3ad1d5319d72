// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=8}' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=8}' %s | xdsl-opt | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8","formats.adapter=int8"},rom-adapter-slots{rank=4 modules="gate_up_proj"}' %s | filecheck %s --check-prefix=SOME
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8","policy.adapter_sites=o_proj"},rom-adapter-slots{rank=4}' %s | filecheck %s --check-prefix=POLICY
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=8},rom-legalize,rom-fuse-residual' %s | filecheck %s --check-prefix=INTEGER
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=8 modules="q_proj","nowhere"}' %s 2>&1 | filecheck %s --check-prefix=UNKNOWN
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=8 residents=3}' %s | filecheck %s --check-prefix=RESIDENTS
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=8 residents=3}' %s | xdsl-opt | filecheck %s --check-prefix=RESIDENTS
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=8 residents=0}' %s 2>&1 | filecheck %s --check-prefix=NOBODY
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-adapter-slots{rank=0}' %s 2>&1 | filecheck %s --check-prefix=RANK
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=fp8"},rom-adapter-slots{rank=8},rom-legalize' %s | filecheck %s --check-prefix=WIDE
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="kv=int8","activations=half8"},rom-adapter-slots{rank=8},rom-legalize' %s | filecheck %s --check-prefix=BLOCKS
// RUN: xdsl-opt -p 'rom-adapter-slots{rank=8}' --verify-diagnostics %s | filecheck %s --check-prefix=MACHINE

rom.parameter @emb : !rom.tensor<[16, 8192], float32> {key = "e", peak = 1.0 : f64}
rom.parameter @n : !rom.tensor<[8192], float32> {key = "n", peak = 1.0 : f64}
rom.parameter @qkv0 : !rom.tensor<[16, 8192], int4, group 32> {key = "qkv0", zero = 8 : i64, peak = 0.1 : f64}
rom.parameter @qkv1 : !rom.tensor<[16, 8192], int4, group 32> {key = "qkv1", zero = 8 : i64, peak = 0.1 : f64}
rom.parameter @o0 : !rom.tensor<[8192, 8], int4, group 32> {key = "o0", zero = 8 : i64, peak = 0.1 : f64}
rom.parameter @o1 : !rom.tensor<[8192, 8], int4, group 32> {key = "o1", zero = 8 : i64, peak = 0.1 : f64}
rom.parameter @gate_up0 : !rom.tensor<[24, 8192], int4, group 32> {key = "gu0", zero = 8 : i64, peak = 0.1 : f64}
rom.parameter @gate_up1 : !rom.tensor<[24, 8192], int4, group 32> {key = "gu1", zero = 8 : i64, peak = 0.1 : f64}
rom.parameter @down0 : !rom.tensor<[8192, 12], int4, group 32> {key = "d0", zero = 8 : i64, peak = 0.1 : f64}
rom.parameter @down1 : !rom.tensor<[8192, 12], int4, group 32> {key = "d1", zero = 8 : i64, peak = 0.1 : f64}
rom.cache @k0 : !rom.kv<128, 1, 4, float32>
rom.cache @v0 : !rom.kv<128, 1, 4, float32>
rom.cache @k1 : !rom.kv<128, 1, 4, float32>
rom.cache @v1 : !rom.kv<128, 1, 4, float32>

// Two slots a site and layer. Their keys say what they are for; they have a scale a row.
// CHECK:      rom.parameter @layers_0_q_proj_A : !rom.adapter<[8, 8192], fp8> {key = "adapter::layers.0.q_proj.A"}
// CHECK-NEXT: rom.parameter @layers_0_q_proj_B : !rom.adapter<[8, 8], fp8> {key = "adapter::layers.0.q_proj.B"}
// CHECK-NEXT: rom.parameter @layers_1_q_proj_A : !rom.adapter<[8, 8192], fp8> {key = "adapter::layers.1.q_proj.A"}
// CHECK-NEXT: rom.parameter @layers_1_q_proj_B
// CHECK-NEXT: rom.parameter @layers_0_k_proj_A : !rom.adapter<[8, 8192], fp8>
// CHECK-NEXT: rom.parameter @layers_0_k_proj_B : !rom.adapter<[4, 8], fp8>

// Sites in the order of the layers; parts of a packed matrix by their rows.
// CHECK:      rom.site "layers.0.q_proj" beside @qkv0 rows 0 to 8 by @layers_0_q_proj_A, @layers_0_q_proj_B {onnx = {{\[}}["qkv.0"]]}
// CHECK-NEXT: rom.site "layers.0.k_proj" beside @qkv0 rows 8 to 12 by
// CHECK-NEXT: rom.site "layers.0.v_proj" beside @qkv0 rows 12 to 16 by
// CHECK-NEXT: rom.site "layers.0.o_proj" beside @o0 rows 0 to 8192 by
// CHECK-NEXT: rom.site "layers.0.gate_proj" beside @gate_up0 rows 12 to 24 by
// CHECK-NEXT: rom.site "layers.0.up_proj" beside @gate_up0 rows 0 to 12 by
// CHECK-NEXT: rom.site "layers.0.down_proj" beside @down0 rows 0 to 8192 by
// CHECK-NEXT: rom.site "layers.1.q_proj" beside @qkv1 rows 0 to 8 by @layers_1_q_proj_A, @layers_1_q_proj_B {onnx = {{\[}}["qkv.1"]]}

// The layer has slots, and the products: A beside the matrix, B when its results are needed, three
// sites of one input together.
// CHECK:      rom.layer @layer
// CHECK:        rom.slot @q_proj_A : !rom.adapter<[8, 8192], fp8>
// CHECK-NEXT:   rom.slot @q_proj_B : !rom.adapter<[8, 8], fp8>
// CHECK:        %[[QKV:\w+]] = rom.linear %{{\w+}} by @qkv
// CHECK-NEXT:   %[[A:\w+]] = rom.linear %{{\w+}} by @q_proj_A {onnx = {{\[}}["qkv.0"], ["qkv.1"]]} : tensor<8192xf32> -> tensor<8xf32>
// CHECK-NEXT:   rom.linear %{{\w+}} by @k_proj_A
// CHECK-NEXT:   rom.linear %{{\w+}} by @v_proj_A
// CHECK-NEXT:   %[[Q:\w+]] = rom.slice %[[QKV]] from 0
// CHECK-NEXT:   %{{\w+}} = rom.slice %[[QKV]] from 8
// CHECK-NEXT:   %{{\w+}} = rom.slice %[[QKV]] from 12
// CHECK-NEXT:   %[[B:\w+]] = rom.linear %[[A]] by @q_proj_B {onnx = {{\[}}["qkv.0"], ["qkv.1"]]} : tensor<8xf32> -> tensor<8xf32>
// CHECK-NEXT:   %[[SUM:\w+]] = rom.add %[[Q]], %[[B]]
// CHECK:        rom.append
// CHECK-NEXT:   rom.append
// CHECK-NEXT:   rom.attention %[[SUM]] over @key, @value
// The residual is added first.
// CHECK-NEXT:   %[[O:\w+]] = rom.linear %{{\w+}} by @o
// CHECK-NEXT:   rom.linear %{{\w+}} by @o_proj_A
// CHECK-NEXT:   %[[M:\w+]] = rom.add %{{\w+}}, %[[O]]
// CHECK-NEXT:   %[[D:\w+]] = rom.linear %{{\w+}} by @o_proj_B
// CHECK-NEXT:   rom.add %[[M]], %[[D]]
// CHECK:      instances [{{.*}}q_proj_A = @layers_0_q_proj_A, q_proj_B = @layers_0_q_proj_B{{.*}}q_proj_A = @layers_1_q_proj_A

// SOME:     rom.site "layers.0.gate_proj"
// SOME-NEXT: rom.site "layers.0.up_proj"
// SOME-NEXT: rom.site "layers.1.gate_proj"
// SOME-NEXT: rom.site "layers.1.up_proj"
// SOME-NEXT: rom.layer
// SOME:       rom.slot @gate_proj_A : !rom.adapter<[4, 8192], int8>

// POLICY:      rom.site "layers.0.o_proj"
// POLICY-NEXT: rom.site "layers.1.o_proj"
// POLICY-NEXT: rom.layer

// What remains of the additions is in the last product; exponents are the site's registers.
// INTEGER:     rom.parameter @layers_0_q_proj_A : !rom.adapter<[8, 8192], fp8> {key = "adapter::layers.0.q_proj.A"}{{$}}
// INTEGER:     rom.dot %{{\w+}} by @q_proj_A {{.*}} -> !rom.accumulator<8, 54>
// INTEGER:     rom.dot %{{\w+}} by @q_proj_B
// INTEGER-NEXT: rom.requantize %{{\w+}} scaled %{{\w+}}, @q_proj_B residual
// INTEGER:     rom.requantize %{{\w+}} scaled %{{\w+}}, @o residual
// INTEGER:     rom.requantize %{{\w+}} scaled %{{\w+}}, @o_proj_B residual
// INTEGER-NOT: rom.add

// UNKNOWN: no matrix has the role 'nowhere', so it can have no adapter slots
// UNKNOWN: help: in this model layers 0 to 1 have q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj

// Types and products are those of one resident.
// RESIDENTS: rom.parameter @layers_0_q_proj_A : !rom.adapter<[8, 8192], fp8> {key = "adapter::layers.0.q_proj.A"}
// RESIDENTS: rom.site "layers.0.q_proj" beside @qkv0 rows 0 to 8 by @layers_0_q_proj_A, @layers_0_q_proj_B {residents = 3 : i64, onnx = {{\[}}["qkv.0"]]}
// RESIDENTS: rom.site "layers.1.down_proj" {{.*}} {residents = 3 : i64

// NOBODY: adapter slots hold at least 1 adapter, not 0

// RANK: adapter slots have a rank of at least 1, not 0

// A row has one scale: the sum before it has 50 bits.
// WIDE: rom.dot %{{\w+}} by @q_proj_A {{.*}} -> !rom.accumulator<8, 65>

// Both products take blocks, and the norm before them is folded.
// BLOCKS:      rom.layer
// BLOCKS:      %[[T:\w+]] = rom.tap
// BLOCKS:      %[[Q:\w+]] = rom.quantize_blocks
// BLOCKS:      rom.dot %[[Q]] by @q_proj_A {{.*}} -> !rom.accumulator<8, 71>
// BLOCKS:      %[[U:\w+]] = rom.quantize_blocks %{{\w+}} {{.*}} -> !rom.blocks<8, half8, 16, 16>
// BLOCKS:      rom.dot %[[U]] by @q_proj_B {{.*}} -> !rom.accumulator<8, 61>

// MACHINE: the module has no fabric.machine; run attach-target first

rom.layer @layer {
^bb0(%p: index, %x: tensor<8192xf32>):
  rom.slot @qkv : !rom.tensor<[16, 8192], int4, group 32>
  rom.slot @o : !rom.tensor<[8192, 8], int4, group 32>
  rom.slot @gate_up : !rom.tensor<[24, 8192], int4, group 32>
  rom.slot @down : !rom.tensor<[8192, 12], int4, group 32>
  rom.slot @key : !rom.kv<128, 1, 4, float32>
  rom.slot @value : !rom.kv<128, 1, 4, float32>
  %n = rom.rms_norm %x by @n {eps = 1.0e-05 : f64, onnx = [["n.0"], ["n.1"]]} : tensor<8192xf32> -> tensor<8192xf32>
  %qkv = rom.linear %n by @qkv {onnx = [["qkv.0"], ["qkv.1"]]} : tensor<8192xf32> -> tensor<16xf32>
  %q = rom.slice %qkv from 0 {onnx = [["a.0"], ["a.1"]]} : tensor<16xf32> -> tensor<8xf32>
  %k = rom.slice %qkv from 8 {onnx = [["a.0"], ["a.1"]]} : tensor<16xf32> -> tensor<4xf32>
  %v = rom.slice %qkv from 12 {onnx = [["a.0"], ["a.1"]]} : tensor<16xf32> -> tensor<4xf32>
  rom.append %k to @key at %p {onnx = [["a.0"], ["a.1"]]} : tensor<4xf32>
  rom.append %v to @value at %p {onnx = [["a.0"], ["a.1"]]} : tensor<4xf32>
  %a = rom.attention %q over @key, @value at %p {heads = 2 : i64, scale = 0.5 : f64, onnx = [["a.0"], ["a.1"]]} : tensor<8xf32> -> tensor<8xf32>
  %o = rom.linear %a by @o {onnx = [["o.0"], ["o.1"]]} : tensor<8xf32> -> tensor<8192xf32>
  %m = rom.add %x, %o {onnx = [["add.0"], ["add.1"]]} : tensor<8192xf32>, tensor<8192xf32> -> tensor<8192xf32>
  %gu = rom.linear %m by @gate_up {onnx = [["gu.0"], ["gu.1"]]} : tensor<8192xf32> -> tensor<24xf32>
  %u = rom.slice %gu from 0 {onnx = [["s.0"], ["s.1"]]} : tensor<24xf32> -> tensor<12xf32>
  %g = rom.slice %gu from 12 {onnx = [["s.0"], ["s.1"]]} : tensor<24xf32> -> tensor<12xf32>
  %h = rom.activate %g {kind = "silu", onnx = [["act.0"], ["act.1"]]} : tensor<12xf32> -> tensor<12xf32>
  %y = rom.mul %h, %u {onnx = [["mul.0"], ["mul.1"]]} : tensor<12xf32>, tensor<12xf32> -> tensor<12xf32>
  %d = rom.linear %y by @down {onnx = [["d.0"], ["d.1"]]} : tensor<12xf32> -> tensor<8192xf32>
  %z = rom.add %m, %d {onnx = [["add2.0"], ["add2.1"]]} : tensor<8192xf32>, tensor<8192xf32> -> tensor<8192xf32>
  rom.yield %z : tensor<8192xf32>
}
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["e"]]} : tensor<8192xf32>
  %y = rom.repeat @layer at %position (%x) instances [{qkv = @qkv0, o = @o0, gate_up = @gate_up0, down = @down0, key = @k0, value = @v0}, {qkv = @qkv1, o = @o1, gate_up = @gate_up1, down = @down1, key = @k1, value = @v1}] : (tensor<8192xf32>) -> tensor<8192xf32>
  %next = rom.sample %y {onnx = [["h"]]} : tensor<8192xf32>
  rom.emit %y, %next : tensor<8192xf32>
}
