// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},fabric-place,program-schedule' %s -o %t.mlir
// RUN: python %S/../../whole.py < %t.mlir | filecheck %s
// RUN: filecheck %s --input-file %t.mlir --check-prefix=BEATS
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8","vector.sram_bytes=1100"},fabric-place,program-schedule' %s 2>&1 | filecheck %s --check-prefix=SRAM
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="policy.in_flight=2"},fabric-place,program-schedule' %s | filecheck %s --check-prefix=FLIGHT

// Each of two tokens in flight has rows of its own for values; keys, values and constants are
// everybody's.
// FLIGHT-DAG: fabric.memory @constants rows 2 of
// FLIGHT-DAG: fabric.memory @kv rows 52 of
// FLIGHT-DAG: fabric.memory @vectors rows 32 of
// FLIGHT-DAG: fabric.memory @codes rows 20 of
// FLIGHT-DAG: fabric.memory @code_scales rows 20 of

rom.parameter @emb : !rom.tensor<[256, 64], fixed16> {key = "emb"}
rom.parameter @w0 : !rom.tensor<[96, 64], int4, group 32> {key = "layers.0.w"}
rom.parameter @w1 : !rom.tensor<[96, 64], int4, group 32> {key = "layers.1.w"}
rom.parameter @head : !rom.tensor<[256, 64], int4, group 32> {key = "head"}
rom.cache @k0 : !rom.kv<100, 2, 16, int8>
rom.cache @k1 : !rom.kv<100, 2, 16, int8>

rom.layer @layer {
^bb0(%p: index, %x: !rom.fixed<64, 16>):
  rom.slot @w : !rom.tensor<[96, 64], int4, group 32>
  rom.slot @k : !rom.kv<100, 2, 16, int8>
  %c = rom.quantize %x {onnx = [["q0"], ["q1"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @w {onnx = [["m0"], ["m1"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<96, 34>
  %y = rom.requantize %a scaled %c, @w {pre_shift = 0 : i64, onnx = [["m0"], ["m1"]]} : !rom.accumulator<96, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<96, 16>
  %q = rom.slice %y from 0 {onnx = [["s0"], ["s1"]]} : !rom.fixed<96, 16> -> !rom.fixed<64, 16>
  %k = rom.slice %y from 64 {onnx = [["s0"], ["s1"]]} : !rom.fixed<96, 16> -> !rom.fixed<32, 16>
  %kq = rom.quantize %k {onnx = [["k0"], ["k1"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, int8>
  rom.append %kq to @k at %p {onnx = [["k0"], ["k1"]]} : !rom.quantized<2, 16, int8>
  %qq = rom.quantize %q {onnx = [["g0"], ["g1"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, int8>
  %s = rom.query_key %qq over @k at %p {score_scale = #rom.real<1, 9>, onnx = [["g0"], ["g1"]]} : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
  %o = rom.softmax %s over @k at %p {window = 32 : i64, onnx = [["g0"], ["g1"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, uint8>
  %v = rom.weighted_sum %o over @k at %p {onnx = [["g0"], ["g1"]]} : !rom.probabilities<4, uint8> -> !rom.fixed<64, 16>
  %z = rom.add %x, %v {onnx = [["a0"], ["a1"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  rom.yield %z : !rom.fixed<64, 16>
}
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["e"]]} : !rom.fixed<64, 16>
  %y = rom.repeat @layer at %position (%x) instances [{w = @w0, k = @k0}, {w = @w1, k = @k1}] : (!rom.fixed<64, 16>) -> !rom.fixed<64, 16>
  %c = rom.quantize %y {onnx = [["h"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @head {onnx = [["h"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<256, 34>
  %z = rom.requantize %a scaled %c, @head {pre_shift = 0 : i64, onnx = [["h"]]} : !rom.accumulator<256, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<256, 16>
  %next = rom.sample %z {onnx = [["h"]]} : !rom.fixed<256, 16>
  rom.emit %z, %next : !rom.fixed<256, 16>
}

// Each instruction by its last beat. Positions: the first, and the last that the caches hold. The step and its layers are gone.
// CHECK-NOT:  rom.layer
// CHECK-NOT:  rom.step
// CHECK:      program.program @decode positions [0, 99] logits @[[LOGITS:\w+]] token @next {
// The carried value has one buffer, whose rows the logits take over; a slice is a part of another;
// scores take the whole capacity.
// CHECK-NEXT:   program.buffer @[[X:\w+]] in @vectors at 0 : !rom.fixed<64, 16>
// CHECK-NEXT:   program.buffer @token : i32
// CHECK-NEXT:   program.buffer @[[LOGITS]] in @vectors at 0 : !rom.fixed<256, 16>
// CHECK-NEXT:   program.buffer @next : i32
// CHECK:        program.buffer @[[C:\w+]] in @codes at {{[0-9]+}} : !rom.quantized<1, 64, int8>
// CHECK:        program.buffer @[[Y:\w+]] in @vectors at [[YA:[0-9]+]] : !rom.fixed<96, 16>
// CHECK:        program.buffer @{{\w+}} in @scores at 0 : !rom.scores<4, 16>
// CHECK-NEXT:   program.buffer @{{\w+}} in @probabilities at 0 : !rom.probabilities<4, uint8>
// CHECK:        program.buffer @[[Q:part0_\w+]] in @vectors at [[YA]] : !rom.fixed<64, 16> {of = @[[Y]]}
// CHECK-NEXT:   program.buffer @[[K:\w+]] in @vectors at {{[0-9]+}} : !rom.fixed<32, 16>

// CHECK-NEXT:   program.block @part0 instances [{emb = @emb}] {
// CHECK-NEXT:     program.instruction "embed" on "matrix" reads [@token] writes [@[[X]]] uses {table = @emb} waits {} takes
// CHECK-NEXT:   }
// CHECK-NEXT:   program.block @layer instances [{w = @w0, k = @k0}, {w = @w1, k = @k1}] {
// CHECK-NEXT:     program.instruction "quantize" on "vector" reads [@[[X]]] writes [@[[C]]]
// CHECK-SAME:       waits {matrix = 0 : i64
// CHECK-SAME:       start = array<i64: {{[0-9]+, [0-9]+, [0-9]+, [0-9]+}}>
// CHECK-NEXT:     program.instruction "matvec" on "matrix" reads [@[[C]]] writes [@[[Y]]] uses {weights = @w} waits {vector = 5 : i64} takes "20" every "4"
// CHECK-SAME:       {arguments = {pre_shift = 0 : i64}, onnx = {{\[}}["m0"], ["m1"]]
// CHECK-NEXT:     program.instruction "quantize" on "vector" reads [@[[K]]] {{.*}} waits {matrix = {{[1-6]}} : i64, kv = {{-?[0-9]+}} : i64, reductions = {{[0-9]+}} : i64}
// CHECK-NEXT:     program.instruction "append" on "kv" {{.*}} writes [] uses {cache = @k} waits {vector = {{[0-9]+}} : i64} takes "3" every "2"
// CHECK-NEXT:     program.instruction "quantize" on "vector" reads [@[[Q]]]
// CHECK-NEXT:     program.instruction "query_key" on "attention" {{.*}} uses {keys = @k} waits {vector = {{[0-9]+}} : i64, kv = 2 : i64} takes "{{.*}}tokens{{.*}}"
// CHECK-NEXT:     program.instruction "softmax" on "vector" {{.*}} uses {values = @k} waits {attention = 2 : i64, vector = {{[0-9]+}} : i64, kv = 2 : i64, reductions = {{[0-9]+}} : i64} takes "{{.*}}tokens{{.*}}"
// CHECK-NEXT:     program.instruction "weighted_sum" on "attention" {{.*}} uses {values = @k} waits {vector = {{[0-9]+}} : i64, kv = 2 : i64}
// CHECK-NEXT:     program.instruction "add" on "vector" reads [@[[X]], @{{\w+}}] writes [@[[X]]]
// CHECK-NEXT:   }
// Logits only where a token is wanted.
// CHECK-NEXT:   program.block @head instances [{head = @head}] sampled {
// CHECK-NEXT:     program.instruction "quantize" on "vector" reads [@[[X]]]
// CHECK-NEXT:     program.instruction "matvec" on "matrix" {{.*}} writes [@[[LOGITS]]]
// CHECK-NEXT:     program.instruction "sample" on "vector" reads [@[[LOGITS]]] writes [@next]
// CHECK-NEXT:   }
// CHECK-NEXT: }

// Counters count beats of the block's instance. A pass that needs the one before waits for its reductions, which all beats
// of the vector queue leave; a head's scores wait for that head's query, and that head's key.
// BEATS:      program.block @layer instances
// BEATS-NEXT:   "quantize" {{.*}} waits {matrix = 0 : i64, vector = {{-?[0-9]+}} : i64} takes "8" every "4" reduces "15" beat {count = 64 : i64, more = 1 : i64}
// BEATS-NEXT:   "quantize" {{.*}} waits {matrix = 0 : i64, vector = -3 : i64, reductions = 1 : i64} takes "5" every "1" reduces "12" beat {pass = 1 : i64, count = 16 : i64, more = 1 : i64}
// BEATS-NEXT:   "quantize" {{.*}} waits {matrix = 0 : i64, vector = -2 : i64, reductions = 1 : i64} takes "5" every "1" reduces "12" beat {pass = 1 : i64, first = 16 : i64, count = 16 : i64, more = 1 : i64}
// BEATS-NEXT:   "quantize" {{.*}} beat {pass = 1 : i64, first = 32 : i64, count = 16 : i64, more = 1 : i64}
// BEATS-NEXT:   "quantize" {{.*}} beat {pass = 1 : i64, first = 48 : i64, count = 16 : i64} {onnx = {{\[}}["q0"], ["q1"]]
// BEATS-NEXT:   "matvec" {{.*}} waits {vector = 5 : i64} takes "20" every "4" beat {of = 1 : i64, {{.*}}count = 16 : i64, more = 1 : i64}
// BEATS:        "quantize" {{.*}} waits {matrix = {{[1-6]}} : i64, kv = {{-?[0-9]+}} : i64} takes "5" every "1" reduces "12" beat {of = 2 : i64, count = 16 : i64, entry = 1 : i64, more = 1 : i64}
// BEATS:        "quantize" {{.*}} waits {matrix = {{[1-6]}} : i64, kv = {{-?[0-9]+}} : i64, reductions = {{[0-9]+}} : i64} {{.*}} beat {of = 2 : i64, pass = 1 : i64, count = 16 : i64, entry = 1 : i64, more = 1 : i64}
// BEATS:        "append" {{.*}} beat {of = 3 : i64, count = 1 : i64, more = 1 : i64}
// BEATS:        "query_key" {{.*}} kv = 1 : i64} takes "15 + ceildiv(tokens, 8)" every "ceildiv(tokens, 8)" reduces "18 + ceildiv(tokens, 8)" beat {of = 5 : i64, count = 1 : i64, more = 1 : i64}
// BEATS:        "softmax" {{.*}} waits {kv = 1 : i64} takes "4 + ceildiv(tokens, 16) {{.*}} beat {of = 6 : i64, count = 2 : i64, entry = 7 : i64, more = 1 : i64}
// BEATS:        "query_key" {{.*}} kv = 2 : i64} {{.*}} beat {of = 5 : i64, first = 1 : i64, count = 1 : i64}
// BEATS:        "softmax" {{.*}} waits {attention = 1 : i64, vector = {{-?[0-9]+}} : i64, kv = 1 : i64, reductions = {{[0-9]+}} : i64, attention_peaks = 1 : i64} takes "4 + 2 * {{.*}} beat {of = 6 : i64, pass = 1 : i64, count = 2 : i64, entry = 7 : i64, more = 1 : i64}
// BEATS:        "weighted_sum" {{.*}} kv = 1 : i64} takes "16 + ceildiv(tokens, 8)" every "2 + ceildiv(tokens, 8)" reduces "19 + ceildiv(tokens, 8)" beat {of = 7 : i64, count = 1 : i64, more = 1 : i64}
// BEATS:        "add" {{.*}} attention = 3 : i64, vector = {{-?[0-9]+}} : i64} takes "5" every "1" reduces "12" beat {of = 8 : i64, count = 16 : i64, more = 1 : i64}
// BEATS:        "add" {{.*}} attention = 4 : i64, vector = {{-?[0-9]+}} : i64} {{.*}} beat {of = 8 : i64, first = 48 : i64, count = 16 : i64}

// SRAM: the vector units of roma-mini hold 2200 bytes, the program needs {{[0-9]+}}
// SRAM-NEXT: 1792 bytes{{ +}}!rom.scores<4, 16>
// SRAM: 1792 bytes{{ +}}scales of cached keys and values
// SRAM: help: enough of the vector memory: --context 16; or --set kv=fp8; or a larger target
