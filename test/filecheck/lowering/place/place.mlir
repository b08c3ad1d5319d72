// RUN: xdsl-opt -p 'attach-target{target=roma-mini},fabric-place' %s | filecheck %s
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="policy.head_store=extra-rom"},fabric-place' %s | filecheck %s --check-prefix=EXTRA
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="h_unit.load_bytes=8"},fabric-place' %s | filecheck %s --check-prefix=UNITS
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="vector.sram_bytes=400"},fabric-place' %s 2>&1 | filecheck %s --check-prefix=SCALES
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="l_unit.rom_bits=8192"},fabric-place' %s 2>&1 | filecheck %s --check-prefix=ROM
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="h_unit.sram_bytes=1100"},fabric-place' %s 2>&1 | filecheck %s --check-prefix=SRAM
// RUN: not xdsl-opt -p 'attach-target{target=roma-mini set="formats.weights=int8"},fabric-place' %s 2>&1 | filecheck %s --check-prefix=CELLS
// RUN: xdsl-opt -p fabric-place --verify-diagnostics %s | filecheck %s --check-prefix=MACHINE

rom.parameter @emb : !rom.tensor<[256, 64], fixed16> {key = "emb"}
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
rom.parameter @cos : !rom.tensor<[128, 8], fixed16> {key = "cos"}
rom.parameter @w0 : !rom.tensor<[100, 64], int4, group 32> {key = "layers.0.w"}
rom.parameter @w1 : !rom.tensor<[100, 64], int4, group 32> {key = "layers.1.w"}
rom.parameter @head : !rom.tensor<[256, 64], int4, group 32, zeros> {key = "head"}
rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {key = "graph.a"}
rom.parameter @t : !rom.adapter<[4, 64], fp8> {key = "adapter::layers.0.q_proj.A"}
rom.parameter @s : !rom.adapter<[3, 64], fp8> {key = "adapter::layers.1.q_proj.A"}
rom.cache @k0 : !rom.kv<128, 2, 16, int8>
rom.cache @k1 : !rom.kv<128, 2, 16, fp8, static> {static_scale = #rom.real<8388608, 32>}

// Matrices and the embedding go to the tiles: every row once, one after the other in the banks.
// CHECK:      fabric.engrave @emb in [#fabric.piece<rows 0 to 256, tiles 0 to 8, split {{[0-9]}}, at 0, 0>]
// CHECK-NEXT: fabric.engrave @w0 in [#fabric.piece<rows 0 to 100, tiles 0 to 8, split {{[0-9]}}, at {{[0-9]+}}, 0>]
// CHECK-NEXT: fabric.engrave @w1 in [#fabric.piece<rows 0 to 100, tiles 0 to 8, split {{[0-9]}}, at
// CHECK-NEXT: fabric.engrave @head in [#fabric.piece<rows 0 to 256,
// Vectors and tables go to the vector units, at rows of a memory. A table that is read as that of
// cosines and as that of sines is there in both forms, a row for each position.
// CHECK-NEXT: fabric.memory @constants rows 260 of 16 x 32
// CHECK-NEXT: fabric.constant @g in @constants at 0
// CHECK-NEXT: fabric.constant @cos in @constants at 4 {form = "pairs", period = 16 : i64}
// CHECK-NEXT: fabric.constant @cos in @constants at 132 {form = "pairs", period = 16 : i64, negated}
// The memories that caches and adapters need, to the row: 16 rounds of 2 heads for each cache, scales
// for the one that is dynamic; rows of 4 words of int8 less its zero point, with a scale each.
// CHECK-NEXT: fabric.memory @kv rows 64 of 16 x 8 in 8
// CHECK-NEXT: fabric.memory @kv_scales rows 16 of 16 x 32
// CHECK-NEXT: fabric.memory @adapters rows 8 of 16 x 9 in 8 {resident = 4 : i64}
// CHECK-NEXT: fabric.memory @adapter_scales rows 3 of 1 x 16 in 8 {resident = 2 : i64}
// Matrices of few rows lie beside each other. A word of the load port has scales for all eight
// H-Units, so theirs have rows of their own.
// CHECK-NEXT: fabric.reserve @a in @adapters at 0
// CHECK-NEXT: fabric.reserve @t in @adapters at 4 {scale = 1 : i64}
// CHECK-NEXT: fabric.reserve @s in @adapters at 4 {scale = 2 : i64, unit = 4 : i64}
// CHECK-NEXT: fabric.reserve @k0 in @kv at 0
// CHECK-NEXT: fabric.reserve @k1 in @kv at 32
// CHECK-NEXT: rom.layer

// With a narrow load port they share the row of scales too.
// UNITS: fabric.memory @adapters rows 8 of 16 x 9 in 8 {resident = 4 : i64}
// UNITS: fabric.memory @adapter_scales rows 2 of 1 x 16 in 8 {resident = 1 : i64}
// UNITS: fabric.reserve @t in @adapters at 4 {scale = 1 : i64}
// UNITS: fabric.reserve @s in @adapters at 4 {scale = 1 : i64, unit = 4 : i64}

// What lies in ROM beyond the published comes last.
// EXTRA:     fabric.engrave @w1 in [#fabric.piece<{{[^>]*}}>]{{$}}
// EXTRA:     fabric.engrave @head in [#fabric.piece<{{[^>]*}}>] extra

// ROM: the ROM of roma-mini holds 0.03 MB, the model needs {{[0-9.]+}} MB with padding; the 4 L-Units of the fullest tile are over by
// ROM: 0.03 MB fixed16 [256, 64]
// ROM: 0.01 MB int4 [256, 64]
// ROM: help: needs {{.*}} times the ROM: {{.*}}fewer bits a weight

// SRAM: the SRAM of roma-mini holds 0.01 MiB, the model needs 0.01 MiB; every H-Unit is over by {{[0-9]+}} bytes
// SRAM: KV cache
// SRAM: adapters of the graph
// SRAM: adapter slots
// SRAM: help: {{.*}}slots for fewer matrices

// SCALES: the vector units of roma-mini hold 800 bytes, scales of cached keys and values take 1024
// SCALES: help: {{.*}}--set kv=fp8

// CELLS: weights layers.0.w are int4, which roma-mini has no cells for
// CELLS: help: its ROM in the layers stores int8

// MACHINE: the module has no fabric.machine; run attach-target first

rom.layer @layer {
^bb0(%p: index, %x: !rom.fixed<64, 16>):
  rom.slot @w : !rom.tensor<[100, 64], int4, group 32>
  %n = rom.rms_norm %x by @g {eps = #rom.real<1, 9>, onnx = [["n0"], ["n1"]]} : !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  %r = rom.rotary %n at %p by @cos, @cos {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["r0"], ["r1"]]} : !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  %c = rom.quantize %r {onnx = [["q0"], ["q1"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @w {onnx = [["m0"], ["m1"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<100, 34>
  %y = rom.requantize %a scaled %c, @w {pre_shift = 0 : i64, onnx = [["m0"], ["m1"]]} : !rom.accumulator<100, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<100, 16>
  %z = rom.slice %y from 0 {onnx = [["s0"], ["s1"]]} : !rom.fixed<100, 16> -> !rom.fixed<64, 16>
  rom.yield %z : !rom.fixed<64, 16>
}
rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @emb {onnx = [["e"]]} : !rom.fixed<64, 16>
  %y = rom.repeat @layer at %position (%x) instances [{w = @w0}, {w = @w1}] : (!rom.fixed<64, 16>) -> !rom.fixed<64, 16>
  %c = rom.quantize %y {onnx = [["h"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @head {onnx = [["h"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<256, 34>
  %z = rom.requantize %a scaled %c, @head {pre_shift = 0 : i64, onnx = [["h"]]} : !rom.accumulator<256, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<256, 16>
  %next = rom.sample %z {onnx = [["h"]]} : !rom.fixed<256, 16>
  rom.emit %z, %next : !rom.fixed<256, 16>
}
